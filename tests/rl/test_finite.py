"""Numbers that are not numbers: a run stops before they spoil its weights, and none are written or read."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from navprune.errors import UserError
from navprune.rl.checkpoints import (
    DamagedCheckpoint,
    find_checkpoint,
    load_policy,
    load_weights,
    numbered,
    save_checkpoint,
)
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import TrainerConfig, train
from navprune.rl.warm_start import WarmStartConfig

PPO = PPOConfig(steps=6, epochs=1)
WARM = WarmStartConfig(frames=48, steps=6, sequence=6, batch=2, capacity=48)
RUN = TrainerConfig(total_frames=72, threads=1, checkpoint_seconds=0, window=5, keep_checkpoints=3)
HUGE = 1e39  # more than float32 holds


def run(toys, folder, env=None, *, ppo=PPO, warm_start=None, frames=72, policy=None):
    config = replace(RUN, total_frames=frames)
    return train(policy or toys.spec(), env or toys.Corridor(), config, phases_of(ppo, warm_start), folder)


def weights(path):
    return load_policy(path).policy.state_dict()


def same(a, b):
    return all(value.equal(b[name]) for name, value in a.items())


def spoil(folder, value=float("nan")):
    """Make one weight of a checkpoint not finite, as earlier versions wrote it."""
    file = folder / "weights.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    next(iter(tensors.values())).view(-1)[0] = value
    file.write_bytes(safetensors.torch.save(tensors))


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        ({"ppo": replace(PPO, value_coefficient=HUGE)}, "ppo"),
        ({"ppo": replace(PPO, entropy_coefficient=HUGE)}, "ppo"),
        ({"warm_start": replace(WARM, value_coefficient=HUGE)}, "warm_start"),
    ],
)
def test_a_loss_that_overflows_stops_before_its_step_and_the_healthy_command_goes_on(toys, tmp_path, bad, name):
    warm_start = WARM if name == "warm_start" else None
    run(toys, tmp_path / "healthy", warm_start=warm_start)
    run(toys, tmp_path / "run", warm_start=warm_start, frames=24)
    before = weights(tmp_path / "run")
    with pytest.raises(
        UserError, match=rf"update 2 \({name}, at 24 frames\): the loss is -?(inf|nan).*lower lr"
    ) as error:
        run(toys, tmp_path / "run", **{"warm_start": warm_start, **bad})
    assert "\n" not in str(error.value) and f"goes on from {tmp_path / 'run' / 'checkpoints'}" in str(error.value)
    assert numbered(tmp_path / "run") == [24] and same(weights(tmp_path / "run"), before)
    run(toys, tmp_path / "run", warm_start=warm_start)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "healthy"))


class Poisoned:
    """A corridor in which something is not finite from some step on."""

    def __init__(self, env, what, value, step=8):
        self.env, self.what, self.value, self.left = env, what, value, step

    def __getattr__(self, name):
        return getattr(self.env, name)

    def step(self, actions):
        answer, self.left = self.env.step(actions), self.left - 1
        if self.left > 0:
            return answer
        if self.what == "reward":
            return answer._replace(reward=answer.reward * self.value)
        return answer._replace(
            observations={**answer.observations, self.what: answer.observations[self.what] * self.value}
        )


@pytest.mark.parametrize("warm_start", [None, WARM])
@pytest.mark.parametrize(
    ("what", "value"),
    [("reward", float("inf")), ("reward", float("nan")), ("depth", float("nan")), ("depth", float("inf"))],
)
def test_what_the_environment_says_is_named_where_it_is_not_finite(toys, tmp_path, what, value, warm_start):
    with pytest.raises(UserError, match=rf"update 2 .*{what}.* is not finite") as error:
        run(toys, tmp_path, Poisoned(toys.Corridor(), what, value), warm_start=warm_start)
    assert "\n" not in str(error.value) and numbered(tmp_path) == [24]


def test_a_policy_that_is_not_finite_learns_nothing(toys, tmp_path):
    policy = toys.policy()
    with torch.no_grad():
        policy.critic["fc"].weight[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"update 1 \(ppo, at 0 frames\).*the next run begins anew"):
        run(toys, tmp_path, policy=policy)
    assert numbered(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(toys, tmp_path, value):
    policy = toys.policy()
    good = save_checkpoint(tmp_path / "good", policy)
    spoil(good, value)
    with pytest.raises(DamagedCheckpoint, match="is not finite"):
        load_weights(good, policy)
    with pytest.raises(UserError, match="is not finite"):
        load_policy(good)
    with torch.no_grad():
        next(policy.parameters()).view(-1)[0] = value
    with pytest.raises(UserError, match="has values that are not finite"):
        save_checkpoint(tmp_path / "bad", policy)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_run_whose_newest_checkpoints_are_spoilt_is_taken_and_goes_on_from_the_one_before(toys, tmp_path, capsys):
    run(toys, tmp_path / "whole")
    folder = tmp_path / "run"
    run(toys, folder)
    before = weights(folder / "checkpoints" / f"{24:012}")
    for frames in (48, 72):
        spoil(folder / "checkpoints" / f"{frames:012}")
    for path in (folder, folder / "latest", folder / "best"):
        assert find_checkpoint(path).name == f"{24:012}" and same(weights(path), before)
    assert capsys.readouterr().err.count("is of no use") == 2  # each is told once
    run(toys, folder)
    assert same(weights(folder), weights(tmp_path / "whole")) and numbered(folder)[0] == 72


def test_where_all_are_spoilt_it_is_said(toys, tmp_path):
    run(toys, tmp_path, frames=24)
    spoil(tmp_path / "checkpoints" / f"{24:012}")
    for ask in (lambda: find_checkpoint(tmp_path), lambda: run(toys, tmp_path)):
        with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
            ask()
