"""Cuts while PPO trains: the schedule, the optimiser's state, penalties, and runs that are interrupted."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rl.conftest import Corridor
from rl.groups import Lanes, together
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from navprune.commands.train import run_training
from navprune.config import load_config, to_yaml
from navprune.costs.counting import cost
from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import EncoderSpec, Layer, PolicySpec
from navprune.pruning.config import PruningScheduleConfig
from navprune.pruning.gradual import LOOSER, GradualPruning, fade, share_after
from navprune.pruning.groups import units
from navprune.pruning.methods.scores import SCORES
from navprune.pruning.recover import rewound_checkpoint
from navprune.pruning.structure import structure_of
from navprune.rl.checkpoints import load_policy
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import Trainer, TrainerConfig, train
from navprune.tasks import GOAL

SIDE = 32
LAYERS = {"stem": 24, "stage1.block0.conv1": 24, "stage2.block0.conv1": 48, "stage2.trunk": 48}
ENCODER = EncoderSpec(
    "resnet", (1, SIDE, SIDE), ("depth",), "basic", (1, 1), tuple(Layer(n, c, 2) for n, c in LAYERS.items()), output=4
)
SPEC = PolicySpec(ENCODER, visual_features=8, hidden_size=16)
COARSE = replace(SPEC, encoder=replace(ENCODER, layers=tuple(Layer(name, 4, 2) for name in LAYERS)))
"""Two units of each width."""
DENSE = build(SPEC, 0)
PPO = PPOConfig(steps=6, epochs=1, linear_lr=True)
UPDATE = 24  # frames
RUN = TrainerConfig(total_frames=10 * UPDATE, threads=1, checkpoint_seconds=0, window=2)
CUTS = PruningScheduleConfig(budget="macs=0.5", begin=0.2, end=0.8, cuts=3)  # after updates 4, 6 and 8


class Lost(Exception):
    """The power fails."""


def count(spec):
    counted = cost(spec)
    return {"macs": counted.table1_macs, "parameters": counted.table1_parameters}


def pruning(config=CUTS, seed=0, frames=(0, RUN.total_frames), spec=SPEC, **options):
    return GradualPruning(config, build(spec, seed), frames=frames, update=UPDATE, **options)


def run(folder, callback, *, lost=None, run=RUN, others=(), spec=SPEC):
    env = Corridor(size=SIDE)
    if lost:
        env.fail_at = (lost, lose_power)
    return train(spec, env, run, phases_of(PPO, None, (callback, *others)), folder)


def lose_power():
    raise Lost


def spec_after(folder, updates):
    return load_policy(folder / "checkpoints" / f"{updates * UPDATE:012}").policy.spec


def scalars(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step // UPDATE, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


# The schedule ------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.floats(0.01, 1), st.sampled_from(["cubic", "steps"]))
def test_budgets_fall_from_the_whole_to_the_final_share(cuts, final, schedule):
    shares = [share_after(cut, cuts, final, schedule) for cut in range(cuts + 1)]
    assert shares[0] == pytest.approx(1) and shares[-1] == pytest.approx(final)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(shares))


def test_schedules_computed_by_hand():
    assert share_after(1, 2, 0.2, "cubic") == pytest.approx(0.2 + 0.8 / 8)
    assert share_after(1, 2, 0.25, "steps") == pytest.approx(0.5)


@given(st.integers(1, 9), st.floats(0, 0.9), st.floats(0.05, 1), st.integers(0, 500))
def test_the_last_cut_is_due_at_the_end_and_none_before_the_first(cuts, begin, length, first):
    config = replace(CUTS, cuts=cuts, begin=begin, end=min(begin + length, 1.0))
    schedule = GradualPruning(config, DENSE, frames=(first, first + 10_000), update=1)
    due = [schedule.due(frames) for frames in range(first, first + 10_001, 10)]
    assert due[0] == 0 and due[-1] == cuts and due == sorted(due)
    assert schedule.due(math.ceil(schedule.end)) == cuts
    assert schedule.due(math.floor(schedule.begin + schedule.interval) - 1) == 0


# Runs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, with every checkpoint kept."""
    folder, callback = tmp_path_factory.mktemp("gradual"), pruning()
    run(folder, callback, run=replace(RUN, keep_checkpoints=99))
    return folder, callback


def test_the_network_shrinks_on_schedule_to_its_budget(whole):
    folder, callback = whole
    shares = [count(spec_after(folder, n).encoder)["macs"] / count(SPEC.encoder)["macs"] for n in range(1, 11)]
    for update, cut in ((4, 1), (6, 2), (8, 3)):
        budget = share_after(cut, 3, 0.5, "cubic")
        assert 0.9 * budget <= shares[update - 1] <= budget < shares[update - 2]
    assert shares[:3] == [1, 1, 1] and shares[3] == shares[4] and shares[7] == shares[9] > 0.48
    assert [cut["frames"] // UPDATE for cut in callback.history] == [4, 6, 8]


@pytest.mark.parametrize(("budget", "missed"), [("macs=0.9,parameters=0.2", "macs"), ("macs=0.7", None)])
def test_a_final_budget_that_does_not_bind_is_told_once(tmp_path, capsys, budget, missed):
    config = replace(CUTS, budget=budget, cuts=2, end=0.4, method="l1")
    callback = pruning(config)
    run(tmp_path, callback, run=replace(RUN, total_frames=5 * UPDATE))
    said = [line for line in capsys.readouterr().err.splitlines() if "below its budget" in line]
    short = [name for name, share in callback.budget.items() if callback.history[-1][name] < 0.99 * share]
    assert len(said) == bool(short)
    assert missed is None or f"{missed} ended at" in said[0]


@pytest.mark.parametrize(
    ("budget", "loosened"), [("macs=0.5", 0), ("macs=0.9", 1), ("parameters=0.7", 2), ("macs=0.7", 3)]
)
def test_each_loosening_of_a_cuts_tolerance_is_told_and_written(tmp_path, capsys, budget, loosened):
    config = replace(CUTS, budget=budget, cuts=1, end=0.4, method="uniform")
    callback = pruning(config, spec=COARSE)
    run(tmp_path, callback, run=replace(RUN, total_frames=5 * UPDATE), spec=COARSE)
    said = [line for line in capsys.readouterr().err.splitlines() if " may miss by " in line]
    assert [cut["tolerance"] for cut in callback.to_json()["cuts"]] == [(CUTS.tolerance, *LOOSER)[loosened]]
    assert len(said) == loosened
    assert all(
        re.match(rf"cut 1 of 1 may miss by \d+%: budget {budget} cannot be met .* nearest found is ", line)
        for line in said
    )


@pytest.mark.parametrize("penalty", [None, "growing"])
def test_a_mistake_that_no_tolerance_mends_is_not_swallowed(tmp_path, monkeypatch, capsys, penalty):
    monkeypatch.setitem(
        SCORES, "l1", lambda structure, _: {g.name: torch.full((units(g),), math.nan) for g in structure.groups}
    )
    with pytest.raises(UserError, match="finite numbers"):
        run(tmp_path, pruning(replace(CUTS, method="l1", penalty=penalty)))
    assert "may miss" not in capsys.readouterr().err


def test_tensorboard_shows_what_is_left(whole):
    folder, callback = whole
    shown = scalars(folder)
    for measure in ("macs", "parameters"):
        stairs = dict(shown[f"pruning/{measure}"])
        assert stairs[3] == 1
        for cut in callback.history:
            assert stairs[cut["frames"] // UPDATE] == pytest.approx(cut[measure])


def test_what_is_written_describes_the_network(whole):
    folder, callback = whole
    written = json.loads(json.dumps(callback.to_json()))
    final = spec_after(folder, 10)
    assert written["reached"] == pytest.approx({k: v / count(SPEC.encoder)[k] for k, v in count(final.encoder).items()})
    keep = {name: torch.tensor(flags, dtype=torch.bool) for name, flags in written["keep"].items()}
    assert structure_of(build(SPEC, 0)).slim(keep).spec == final
    channels = {layer.name: layer.channels for layer in final.encoder.layers}
    assert {name: after for name, (_, after) in written["widths"].items()} == channels


# Before the first cut, between two, at the update that makes one, and after the last.
@pytest.mark.parametrize("lost", [[15], [29], [36, 10], [57]])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(whole, tmp_path, lost):
    for step in lost:
        with pytest.raises(Lost):
            run(tmp_path, pruning(), lost=step)
    callback = pruning()
    run(tmp_path, callback)
    ours, theirs = (load_policy(f / "latest").policy for f in (tmp_path, whole[0]))
    assert ours.spec == theirs.spec and all(v.equal(theirs.state_dict()[n]) for n, v in ours.state_dict().items())
    assert callback.to_json() == whole[1].to_json()


def test_a_growing_penalty_goes_on_where_it_stopped(tmp_path):
    config = replace(CUTS, penalty="growing", cuts=1, method="l2")
    run(tmp_path / "a", pruning(config))
    with pytest.raises(Lost):
        run(tmp_path / "b", pruning(config), lost=33)
    run(tmp_path / "b", pruning(config))
    ours, theirs = (load_policy(tmp_path / name).policy.state_dict() for name in "ab")
    assert all(value.equal(theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("method", sorted({*SCORES} - {"magnitude", "taylor"}))
def test_any_score_serves(tmp_path, method):
    callback = pruning(replace(CUTS, method=method, cuts=1, end=0.4))
    run(tmp_path, callback, run=replace(RUN, total_frames=4 * UPDATE))
    assert callback.history[-1]["macs"] <= 0.5


def test_the_learning_rate_begins_anew_where_asked_for(tmp_path):
    run(tmp_path, pruning(replace(CUTS, cuts=1, end=0.5, rewind_lr=True)))
    rates = [value / PPO.lr for _, value in scalars(tmp_path)["learning_rate"]]
    expected = [1 - n / 10 for n in range(5)] + [1 - n / 5 for n in range(5)]
    assert rates == pytest.approx(expected, abs=1e-6)


def test_kept_weights_go_back_to_the_early_checkpoint(tmp_path):
    early = build(SPEC, 7)
    callback = pruning(replace(CUTS, cuts=2, end=0.8), early=early)
    trainer = Trainer(SPEC, Corridor(size=SIDE), RUN, phases_of(PPO, None, [callback]), tmp_path)
    for _ in range(8):
        trainer._update()
    expected = structure_of(early).slim(callback.kept)
    assert trainer.network.spec == expected.spec != SPEC and not trainer.learner.state_dict()["optimiser"]["state"]
    assert all(value.equal(trainer.network.state_dict()[name]) for name, value in expected.state_dict().items())


def test_a_run_that_began_with_another_network_is_refused(whole):
    other = replace(SPEC, hidden_size=24)
    with pytest.raises(UserError, match="began with another spec"):
        train(other, Corridor(size=SIDE), RUN, phases_of(PPO), whole[0])


# Workers -----------------------------------------------------------------------------------------


def cut_by(size, folder, config, run=RUN, spec=SPEC):
    callbacks, policies = [pruning(config, spec=spec) for _ in range(size)], [build(spec, 0) for _ in range(size)]

    def act(group):
        env = Lanes(4 // size, group.rank * 4 // size, torch.float32, size=SIDE)
        phases = phases_of(PPO, None, [callbacks[group.rank]])
        trainer = Trainer(policies[group.rank], env, run, phases, folder, group=group)
        trainer.run()
        return trainer, callbacks[group.rank]

    return together(size, act)


@pytest.mark.parametrize("method", ["taylor", "uniform"])
def test_workers_cut_the_same_units(tmp_path, method):
    """Of scores that differ between them; those of weights alone are those of one process."""
    config = replace(CUTS, method=method)
    (first, cuts), (second, others) = cut_by(2, tmp_path / "two", config)
    assert cuts.history == others.history and len(cuts.history) == 3
    assert first.network.spec == second.network.spec != SPEC
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    assert all(value.equal(theirs[name]) for name, value in ours.items())
    if method == "uniform":
        ((alone, _),) = cut_by(1, tmp_path / "one", config)
        assert alone.network.spec == first.network.spec
        for name, value in alone.network.state_dict().items():
            torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)


def test_of_several_workers_the_first_speaks(tmp_path, capsys):
    config = replace(CUTS, budget="macs=0.7", cuts=1, end=0.4, method="uniform")
    cut_by(2, tmp_path, config, replace(RUN, total_frames=5 * UPDATE), COARSE)
    said = capsys.readouterr().err
    assert said.count(" may miss by ") == 3 and said.count("below its budget") == 1


# Penalties ---------------------------------------------------------------------------------------


def test_units_of_a_module_of_ones_own_fade():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    fade(structure_of(model, torch.rand(2, 3, 4, 4)), {"0": torch.tensor([False, True, False, False])}, 0.0)
    assert not model[1].weight[1].any() and model[1].weight[0].any()


def test_a_faded_unit_is_a_masked_one():
    policy = build(SPEC, 0).double()
    generator = torch.Generator().manual_seed(0)
    doomed = {group.name: torch.rand(units(group), generator=generator) > 0.5 for group in structure_of(policy).groups}
    for goes in doomed.values():
        goes[0] = False
    images = torch.rand(3, 2, SIDE, SIDE, 1, generator=generator, dtype=torch.float64)
    goals = torch.rand(3, 2, 2, generator=generator, dtype=torch.float64)
    masks = torch.rand(3, 2, generator=generator) > 0.3
    arguments = {"depth": images, GOAL: goals}, policy.initial_state(2), torch.zeros(3, 2, dtype=torch.int64), masks
    with torch.no_grad():
        with structure_of(policy).mask({name: ~goes for name, goes in doomed.items()}):
            expected = policy.sequence(*arguments).logits
        fade(structure_of(policy), doomed, 0.0)
        torch.testing.assert_close(policy.sequence(*arguments).logits, expected, rtol=0, atol=1e-12)


def test_doomed_units_fade_to_what_the_strength_says_and_are_those_that_go(tmp_path, monkeypatch):
    factors = []
    monkeypatch.setattr("navprune.pruning.gradual.fade", lambda model, doomed, factor: factors.append(factor))
    callback = pruning(replace(CUTS, cuts=1, end=0.8, penalty="growing", strength=3.0))
    trainer = Trainer(SPEC, Corridor(size=SIDE), RUN, phases_of(PPO, None, [callback]), tmp_path)
    for _ in range(2):
        trainer._update()
    assert callback.doomed and not factors
    doomed = callback.doomed
    for _ in range(6):
        trainer._update()
    assert math.prod(factors) == pytest.approx(math.exp(-3)) and factors == sorted(factors, reverse=True)
    assert callback.kept.keys() == doomed.keys()
    assert all(kept.equal(~doomed[name]) for name, kept in callback.kept.items())
    trainer._update()
    assert len(factors) == 6 * PPO.epochs * PPO.minibatches


# Mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": "macs=1.5"}, "macs=1.5 is not a share"),
        ({"budget": "latency=0.5"}, "latency"),
        ({"budget": "macs=0.001"}, "nearest found is"),
        ({"budget": None, "rewind_lr": True}, "rewind_lr goes with cuts"),
        ({"budget": None, "penalty": "growing"}, "penalty=growing goes with cuts"),
        ({"budget": None}, "nothing says how much"),
        ({"method": "gates"}, r"pruning\.method is gates; known are l1"),
        ({"schedule": "linear"}, "known are cubic, steps"),
        ({"penalty": "l1"}, "known are null, group-lasso, .*, growing"),
        ({"begin": 0.9}, "must lie before end"),
        ({"end": 1.5}, r"pruning\.end is 1\.5"),
        ({"strength": 0.0}, r"pruning\.strength"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(settings, message):
    with pytest.raises(UserError, match=message) as error:
        pruning(replace(CUTS, **settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cuts": 7}, "training makes 6 updates between .* ask for fewer cuts"),
        ({"end": 0.25}, "0 updates .* more frames"),
    ],
)
def test_more_cuts_than_updates_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        pruning(replace(CUTS, **settings))


def test_an_early_checkpoint_of_another_network_is_refused():
    with pytest.raises(UserError, match="of another network"):
        pruning(early=build(replace(SPEC, hidden_size=24), 0))


# As configured -----------------------------------------------------------------------------------

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
TINY = [
    "task.width=32",
    "task.height=32",
    "task.max_steps=30",
    "agent.encoder=resnet18",
    "agent.base_planes=8",
    "agent.visual_features=16",
    "agent.hidden_size=16",
    "environments=2",
    "ppo.steps=8",
    "warm_start=null",
    f"data.folder={REFERENCE}",
    "data.name=reference",
    "data.train=val",
    "trainer.total_frames=96",
]


def test_a_schedule_is_configured_and_survives_a_round_trip(tmp_path):
    settings = ["pruning=gradual", "pruning.budget=macs=0.6,parameters=0.7", "pruning.cuts=3"]
    config = load_config("pointnav", settings)
    assert (config.pruning.method, config.pruning.budget) == ("taylor", "macs=0.6,parameters=0.7")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_config(str(tmp_path / "config.yaml")) == config
    assert load_config("pointnav", ["pruning.budget=macs=0.5"]).pruning == PruningScheduleConfig(budget="macs=0.5")
    assert load_config("pointnav", ["pruning=distil"]).pruning == PruningScheduleConfig()
    with pytest.raises(UserError, match=r"did you mean pruning\.cuts\?"):
        load_config("pointnav", ["pruning.cut=3"])


def test_from_a_dense_agent_to_a_slim_one_and_on(tmp_path):
    """Dense; cut in steps with the dense agent for a teacher; fine-tuned; and from the dense agent's early weights."""

    def trained(name, *settings):
        return run_training(load_config("pointnav", [*TINY, f"run={tmp_path / name}", *settings]))

    dense = trained("dense", "trainer.keep_checkpoints=9", "trainer.checkpoint_seconds=0")
    early = dense.latest.parent / "000000000016"
    steps = ["pruning=steps", f"init={dense.latest}", f"pruning.teacher={dense.latest}", "pruning.cuts=2"]
    slim_one = trained("steps", *steps)
    spec = load_policy(slim_one.latest).policy.spec
    written = json.loads((slim_one.latest / "pruning.json").read_text())
    assert written["after"]["deployed"]["macs"] == cost(spec.encoder).macs < written["before"]["deployed"]["macs"]
    assert written["reached"]["macs"] <= 0.5 and len(written["cuts"]) == 2
    assert {"distillation/policy", "pruning/macs"} <= set(scalars(tmp_path / "steps"))
    tuned = trained("tuned", "pruning=distil", f"init={slim_one.latest}", f"pruning.teacher={dense.latest}")
    assert load_policy(tuned.latest).policy.spec == spec
    assert load_config(str(tuned.latest / "config.yaml")).pruning.method == "taylor"
    rewind = [f"init={slim_one.latest}", f"pruning.rewind={early}", "ppo.lr=1e-12"]
    back = load_policy(trained("rewound", *rewind).latest).policy
    assert back.spec == spec
    for name, value in rewound_checkpoint(slim_one.latest, early).state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], value)


def test_a_rewind_of_nothing_that_was_pruned_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"pruning\.rewind goes with cuts or a pruned init"):
        run_training(load_config("pointnav", [*TINY, f"run={tmp_path}", "pruning.rewind=nowhere"]))
