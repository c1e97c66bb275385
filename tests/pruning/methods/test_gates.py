from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.models.widths import with_widths
from navprune.pruning.config import GateConfig
from navprune.pruning.losses import (
    EXPERT,
    Imitation,
    PPOTask,
    classification_loss,
    collect_observations,
    labelled_batches,
    shuffled_batches,
)
from navprune.pruning.methods.gates import learn_gates, rank_correlation
from navprune.pruning.prune import weights_hash
from navprune.pruning.structure import structure_of
from navprune.rl.ppo import PPOConfig
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


def imitated(model, batches, config=None, seed=0):
    return learn_gates(
        structure_of(model), batches, Imitation(model, torch.Generator().manual_seed(seed)), config or GateConfig()
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_gates_keep_the_channels_that_carry_the_answer(seed):
    learned = imitated(half_blind(seed), batches(quadrants(2048, seed), 256), GateConfig(penalty=0.5, stable=1), seed)
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
    learned = imitated(model, batches(quadrants(64), 4))
    assert weights_hash(model) == before
    assert [parameter.requires_grad for parameter in model.parameters()] == wants
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert set(learned.gates) == {f"stage{s}.block{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)}
    assert torch.cat(list(learned.gates.values())).mean() < 1  # on the way to its target


def test_whole_blocks_have_a_gate_each_where_they_may_go():
    model = build(encoder_spec("resnet18", (4, SIDE, SIDE), 8), 0)
    loss = Imitation(model, torch.Generator().manual_seed(0))
    learned = learn_gates(structure_of(model, blocks=True), batches(quadrants(64), 3), loss, GateConfig())
    blocks = {name: gate for name, gate in learned.gates.items() if not name.endswith("conv1")}
    assert blocks.keys() == model.spec.removable_blocks().keys()
    assert all(gate.shape == (1,) and gate < 1 for gate in blocks.values())


def test_the_same_seed_gives_the_same_gates():
    def learned(seed):
        return imitated(half_blind(), batches(quadrants(128), 12, seed), seed=seed)

    first, second, other = learned(0), learned(0), learned(1)
    assert first.losses == second.losses != other.losses
    assert all(torch.equal(first.gates[name], second.gates[name]) for name in first.gates)


def test_no_batches_are_refused():
    with pytest.raises(UserError, match="no observations"):
        imitated(half_blind(), [])


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"target": 1.0}, "gates.target is 1.0; it must be a number from"),
        ({"expansion": 0.5}, "expansion is 0.5; it must be a number from 1 to 8"),
        ({"expansion": float("nan")}, "expansion is nan"),
        ({"expansion": 100.0}, "expansion is 100.0; .* from 1 to 8"),
        ({"penalty": float("nan")}, "penalty is nan; it must be a number of at least 0"),
        ({"penalty": -1}, "penalty is -1"),
        ({"learning_rate": 0}, "gates.learning_rate is 0"),
        ({"stable": 0}, "stable is 0; it must be a number from"),
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


# An early stop -----------------------------------------------------------------------------------


def test_learning_stops_once_the_ranking_is_stable():
    data = quadrants(512)
    whole = imitated(half_blind(), batches(data, 400), GateConfig(stable=1))
    early = imitated(half_blind(), batches(data, 400), GateConfig(stable=0.95))
    assert 40 <= len(early.losses) < len(whole.losses) == 400
    assert early.losses == whole.losses[: len(early.losses)]
    everything = [torch.cat(list(learned.gates.values())) for learned in (whole, early)]
    assert rank_correlation(*everything) > 0.6


@pytest.mark.parametrize(
    ("first", "second", "answer"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [5, 6, 7, 8, 7], 0.8207826816681233),  # ties: 6 sum d^2 / (n^3 - n) would say otherwise
        ([1, 1, 1], [1, 2, 3], 0.0),
    ],
)
def test_rank_correlation_is_spearmans(first, second, answer):
    first, second = torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)
    assert rank_correlation(first, second) == pytest.approx(answer)


# Classification ----------------------------------------------------------------------------------


def labelled(count, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of noise whose class is the channel that is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = 0.3 * torch.rand(count, 3, 32, 32, generator=generator)
    images[torch.arange(count), labels] += 0.5
    return images, labels


@pytest.mark.parametrize("name", ["cifar_resnet56", "cifar_vgg16_bn"])
def test_gates_of_classifiers_leave_weights_and_statistics(name):
    spec = classifier_spec(name, 3, width=0.25)
    model = build(spec, 0).train()
    before = weights_hash(model)
    learned = learn_gates(
        structure_of(model),
        labelled_batches(*labelled(32), 16, 1, torch.Generator().manual_seed(0)),
        classification_loss,
        GateConfig(penalty=0.5, stable=1.0),
    )
    assert weights_hash(model) == before and model.training
    inner = {"cifar_resnet56": 27, "cifar_vgg16_bn": 13}[name]
    assert len(learned.gates) == inner and len(learned.losses) == 2
    assert all(gate.max() <= 1 for gate in learned.gates.values())
    assert any(gate.min() < 1 for gate in learned.gates.values())


def test_gates_of_a_module_from_elsewhere():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    with torch.no_grad():
        model[0].weight[3:] = 0  # says nothing
    data = labelled_batches(*labelled(64), 32, 40, torch.Generator().manual_seed(0))
    config = GateConfig(penalty=1.0, stable=1)
    learned = learn_gates(structure_of(model, example=torch.zeros(1, 3, 32, 32)), data, classification_loss, config)
    gates = learned.gates["0"]
    assert gates[:3].max() > gates[3:].max() + 0.2


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        ((torch.zeros(4, 5, 32, 32), torch.zeros(4, dtype=torch.int64)), r"batch holds images of \[5, 32, 32\]"),
        ((torch.zeros(4, 3, 32, 32), torch.zeros(3, dtype=torch.int64)), "batch"),
        ((torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])), "batch"),
        (torch.zeros(4, 3, 32, 32), "batch"),
        (None, "batch"),
        ((torch.full((4, 3, 32, 32), float("nan")), torch.zeros(4, dtype=torch.int64)), "look for NaN"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batch, complaint):
    model = build(classifier_spec("cifar_resnet56", 3, width=0.25), 0)
    before = weights_hash(model)
    with pytest.raises(UserError, match=complaint):
        learn_gates(structure_of(model), [batch], classification_loss, GateConfig())
    assert weights_hash(model) == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"depth": torch.zeros(8, 20, 20, 1), "rgb": torch.zeros(8, 20, 20, 3)}, r"images of \[4, 20, 20\]"),
        ({"depth": torch.zeros(8, SIDE, SIDE, 2)}, r"images of \[5, 36, 36\]"),
        ({EXPERT: torch.zeros(5, dtype=torch.int64)}, "does not fit the network"),
        ({GOAL: torch.full((8, 2), float("nan"))}, "look for NaN"),
    ],
)
def test_observations_that_do_not_fit_are_refused(change, complaint):
    with pytest.raises(UserError, match=complaint):
        imitated(half_blind(), [{**quadrants(8), **change}])
    with pytest.raises(UserError, match="lacks 'expert'"):
        imitated(half_blind(), [{name: value for name, value in quadrants(8).items() if name != EXPERT}])


# PPO on the task ---------------------------------------------------------------------------------


class Lamp:
    """Environments in which the bright half of the image says which way to go; a step in that direction pays."""

    num_envs = 8

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)

    def _see(self):
        self.side = torch.randint(2, (self.num_envs,), generator=self.generator)
        depth = torch.zeros(self.num_envs, SIDE, SIDE, 1)
        depth[:, :, : SIDE // 2] = 1.0 * (self.side == 0)[:, None, None, None]
        depth[:, :, SIDE // 2 :] = 1.0 * (self.side == 1)[:, None, None, None]
        return {"depth": depth, GOAL: torch.zeros(self.num_envs, 2)}

    def reset(self):
        return self._see()

    def step(self, actions):
        reward = (actions == self.side + 2).float()
        over = torch.ones(self.num_envs, dtype=torch.bool)
        return SimpleNamespace(
            observations=self._see(),
            reward=reward,
            terminated=over,
            truncated=~over,
            finished=[],
            final_observations=None,
        )


def lit_policy(seed=0):
    return build(PolicySpec(encoder_spec("resnet18", (1, SIDE, SIDE), 8, output=8), 16, 16), seed)


def test_gates_learn_from_ppo_and_leave_the_policy_as_it_was():
    policy = lit_policy().train()
    before = weights_hash(policy)
    task = PPOTask(Lamp(), PPOConfig(steps=4, epochs=2, minibatches=2), updates=3)
    learned = learn_gates(structure_of(policy), task.batches(policy), task.loss, GateConfig())
    assert len(learned.losses) == 3 * 2 * 2
    assert weights_hash(policy) == before
    assert all(parameter.grad is None and parameter.requires_grad for parameter in policy.parameters())
    assert all(module.training for module in policy.modules())
    gates = torch.cat(list(learned.gates.values()))
    assert gates.std() > 0 and gates.max() <= 1


def test_ppo_learns_the_task_behind_the_gates():
    """The heads learn along, so that the loss says something of the features: the values come to be right."""
    policy = lit_policy()
    task = PPOTask(Lamp(), PPOConfig(steps=16, epochs=4, minibatches=1, entropy_coefficient=0), updates=8)
    learn_gates(structure_of(policy), task.batches(policy), task.loss, GateConfig(readout_learning_rate=1e-2))
    assert task.ppo.rollout.rewards.mean() > 0.4  # by chance 0.25


def test_ppo_needs_a_policy():
    task = PPOTask(Lamp(), PPOConfig(), updates=1)
    with pytest.raises(UserError, match="needs a whole policy"):
        learn_gates(structure_of(lit_policy().encoder), task.batches(lit_policy().encoder), task.loss, GateConfig())
