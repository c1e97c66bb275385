"""Small runs in the corridor, and copies of them: what the tests of run folders share."""

from dataclasses import replace

import torch

from navprune.config import Config, to_yaml
from navprune.rl.checkpoints import find_checkpoint, load_policy
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import TrainerConfig, train

PPO = PPOConfig(steps=6, epochs=1)
RUN = TrainerConfig(total_frames=48, threads=1, checkpoint_seconds=0, window=2)
CONFIG = Config(ppo=PPO, trainer=RUN)


def run(toys, folder, config=CONFIG, *, frames=None, start="resume", env=None):
    trainer = replace(config.trainer, total_frames=frames or config.trainer.total_frames, start=start)
    config = replace(config, trainer=trainer, run=str(folder))
    return train(
        toys.spec(), env or toys.Corridor(), trainer, phases_of(config.ppo, config.warm_start), folder, to_yaml(config)
    )


def write_as_format_1(file):
    """Rewrite a trainer.pt of PPO as versions before there were workers did; a key that is no format is theirs too."""
    state = torch.load(file, weights_only=True)
    assert state.pop("format") == 2
    starts = state.pop("starts")
    state |= {"phase": "ppo", "phase_start": starts["ppo"], "actor": state["actor"]["environments"]}
    state["callbacks"] = state["learner"].pop("callbacks")
    torch.save(state, file)
    return state


def best(folder):
    return int(find_checkpoint(folder / "best").name)


def weights(path):
    return load_policy(path).policy.state_dict()


def same(a, b):
    return all(value.equal(b[name]) for name, value in a.items())
