"""Masks while a network trains: they hold behind each step, in every checkpoint, and after an interruption."""

from dataclasses import replace

import pytest
import torch
from rl.conftest import Corridor, tiny_policy
from rl.patterns import CLASSES, SHAPE, Patterns
from rl.run_folders import PPO, RUN, same

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.classifiers import classifier_spec
from navprune.pruning.losses import Evidence
from navprune.pruning.masked import Masking
from navprune.pruning.masks import STRATEGIES
from navprune.rl.callbacks import Callback
from navprune.rl.checkpoints import checkpoint_folder, load_network, numbered, read_masks, read_trainer
from navprune.rl.phases import phases_of, supervised_phase
from navprune.rl.supervised import Reader, SupervisedConfig
from navprune.rl.trainer import train

SPEC = classifier_spec("cifar_resnet20", CLASSES, SHAPE, width=0.25)
SGD = SupervisedConfig(epochs=2, batch=12, steps=2, momentum=0.9, weight_decay=0.1, max_grad_norm=1.0)
ADAM = replace(SGD, optimiser="adam", lr=1e-2)


def chosen(network, name="global-random", ratio=2.0, seed=0):
    return STRATEGIES[name](network, Evidence(torch.Generator().manual_seed(seed)), ratio)


def held(network, masks):
    """Whether all masked weights are zero and some of the others are not."""
    parameters = dict(network.named_parameters())
    zero = not any(parameters[name][~mask].any() for name, mask in masks.items())
    return zero and any(parameters[name][mask].any() for name, mask in masks.items())


class Spy(Callback):
    """Notes behind each step whether masks hold; given a generator, it first disturbs all weights."""

    name = "spy"

    def __init__(self, masks, disturb=False):
        self.masks, self.disturb, self.steps = masks, disturb, []

    def attach(self, learner):
        def step(*_):
            if self.disturb:
                with torch.no_grad():
                    for parameter in learner.network.parameters():
                        parameter.add_(1e-3)
            else:
                self.steps.append(held(learner.network, self.masks))

        learner.optimiser.register_step_post_hook(step)


def classify(folder, network, callbacks, config):
    trainer = replace(RUN, total_frames=config.frames(24), window=1)
    data = Patterns(24), None
    return train(network, data, trainer, supervised_phase(config, callbacks), folder, trainee=Reader)


@pytest.mark.parametrize("config", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", ["global-magnitude", "layer-random", "structured-l1"])
def test_masks_hold_behind_every_step_and_the_optimiser_knows_nothing_of_masked_weights(tmp_path, config, name):
    network = build(SPEC, 0)
    masks = chosen(network, name)
    spy, before = Spy(masks), {key: value.clone() for key, value in network.state_dict().items()}
    result = classify(tmp_path, network, [Masking(masks), spy], config)
    assert spy.steps == [True] * 4
    assert any(not weight.equal(before[key]) for key, weight in network.named_parameters())
    state = read_trainer(result.latest)["learner"]["optimiser"]["state"]
    for place, (key, _) in enumerate(network.named_parameters()):
        moments = [value for value in state[place].values() if value.dim()]
        assert moments and not any(moment[~masks[key]].any() for moment in moments if key in masks)


def test_masks_hold_whatever_moves_the_weights(tmp_path):
    network = build(SPEC, 0)
    spy = Spy(masks := chosen(network))
    classify(tmp_path, network, [Spy(masks, disturb=True), Masking(masks), spy], SGD)
    assert spy.steps == [True] * 4


def navigate(folder, masks, frames, callbacks=()):
    trainer = replace(RUN, total_frames=frames, keep_checkpoints=9)
    return train(tiny_policy(), Corridor(), trainer, phases_of(PPO, None, [*masks, *callbacks]), folder)


def test_an_agent_goes_on_under_masks_as_if_nothing_had_happened(tmp_path):
    masks = chosen(tiny_policy(), ratio=1.1)
    spy = Spy(masks)
    whole = navigate(tmp_path / "whole", [Masking(masks)], 96, [spy])
    assert len(spy.steps) == 8 and all(spy.steps)
    for frames in (48, 96):
        parts = navigate(tmp_path / "parts", [Masking(masks)], frames)
    assert len(numbered(tmp_path / "parts")) == 4
    for frames in numbered(tmp_path / "parts"):
        folder = checkpoint_folder(tmp_path / "parts", frames)
        assert same(read_masks(folder), masks) and held(load_network(folder), masks)
    assert same(load_network(parts.latest).state_dict(), load_network(whole.latest).state_dict())
    states = (read_trainer(result.latest)["learner"]["optimiser"]["state"] for result in (whole, parts))
    for one, other in zip(*(state.values() for state in states)):
        assert same(one, other)


@pytest.mark.parametrize("others", ["none", "other"])
def test_a_run_goes_on_under_its_own_masks_alone(tmp_path, others):
    navigate(tmp_path, [Masking(chosen(tiny_policy(), ratio=1.1))], 24)
    masks = [] if others == "none" else [Masking(chosen(tiny_policy(), ratio=1.1, seed=1))]
    with pytest.raises(UserError, match="a run under other masks than those of init; use another run folder"):
        navigate(tmp_path, masks, 48)


def test_masks_of_another_network_are_refused(tmp_path):
    with pytest.raises(UserError, match="masks of another model"):
        navigate(tmp_path, [Masking(chosen(build(SPEC, 0)))], 24)
