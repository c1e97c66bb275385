from types import SimpleNamespace

import numpy as np
import pytest
import torch

from navprune.errors import UserError
from navprune.models.spec import PolicySpec, build, encoder_spec, with_widths
from navprune.pruning.gates import EXPERT, GateConfig, collect_observations, learn_gates, shuffled_batches
from navprune.pruning.prune import weights_hash
from navprune.tasks import GOAL

SIDE = 36


def quadrants(count, seed=0):
    """A task whose answer shows in the depth image, by which quarter is far; colour and goal are noise."""
    generator = torch.Generator().manual_seed(seed)
    answer = torch.randint(4, (count,), generator=generator)
    depth = torch.zeros(count, 2, SIDE // 2, 2, SIDE // 2)
    depth[torch.arange(count), answer // 2, :, answer % 2] = 1
    depth = depth.view(count, SIDE, SIDE, 1) * torch.rand(count, 1, 1, 1, generator=generator)
    return {
        "depth": depth + 0.2 * torch.rand(count, SIDE, SIDE, 1, generator=generator),
        "rgb": torch.randint(256, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8),
        GOAL: torch.rand(count, 2, generator=generator),
        EXPERT: answer,
    }


def half_blind(seed=0):
    """A network whose first four filters see depth alone and whose last four see colour alone."""
    spec = with_widths(encoder_spec("simple_cnn", (4, SIDE, SIDE)), {"conv1": 8, "conv2": 8})
    model = build(spec, seed)
    with torch.no_grad():
        model.cnn[0].weight[:4, 1:] = 0
        model.cnn[0].weight[4:, :1] = 0
    return model


def batches(data, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return shuffled_batches(data, 32, count * 32 // len(data[EXPERT]), generator)


@pytest.mark.parametrize("seed", [0, 1])
def test_gates_keep_the_channels_that_carry_the_answer(seed):
    learned = learn_gates(
        half_blind(seed),
        batches(quadrants(2048, seed), 256),
        GateConfig(penalty=0.5),
        torch.Generator().manual_seed(seed),
    )
    gates = learned.gates["conv1"]
    assert gates[:4].mean() > gates[4:].mean() + 0.3
    assert np.mean(learned.losses[-20:]) < 0.75 * np.mean(learned.losses[:20])
    together = torch.cat(list(learned.gates.values()))
    assert together.min() >= 0 and together.max() <= 1
    assert abs(together.mean() - 0.5) < 0.2


def test_only_gates_learn_and_the_model_is_left_as_it_was():
    model = build(PolicySpec(encoder_spec("resnet18", (4, SIDE, SIDE), 8), 16, 16), 0).train()
    model.encoder.backbone.conv1.requires_grad_(False)
    wants = [parameter.requires_grad for parameter in model.parameters()]
    before = weights_hash(model)
    learned = learn_gates(model, batches(quadrants(64), 4), GateConfig(), torch.Generator().manual_seed(0))
    assert weights_hash(model) == before
    assert [parameter.requires_grad for parameter in model.parameters()] == wants
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert set(learned.gates) == {f"stage{s}.block{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)}
    assert torch.cat(list(learned.gates.values())).mean() < 1  # on the way to its target


def test_the_same_seed_gives_the_same_gates():
    def learned(seed):
        return learn_gates(
            half_blind(), batches(quadrants(128), 12, seed), GateConfig(), torch.Generator().manual_seed(seed)
        )

    first, second, other = learned(0), learned(0), learned(1)
    assert first.losses == second.losses != other.losses
    assert all(torch.equal(first.gates[name], second.gates[name]) for name in first.gates)


def test_no_batches_are_refused():
    with pytest.raises(UserError, match="no observations"):
        learn_gates(half_blind(), [], GateConfig(), torch.Generator())


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"target": 1.0}, "target must lie between"),
        ({"expansion": 0.5}, "expansion must be at least 1"),
        ({"penalty": -1}, "penalty must be at least 0"),
        ({"learning_rate": 0}, "learning rates above 0"),
    ],
)
def test_settings_are_checked(setting, complaint):
    with pytest.raises(UserError, match=complaint):
        GateConfig(**setting)


def test_batches_hold_each_observation_once_an_epoch():
    data = {EXPERT: torch.arange(10), "depth": torch.arange(10.0)[:, None]}
    seen = list(shuffled_batches(data, 5, 2, torch.Generator().manual_seed(0)))
    assert [len(batch[EXPERT]) for batch in seen] == [5] * 4
    assert all(torch.equal(batch["depth"][:, 0], batch[EXPERT].float()) for batch in seen)
    for epoch in (seen[:2], seen[2:]):
        assert torch.cat([batch[EXPERT] for batch in epoch]).sort().values.tolist() == list(range(10))
    assert [len(b[EXPERT]) for b in shuffled_batches(data, 4, 1, torch.Generator())] == [4, 4]


@pytest.mark.parametrize("size", [1, 11])
def test_batches_that_cannot_be_filled_are_refused(size):
    with pytest.raises(UserError, match="batch"):
        next(shuffled_batches({EXPERT: torch.arange(10)}, size, 1, torch.Generator()))


class Counter:
    """Environments that show how often they were stepped; their expert always moves forward."""

    num_envs = 3

    def __init__(self):
        self.steps = 0
        self.actions = []

    def _see(self):
        return {"depth": torch.full((3, 2, 2, 1), float(self.steps)), GOAL: torch.zeros(3, 2)}

    def reset(self):
        return self._see()

    def expert_actions(self):
        return torch.tensor([1, 1, 0])

    def step(self, actions):
        self.actions.append(actions)
        self.steps += 1
        return SimpleNamespace(observations=self._see())


def test_observations_are_collected_with_what_the_expert_would_do_there():
    env = Counter()
    data = collect_observations(env, 200, np.random.default_rng(0), wander=0.5)
    assert data["depth"].shape == (600, 2, 2, 1)
    assert torch.equal(data["depth"][::3, 0, 0, 0], torch.arange(200.0))
    assert torch.equal(data[EXPERT], torch.tensor([1, 1, 0] * 200))
    taken = torch.stack(env.actions)
    assert set(taken[:, 0].tolist()) == {1, 2, 3}  # straying never stops
    assert 0.35 < (taken[:, 2] != 0).float().mean() < 0.65


def test_without_wandering_the_expert_is_followed():
    env = Counter()
    collect_observations(env, 20, np.random.default_rng(0), wander=0.0)
    assert torch.equal(torch.stack(env.actions), torch.tensor([[1, 1, 0]] * 20))
