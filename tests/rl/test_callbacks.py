"""What goes along with PPO: when it is called, what it may add and replace, and what of it is kept."""

from dataclasses import replace

import pytest
import torch
from rl.run_folders import write_as_format_1

from navprune.errors import UserError
from navprune.models.build import build
from navprune.rl.callbacks import Callback, Replacement
from navprune.rl.checkpoints import load_policy
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import Trainer, TrainerConfig, train
from navprune.rl.warm_start import WarmStartConfig

PPO = PPOConfig(steps=6, epochs=1, linear_lr=True)
RUN = TrainerConfig(total_frames=5 * 24, threads=1, checkpoint_seconds=0, window=1)
WARM = WarmStartConfig(frames=48, steps=12, sequence=6, batch=3, capacity=150)


class Lost(Exception):
    """The power fails."""


def lose_power():
    raise Lost


class Diary(Callback):
    """Writes down when it is called; a network of other widths takes over at `frames`."""

    name = "diary"

    def __init__(self, successor=None, frames=72, restart=False):
        self.calls, self.successor, self.frames, self.restart = [], successor, frames, restart

    def attach(self, ppo):
        self.calls.append("attach")

    def on_rollout(self, ppo):
        self.calls.append("rollout")

    def loss(self, rows, output):
        self.calls.append(f"loss {len(rows)}")
        return 0.0 * output.values.sum()

    def on_update(self, ppo, frames):
        self.calls.append(f"update {frames}")
        if self.successor and frames == self.frames:
            return Replacement(build(self.successor, 1).to(ppo.trainee.device), None, self.restart)
        return None

    def scalars(self):
        return {"diary/calls": float(len(self.calls))}

    def state_dict(self):
        return {"calls": self.calls}

    def load_state_dict(self, state):
        self.calls = state["calls"]


class Pull(Callback):
    """Pulls the first action's probability up."""

    name = "pull"

    def loss(self, rows, output):
        return -100 * output.logits[..., 0].mean()


def wider(spec):
    layers = tuple(replace(layer, channels=layer.channels + 2) for layer in spec.encoder.layers)
    return replace(spec, encoder=replace(spec.encoder, layers=layers))


def run(toys, folder, callback, env=None, **options):
    return train(
        toys.spec(),
        env or toys.Corridor(),
        RUN,
        phases_of(PPO, options.pop("warm_start", None), [callback]),
        folder,
        **options,
    )


def test_hooks_are_called_in_their_order(toys, tmp_path):
    diary = Diary()
    trainer = Trainer(toys.spec(), toys.Corridor(), RUN, phases_of(PPO, None, [diary]), tmp_path)
    trainer._update()
    assert diary.calls == ["attach", "rollout", "loss 2", "loss 2", "update 24"]


def test_the_warm_start_goes_without_them(toys, tmp_path):
    diary = Diary()
    trainer = Trainer(toys.spec(), toys.Corridor(), RUN, phases_of(PPO, WARM, [diary]), tmp_path)
    trainer._update()
    assert diary.calls == []
    trainer._update()
    assert diary.calls[0] == "attach" and diary.calls[-1] == "update 72"


def test_only_the_critic_learns_nothing_from_them(toys, tmp_path):
    diary, ppo = Diary(), replace(PPO, critic_updates=1)
    trainer = Trainer(toys.spec(), toys.Corridor(), RUN, phases_of(ppo, None, [diary]), tmp_path)
    trainer._update()
    assert diary.calls == ["attach", "rollout", "update 24"]


def test_one_that_does_nothing_changes_nothing(toys, tmp_path):
    run(toys, tmp_path / "with", Diary())
    train(toys.spec(), toys.Corridor(), RUN, phases_of(PPO), tmp_path / "without")
    ours, theirs = (load_policy(tmp_path / name).policy.state_dict() for name in ("with", "without"))
    assert all(value.equal(theirs[name]) for name, value in ours.items())


def test_what_they_add_to_the_loss_is_learnt(toys, tmp_path):
    trainer = Trainer(toys.spec(), toys.Corridor(), RUN, phases_of(replace(PPO, lr=0.1), None, [Pull()]), tmp_path)
    before = trainer.network.action_distribution["linear"].bias.detach().clone()
    trainer._update()
    moved = trainer.network.action_distribution["linear"].bias.detach() - before
    assert moved.argmax() == 0 and moved[0] > 0.1


@pytest.mark.parametrize("warm_start", [None, WARM])
@pytest.mark.parametrize("lost", [15, 21, 28])
def test_a_run_goes_on_with_the_network_that_took_over(toys, tmp_path, warm_start, lost):
    spec = wider(toys.spec())
    run(toys, tmp_path / "whole", Diary(spec), warm_start=warm_start)
    env = toys.Corridor()
    env.fail_at = (lost, lose_power)
    with pytest.raises(Lost):
        run(toys, tmp_path / "lost", Diary(spec), env, warm_start=warm_start)
    diary = Diary(spec)
    run(toys, tmp_path / "lost", diary, toys.Corridor(seed=9), warm_start=warm_start)
    ours, theirs = (load_policy(tmp_path / name).policy for name in ("lost", "whole"))
    assert ours.spec == theirs.spec == spec
    assert all(value.equal(theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert diary.calls.count("update 120") == 1 and diary.calls.count("update 72") == 1


def test_the_best_checkpoint_is_of_the_network_that_took_over(toys, tmp_path):
    env = toys.Corridor(limit=2)
    step = env.step

    def praise(actions):
        answer = step(actions)
        for finished in answer.finished:
            finished.measures["spl"] = 1.0 if env.steps_taken <= 18 else 0.1
        return answer

    env.step = praise
    result = run(toys, tmp_path, Diary(wider(toys.spec())), env)
    assert load_policy(result.best).policy.spec == wider(toys.spec())


@pytest.mark.parametrize("restart", [True, False])
def test_schedules_begin_anew_where_asked_for(toys, tmp_path, restart):
    diary = Diary(wider(toys.spec()), restart=restart)
    trainer = Trainer(toys.spec(), toys.Corridor(), RUN, phases_of(PPO, None, [diary]), tmp_path)
    progress = []
    for _ in range(5):
        progress.append(trainer.progress)
        trainer._update()
    assert progress == pytest.approx([0, 0.2, 0.4, 0, 0.5] if restart else [0, 0.2, 0.4, 0.6, 0.8])


def test_a_run_that_began_otherwise_is_refused(toys, tmp_path):
    run(toys, tmp_path, Diary(wider(toys.spec())))
    with pytest.raises(UserError, match="began with another spec"):
        train(wider(toys.spec()), toys.Corridor(), RUN, phases_of(PPO), tmp_path)


def test_a_checkpoint_from_before_there_were_callbacks_is_resumed(toys, tmp_path):
    run(toys, tmp_path, Diary(), env=None)
    file = tmp_path / "latest" / "trainer.pt"
    state = write_as_format_1(file)
    for name in ("initial", "schedule_start", "callbacks"):
        del state[name]
    torch.save(state, file)
    longer = replace(RUN, total_frames=144)
    train(toys.spec(), toys.Corridor(), longer, phases_of(PPO, None, [diary := Diary()]), tmp_path)
    assert diary.calls[-1] == "update 144"
