"""What helps a pruned agent to recover: a teacher beside PPO, and weights that go back."""

import itertools
import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl import patterns
from rl.conftest import Corridor, blind_spec, tiny_spec
from rl.groups import Lanes, together
from torch.distributions import Categorical, kl_divergence

from navprune.errors import UserError
from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.pruning.groups import units
from navprune.pruning.recover import Distillation, LogitDistillation, policy_divergence, rewound, rewound_checkpoint
from navprune.pruning.structure import structure_of
from navprune.rl.checkpoints import load_policy, save_checkpoint
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPOConfig
from navprune.rl.trainer import Trainer, TrainerConfig, train
from navprune.rl.warm_start import WarmStartConfig
from navprune.tasks import GOAL

SPEC = tiny_spec()
LSTM = tiny_spec(rnn="lstm", rnn_layers=2, hidden_size=24)  # a teacher may remember otherwise than its student
PPO = PPOConfig(steps=7, epochs=2)
RUN = TrainerConfig(total_frames=4 * 28, threads=1, checkpoint_seconds=0)


class Lost(Exception):
    """The power fails."""


def lose_power():
    raise Lost


def lessons(spec=LSTM, seed=3, policy=1.0, features=1.0):
    return Distillation(build(spec, seed), SPEC, policy=policy, features=features)


def trainer(folder, callback, warm_start=None, spec=SPEC):
    return Trainer(spec, Corridor(limit=5), RUN, phases_of(PPO, warm_start, [callback]), folder)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_divergence_is_that_of_the_distributions(seed):
    teacher, student = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    expected = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    torch.testing.assert_close(policy_divergence(teacher, student), expected)


@pytest.mark.parametrize("spec", [SPEC, LSTM])
def test_the_teacher_answers_as_if_it_had_walked_along(tmp_path, spec):
    callback = lessons(spec)
    run, teacher = trainer(tmp_path, callback), build(spec, 3).eval()
    state = teacher.initial_state(4)
    for _ in range(3):
        run._update()
        rollout = run.learner.rollout
        for t in range(PPO.steps):
            seen = {name: value[t] for name, value in rollout.observations.items()}
            with torch.no_grad():
                output = teacher(seen, state, rollout.previous[t], rollout.masks[t])
                state = output.state
                torch.testing.assert_close(callback.logits[t], output.logits)
                torch.testing.assert_close(callback.features[t], teacher.encode(seen))
        torch.testing.assert_close(callback.state, state)


def test_the_loss_is_the_weighted_sum_of_both_terms(tmp_path):
    callback = lessons(policy=2.0, features=3.0)
    run = trainer(tmp_path, callback)
    run._update()
    rows = torch.tensor([2, 0])
    rollout = run.learner.rollout
    loss = run.learner.loss(run.network, rows)
    seen = {name: value[:, rows].flatten(0, 1) for name, value in rollout.observations.items()}
    features = run.network.encode(seen).unflatten(0, (PPO.steps, 2))
    divergence = kl_divergence(
        Categorical(logits=callback.logits[:, rows]), Categorical(logits=loss.output.logits)
    ).mean()
    expected = 2 * divergence + 3 * (features - callback.features[:, rows]).square().mean()
    torch.testing.assert_close(callback.loss(rows, loss.output), expected)


def test_steps_whose_episode_the_teacher_did_not_see_begin_are_left_out(tmp_path):
    """Behind a warm start PPO sets in amid episodes."""
    callback = lessons()
    warm = WarmStartConfig(frames=24, steps=6, sequence=6, batch=2, capacity=100)
    run = trainer(tmp_path, callback, warm)
    run._update()
    assert callback.seen is None
    run._update()
    masks = run.learner.rollout.masks
    known = torch.stack([~masks[: t + 1].all(0) for t in range(PPO.steps)])
    assert callback.known.equal(known) and not known.all() and known.any()
    rows = torch.arange(4)
    callback.logits[~known], callback.features[~known] = float("nan"), float("nan")
    assert callback.loss(rows, run.learner.loss(run.network, rows).output).isfinite()


def test_a_teacher_that_is_the_student_has_nothing_to_teach(tmp_path):
    callback = lessons(SPEC)
    run = Trainer(
        build(SPEC, 3), Corridor(), RUN, phases_of(replace(PPO, epochs=1, minibatches=1), None, [callback]), tmp_path
    )
    run._update()
    assert callback.scalars() == pytest.approx({"distillation/policy": 0, "distillation/features": 0}, abs=1e-6)


def test_the_student_comes_nearer_to_its_teacher_which_stays_as_it_is(tmp_path):
    callback = lessons(SPEC, policy=10.0, features=10.0)
    callback.teacher.action_distribution["linear"].weight.mul_(100)  # fresh ones have no opinion
    before = {name: value.clone() for name, value in callback.teacher.state_dict().items()}
    run = Trainer(
        build(SPEC, 4),
        Corridor(),
        replace(RUN, total_frames=12 * 28),
        phases_of(replace(PPO, lr=5e-3), None, [callback]),
        tmp_path,
    )
    run._update()
    first = callback.scalars()
    for _ in range(11):
        run._update()
    assert all(last < 0.5 * first[name] for name, last in callback.scalars().items())
    assert all(value.equal(before[name]) for name, value in callback.teacher.state_dict().items())


def test_what_the_teacher_remembers_survives_an_interruption(tmp_path):
    def run(name, env):
        return train(SPEC, env, RUN, phases_of(PPO, None, [lessons()]), tmp_path / name)

    run("whole", Corridor())
    env = Corridor()
    env.fail_at = (17, lose_power)
    with pytest.raises(Lost):
        run("lost", env)
    run("lost", Corridor(seed=9))
    whole, lost = (load_policy(tmp_path / name).policy.state_dict() for name in ("whole", "lost"))
    assert all(value.equal(lost[name]) for name, value in whole.items())


@pytest.mark.parametrize("change", [{"visual_features": 9}, {"actions": 3}])
def test_a_teacher_of_another_make_is_refused(change):
    with pytest.raises(UserError, match=r"the teacher has .* give the network that it was pruned from"):
        lessons(tiny_spec(**change))


@pytest.mark.parametrize(("teacher", "student"), [(blind_spec(), SPEC), (SPEC, blind_spec())])
def test_a_blind_network_neither_teaches_nor_learns(teacher, student):
    with pytest.raises(UserError, match="a blind network has no visual features"):
        Distillation(build(teacher, 0), student, policy=1.0, features=1.0)


PIXELS = 40
SENSORS = [("depth",), ("rgb",), ("depth", "rgb")]
SEEN = {
    "depth": torch.rand(2, PIXELS, PIXELS, 1, generator=torch.Generator().manual_seed(0)),
    "rgb": torch.randint(256, (2, PIXELS, PIXELS, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
    GOAL: torch.ones(2, 2),
}


@cache
def seeing(family, sensors):
    channels = sum(SEEN[name].shape[-1] for name in sensors)
    encoder = encoder_spec(family, (channels, PIXELS, PIXELS), 4, observations=sensors)
    return build(PolicySpec(encoder, visual_features=8, hidden_size=16), 0).eval()


@pytest.mark.parametrize("sensors", SENSORS)
@pytest.mark.parametrize("family", ["resnet18", "simple_cnn"])
def test_a_teacher_that_cannot_read_what_its_student_keeps_is_refused_and_no_other(family, sensors):
    """As one of another family or of more sensors may be; all others answer as they would to what was seen."""
    student = seeing(family, sensors)
    kept, refused = SEEN | student.prepare(SEEN), []
    for kind in itertools.product(["resnet18", "resnet50", "simple_cnn"], SENSORS):
        teacher = seeing(*kind)
        try:
            Distillation(teacher, student.spec, policy=1.0, features=1.0)
        except UserError as error:
            refused.append(kind)
            assert "cannot read images" in str(error) and "\n" not in str(error)
            with pytest.raises(RuntimeError):
                teacher.encode(kept)
        else:
            torch.testing.assert_close(teacher.encode(kept), teacher.encode(SEEN), rtol=1e-2, atol=1e-2)
    assert bool(refused) == (family == "resnet18")  # a SimpleCNN's rollouts keep what was seen


# A classifier's teacher --------------------------------------------------------------------------


def taught(folder, size, weight=1.0, teacher=5, epochs=1.0):
    """Workers that learn from one teacher: their networks, and what was told of each update."""
    config = replace(patterns.CONFIG, batch=12, epochs=epochs, lr=1e-2, schedule="constant")
    known = [LogitDistillation(build(patterns.SPEC, teacher), patterns.SPEC, weight=weight) for _ in range(size)]
    networks = [build(patterns.SPEC, 1) for _ in range(size)]

    def act(group):
        run = patterns.begin(folder, None, config, [known[group.rank]], networks[group.rank], group)
        told = []
        while run.frames < run.config.total_frames:
            update = run._update()
            run._exchange(update)
            told.append(update.scalars["distillation/classes"])
        return run.network, told

    return together(size, act)


def test_a_classifier_comes_nearer_to_its_teacher_which_stays_as_it_is(tmp_path):
    callback = LogitDistillation(teacher := build(patterns.SPEC, 5), patterns.SPEC, weight=1.0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    batch = torch.randn(6, *patterns.SHAPE, generator=torch.Generator().manual_seed(0)), torch.zeros(6)
    patterns.begin(tmp_path, callbacks=[callback])
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = callback.loss(batch, logits)
    with torch.no_grad():
        expected = policy_divergence(teacher(batch[0]), logits).mean()
    torch.testing.assert_close(loss, expected)
    (slope,) = torch.autograd.grad(loss, logits)
    assert callback.loss(batch, logits - slope) < loss
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    told = taught(tmp_path / "run", 1, weight=10.0, epochs=6.0)[0][1]
    assert told[-1] < 0.5 * max(told)


def test_workers_learn_from_a_classifiers_teacher_what_one_does(tmp_path):
    ((alone, expected),) = taught(tmp_path / "1", 1)
    for network, told in taught(tmp_path / "2", 2):
        assert told == pytest.approx(expected, rel=1e-3) and min(expected) > 0
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_teacher_of_other_images_or_classes_is_refused():
    other = build(replace(patterns.SPEC, classes=7), 0)
    with pytest.raises(
        UserError, match=r"7 classes of images \[3, 8, 8\] and the network 4 .*of the same data"
    ) as error:
        LogitDistillation(other, patterns.SPEC, weight=1.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"mean": [1.0, 1.1, 1.0]}, {"deviation": [2.0] * 3}, {"classes": list("abce")}])
def test_a_teacher_that_learnt_other_images_is_refused_and_no_other(tmp_path, change):
    def begin(facts):
        teacher = LogitDistillation(build(patterns.SPEC, 5), patterns.SPEC, weight=1.0, facts=facts)
        return patterns.begin(tmp_path, callbacks=[teacher])

    own = begin(None).trainee.facts()
    begin(own)
    with pytest.raises(UserError, match=rf"images whose {next(iter(change))} .*give a teacher of the same data"):
        begin(own | change)


# Weights that go back ----------------------------------------------------------------------------


def half(policy):
    return {group.name: torch.arange(units(group)) % 2 == 1 for group in structure_of(policy).groups}


@pytest.fixture
def pruned(tmp_path):
    """A dense agent, an early checkpoint of it, and what was pruned from the dense one."""
    dense, early = build(SPEC, 0), build(SPEC, 1)
    save_checkpoint(tmp_path / "early", early)
    folder = save_checkpoint(tmp_path / "pruned", structure_of(dense).slim(half(dense)))
    keep = {name: kept.int().tolist() for name, kept in half(dense).items()}
    (folder / "pruning.json").write_text(json.dumps({"keep": keep}))
    return folder


def test_what_stayed_goes_back_to_the_early_checkpoint(pruned):
    early = build(SPEC, 1)
    expected = structure_of(early).slim(half(early)).state_dict()
    for found in (rewound(half(early), early), rewound_checkpoint(pruned, pruned.parent / "early")):
        assert found.spec == load_policy(pruned).policy.spec
        assert all(value.equal(expected[name]) for name, value in found.state_dict().items())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"has no pruning\.json"),
        ("{", r"pruning\.json is damaged"),
        ("[]", r"pruning\.json is damaged"),
        ('{"keep": {"stem": ["a"]}}', r"pruning\.json is damaged"),
        ('{"keep": {"stem": [1, 1, 1]}}', "keep of 'stem'"),
        ('{"keep": {"stem": [1, 1]}}', "is not of the network"),
    ],
)
def test_files_that_do_not_fit_are_named(pruned, text, message):
    file = pruned / "pruning.json"
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        rewound_checkpoint(pruned, pruned.parent / "early")
    assert "\n" not in str(error.value)


# Workers -----------------------------------------------------------------------------------------


def test_workers_learn_from_one_teacher_what_one_does(tmp_path):
    """The parts of the loss add up, and so do the terms that are told."""

    def learnt(size):
        callbacks, policies = [lessons() for _ in range(size)], [build(SPEC, 0) for _ in range(size)]

        def act(group):
            env = Lanes(8 // size, group.rank * 8 // size, torch.float32, limit=5)
            phases = phases_of(replace(PPO, minibatches=2), None, [callbacks[group.rank]])
            config = replace(RUN, total_frames=3 * 56)
            run = Trainer(policies[group.rank], env, config, phases, tmp_path / str(size), group=group)
            told = []
            for _ in range(3):
                update = run._update()
                run._exchange(update)
                told.append(dict(update.scalars))
            run.save()
            return run.network.state_dict(), told

        return together(size, act)

    ((alone, expected),) = learnt(1)
    for size in (2, 4):
        shared = learnt(size)
        for policy, told in shared:
            assert all(value.equal(shared[0][0][name]) for name, value in policy.items())
            for update, of_one in zip(told, expected):
                assert update == pytest.approx(of_one, rel=1e-3) and min(of_one.values()) > 0
        for name, value in alone.items():
            torch.testing.assert_close(shared[0][0][name], value, rtol=1e-3, atol=1e-4)


def test_what_the_teacher_remembers_goes_on_with_any_number_of_workers(tmp_path):
    """Two workers stop, one goes on with all that it remembers of all environments."""

    def go_on(size, frames, folder):
        callbacks, policies = [lessons() for _ in range(size)], [build(SPEC, 0) for _ in range(size)]

        def act(group):
            env = Lanes(8 // size, group.rank * 8 // size, torch.float32, limit=5)
            phases, config = phases_of(PPO, None, [callbacks[group.rank]]), replace(RUN, total_frames=frames)
            before = Trainer(policies[group.rank], env, config, phases, folder, group=group)
            state = callbacks[group.rank].state.clone()
            before.run()
            return state, callbacks[group.rank].state

        return together(size, act)

    left = torch.cat([after for _, after in go_on(2, 112, tmp_path)])
    assert left.abs().sum() > 0
    for size in (1, 4, 2):
        found = torch.cat([before for before, _ in go_on(size, 112, tmp_path)])
        assert found.equal(left)
