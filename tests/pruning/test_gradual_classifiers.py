"""Cuts while a classifier trains: as while an agent does, by the same callback."""

import copy
import math
from dataclasses import replace

import pytest
from rl.groups import together
from rl.patterns import CONFIG, RUN, SPEC, Lost, begin, run, splits, total

from navprune.models.build import build
from navprune.pruning.config import PruningScheduleConfig
from navprune.pruning.gradual import GradualPruning, share_after
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.structure import structure_of
from navprune.rl.checkpoints import load_network, numbered, read_any_spec, read_metrics

LEARNING = replace(CONFIG, epochs=4.5, lr=0.02, steps=1)  # 16 updates
FRAMES = total(LEARNING)
CUTS = PruningScheduleConfig(budget="macs=0.5", begin=0.25, end=0.75, cuts=2)  # behind updates 8 and 12
ALL = replace(RUN, keep_checkpoints=99)


def pruning(config=CUTS, **options):
    options = {"frames": (0, FRAMES), "update": LEARNING.batch * LEARNING.steps, **options}
    return GradualPruning(config, build(SPEC, 0), **options)


def spec_at(folder, frames):
    return read_any_spec(folder / "checkpoints" / f"{frames:012}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, with every checkpoint kept."""
    folder, callback = tmp_path_factory.mktemp("cut"), pruning()
    run(folder, config=LEARNING, callbacks=[callback], run=ALL)
    return folder, callback


def test_the_network_shrinks_on_schedule_to_its_budget(whole):
    folder, callback = whole
    assert [cut["frames"] for cut in callback.history] == [80, 120]
    for number, cut in enumerate(callback.history, 1):
        budget = share_after(number, 2, 0.5, "cubic")
        assert (1 - cut["tolerance"]) * budget - 1e-9 <= cut["macs"] <= budget
    widths = [dict(spec_at(folder, frames).widths) for frames in sorted(numbered(folder))]
    assert widths[6] == dict(SPEC.widths) != widths[7] == widths[10] != widths[11] == widths[-1]
    assert callback.structure.shares(widths[-1]) == callback.to_json()["reached"]


def test_what_stays_is_measured_behind_the_cut_and_the_best_is_of_the_final_size(whole):
    folder, _ = whole
    final = spec_at(folder, FRAMES)
    assert read_any_spec(folder / "best") == final
    assert {"top1", "top5", "loss"} <= read_metrics(folder / "latest").keys()


@pytest.mark.parametrize("lost", [[3], [8], [9], [12, 2]], ids=str)
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(whole, tmp_path, lost):
    for batch in lost:
        with pytest.raises(Lost):
            run(tmp_path, splits(lose_at=batch), LEARNING, [pruning()])
    callback = pruning()
    run(tmp_path, None, LEARNING, [callback])
    ours, theirs = (load_network(folder / "latest") for folder in (tmp_path, whole[0]))
    assert ours.spec == theirs.spec
    assert all(value.equal(theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    assert callback.to_json() == whole[1].to_json()


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_what_the_optimiser_remembers_is_cut_along(tmp_path, optimiser):
    """It is what it remembered of the weights that stay, number by number."""
    callback = pruning(replace(CUTS, cuts=1))
    trainer = begin(tmp_path, config=replace(LEARNING, optimiser=optimiser), callbacks=[callback])
    names, choose = ("momentum_buffer", "exp_avg", "exp_avg_sq"), callback._cut

    def remembered(learner):
        kept = {name: learner.optimiser.state[weight] for name, weight in learner.network.named_parameters()}
        return {(name, key): value for name, own in kept.items() for key, value in own.items() if key in names}

    expected = {}

    def noting(learner, structure, keep):
        known = remembered(learner)
        for key in {key for _, key in known}:
            like = copy.deepcopy(learner.network)
            for name, weight in like.named_parameters():
                weight.data.copy_(known[name, key])
            small = structure_of(like).slim(keep)
            expected.update({(name, key): weight.detach() for name, weight in small.named_parameters()})
        return choose(learner, structure, keep)

    callback._cut = noting
    while not callback.made:
        trainer._update()
    found = remembered(trainer.learner)
    assert trainer.network.spec != SPEC and found.keys() == expected.keys()
    assert all(value.equal(expected[name]) for name, value in found.items())


@pytest.mark.parametrize("method", sorted({*SCORES} - {"magnitude", "taylor"}))
def test_any_score_serves(tmp_path, method):
    config = replace(LEARNING, epochs=1, batch=12)
    callback = pruning(replace(CUTS, method=method, cuts=1, end=0.7), frames=(0, 36), update=12)
    run(tmp_path, None, config, [callback])
    assert callback.history[-1]["macs"] <= 0.5


def test_scores_follow_the_batches_and_the_loss_of_the_latest_update(tmp_path, monkeypatch):
    seen = []

    def noting(structure, evidence):
        batches = list(evidence.drawn("taylor"))
        seen.append(
            [(len(labels), evidence.loss(structure.model, (images, labels)).item()) for images, labels in batches]
        )
        return SCORES["l1"](structure, evidence)

    monkeypatch.setitem(SCORES, "taylor", noting)
    data = splits()
    run(tmp_path, data, replace(LEARNING, steps=3), [pruning(replace(CUTS, cuts=1), update=30)])
    (batches,) = seen
    assert [size for size, _ in batches] == [10, 10, 10] and all(math.isfinite(loss) for _, loss in batches)


def test_doomed_units_fade_to_what_the_strength_says_and_are_those_that_go(tmp_path, monkeypatch):
    factors = []
    monkeypatch.setattr("navprune.pruning.gradual.fade", lambda model, doomed, factor: factors.append(factor))
    config = replace(LEARNING, steps=2)
    callback = pruning(replace(CUTS, cuts=1, penalty="growing", strength=3.0), update=20)
    trainer = begin(tmp_path, config=config, callbacks=[callback])
    while not callback.doomed:
        trainer._update()
    doomed = callback.doomed
    while not callback.made:
        trainer._update()
    assert trainer.frames == 120 and math.prod(factors) == pytest.approx(math.exp(-3))
    assert all(kept.equal(~doomed[name]) for name, kept in callback.kept.items())


def test_the_learning_rate_begins_anew_where_asked_for(tmp_path):
    config = replace(LEARNING, schedule="cosine")
    trainer = begin(tmp_path, config=config, callbacks=[pruning(replace(CUTS, cuts=1, rewind_lr=True))])
    rates = [trainer._update().losses["learning_rate"] for _ in range(16)]
    expected = [config.rate(n / 16) for n in range(12)] + [config.rate(n / 4) for n in range(4)]
    assert rates == pytest.approx(expected)


def test_kept_weights_go_back_to_the_early_checkpoint(tmp_path):
    early = build(SPEC, 7)
    callback = pruning(replace(CUTS, cuts=1), early=early)
    trainer = begin(tmp_path, config=LEARNING, callbacks=[callback])
    while not callback.made:
        trainer._update()
    expected = structure_of(early).slim(callback.kept)
    assert trainer.network.spec == expected.spec != SPEC and not trainer.learner.state_dict()["optimiser"]["state"]
    assert all(value.equal(trainer.network.state_dict()[name]) for name, value in expected.state_dict().items())


def test_workers_cut_the_same_units(tmp_path):
    config = replace(LEARNING, batch=12)
    callbacks, networks = [pruning(update=12) for _ in range(2)], [build(SPEC, 0) for _ in range(2)]

    def act(group):
        trainer = begin(tmp_path, None, config, [callbacks[group.rank]], networks[group.rank], group)
        trainer.run()
        return trainer.network

    first, second = together(2, act)
    assert callbacks[0].history == callbacks[1].history and len(callbacks[0].history) == 2
    assert first.spec == second.spec != SPEC
    assert all(value.equal(second.state_dict()[name]) for name, value in first.state_dict().items())
