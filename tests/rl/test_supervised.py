"""Classifiers learn: schedules, the order of images, runs that are repeated, interrupted and shared."""

import os
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl.groups import together
from rl.patterns import CONFIG, RUN, SPEC, Dropping, Lost, Patterns, begin, reader, run, splits, total
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from navprune.errors import UserError
from navprune.models.build import build
from navprune.rl.checkpoints import find_checkpoint, load_network, numbered, read_metrics, read_trainer
from navprune.rl.group import Group
from navprune.rl.supervised import ADAM, SCHEDULES, Supervised, SupervisedConfig, batch_rows, seeded

PROGRESS = st.floats(0, 1)


def weights(path):
    return load_network(path).state_dict()


def same(a, b):
    return all(value.equal(b[name]) for name, value in a.items())


# Schedules ----------------------------------------------------------------------------------------------


@given(st.floats(1e-4, 1), st.floats(0, 0.9), PROGRESS, PROGRESS)
def test_cosine_falls_from_the_whole_rate_to_zero(lr, warm_up, a, b):
    config = SupervisedConfig(schedule="cosine", lr=lr, warm_up=warm_up)
    assert config.rate(warm_up) == pytest.approx(lr) and config.rate(1.0) == pytest.approx(0, abs=1e-12)
    early, late = (warm_up + (1 - warm_up) * place for place in sorted((a, b)))
    assert lr * (1 + 1e-9) >= config.rate(early) >= config.rate(late) >= 0
    assert config.rate((1 + warm_up) / 2) == pytest.approx(lr / 2)


@given(st.lists(st.floats(0.01, 0.99), max_size=4), st.floats(0.01, 1), PROGRESS)
def test_steps_multiply_once_for_each_milestone_that_is_passed(milestones, decay, progress):
    config = SupervisedConfig(schedule="steps", milestones=tuple(milestones), decay=decay, lr=0.3)
    passed = sum(place <= progress + 1e-9 for place in milestones)
    assert config.rate(progress) == pytest.approx(0.3 * decay**passed)
    assert all(config.rate(place) < 0.3 for place in milestones) or decay == 1


@given(st.sampled_from(SCHEDULES), st.floats(0.01, 0.99), st.integers(1, 200))
def test_warm_up_rises_linearly_from_a_step_to_the_schedule(schedule, warm_up, steps):
    config = SupervisedConfig(schedule=schedule, warm_up=warm_up, lr=0.2, milestones=())
    rates = [config.rate(step / steps, 1 / steps) for step in range(steps)]
    rising = [step for step in range(steps) if step / steps < warm_up]
    assert min(rates[: len(rising)]) > 0
    for step in rising:
        assert rates[step] == pytest.approx(min(0.2, 0.2 * (step + 1) / (warm_up * steps)))
    assert rates[len(rising) :] == [config.rate(step / steps) for step in range(len(rising), steps)]


@given(PROGRESS)
def test_constant_is_constant(progress):
    assert SupervisedConfig(schedule="constant", lr=0.2).rate(progress) == 0.2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"milestones": (0.5, 1.5)}, "supervised.milestones"),
        ({"nesterov": True, "momentum": 0.0}, "supervised.nesterov needs a momentum"),
        ({"schedule": "linear"}, "supervised.schedule is linear; known are cosine, steps, constant"),
        ({"optimiser": "lamb"}, "supervised.optimiser is lamb; known are sgd, adam"),
        ({"batch": 1}, "supervised.batch"),
        ({"epochs": 0}, "supervised.epochs"),
        ({"epochs": float("inf")}, "supervised.epochs is inf; it must be a number from 1e-12 to 1e"),
        ({"momentum": 1.0}, "supervised.momentum is 1.0; it must be a number from 0 to 0.9999"),
        ({"label_smoothing": 1.0}, "supervised.label_smoothing"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(settings, told):
    with pytest.raises(UserError, match=told) as error:
        SupervisedConfig(**settings)
    assert "\n" not in str(error.value)


def test_each_step_has_the_rate_of_its_place_in_the_run(tmp_path):
    """Whatever the size of updates: it is the formula at step / steps."""
    config = replace(CONFIG, schedule="steps", milestones=(0.5,), warm_up=0.2)
    trainer, rates = begin(tmp_path, config=config), []
    trainer.learner.optimiser.register_step_pre_hook(lambda own, *_: rates.append(own.param_groups[0]["lr"]))
    trainer.run()
    steps = total() // CONFIG.batch
    assert rates == pytest.approx([config.rate(step / steps, 1 / steps) for step in range(steps)])


# The order of images ------------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1), st.integers(1, 40), st.integers(0, 100), st.integers(1, 90))
def test_a_pass_has_each_image_once_and_batches_continue_one_another(seed, count, first, size):
    found = batch_rows(seed, count, first, size)
    assert len(found) == size
    whole = batch_rows(seed, count, 0, (first + size) // count * count + count)
    assert all(sorted(each.tolist()) == list(range(count)) for each in whole.split(count))
    assert found.equal(whole[first : first + size])


@given(st.floats(0.01, 50), st.integers(2, 500), st.integers(1, 5000))
def test_a_run_is_whole_batches_as_near_to_its_epochs_as_can_be(epochs, batch, images):
    frames = SupervisedConfig(epochs=epochs, batch=batch).frames(images)
    assert frames % batch == 0 and frames >= batch
    assert abs(frames - epochs * images) <= batch / 2 + 1e-6 or frames == batch


def test_a_run_reads_so_many_images_each_as_often_as_any_other(tmp_path):
    data = splits()
    result = run(tmp_path, data)
    assert result.frames == len(data[0].seen) == total() == 110
    for number in range(3):
        assert sorted(data[0].seen[36 * number :][:36]) == list(range(36))
    assert data[0].seen[:36] != data[0].seen[36:72]


# The loss -----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.999), st.integers(0, 1000))
def test_smoothed_labels_are_the_labels_with_a_share_over_all_classes(smoothing, seed):
    """By the loss that a step tells, of a network whose weights a rate of next to nothing leaves."""
    network = build(SPEC, seed)
    own = reader(seed=seed, network=network)
    learner = Supervised(own, replace(CONFIG, label_smoothing=smoothing, lr=1e-12, steps=1))
    network.train()
    draw = own.draw_batch(0, 10)
    batch = own.read(draw)
    told, _ = learner._step(batch, draw.seed).tolist()
    wanted = torch.full((10, 4), smoothing / 4)
    wanted[range(10), batch[1]] += 1 - smoothing
    with torch.no_grad():
        expected = -(wanted * network(batch[0]).log_softmax(1)).sum(1).mean()
    assert told == pytest.approx(expected.item(), rel=1e-4)


def test_patterns_are_learnt_and_measured_on_what_is_held_out(tmp_path):
    data = splits()
    result = run(tmp_path, data, replace(CONFIG, epochs=12))
    network = load_network(result.latest).eval()
    with torch.no_grad():
        logits = network(data[1].pixels)
    assert result.metrics["top1"] == pytest.approx((logits.argmax(1) == data[1].labels).float().mean().item())
    assert result.metrics["top1"] > 0.9 and result.metrics["top5"] == 1
    expected = torch.nn.functional.cross_entropy(logits, data[1].labels).item()
    assert result.metrics["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path):
    data = splits()
    data[0].pixels[data[0].labels == 2] = float("nan")
    with pytest.raises(UserError, match=r"update 1 \(supervised, at 0 images\): the loss is nan .*lower lr") as error:
        run(tmp_path, data)
    assert "\n" not in str(error.value) and numbered(tmp_path) == []


# Runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing interrupted, by optimiser."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("sgd", ADAM)}
    return {name: run(folder, config=optimised(name)).latest for name, folder in folders.items()}


def optimised(name):
    return replace(CONFIG, optimiser=name, lr=0.05 if name == "sgd" else 0.003, weight_decay=1e-3, warm_up=0.1)


def test_the_same_seed_gives_the_same_run_and_another_another(whole, tmp_path):
    assert same(weights(run(tmp_path / "a", config=optimised("sgd")).latest), weights(whole["sgd"]))
    other = run(tmp_path / "b", config=optimised("sgd"), run=replace(RUN, seed=1)).latest
    assert not same(weights(other), weights(whole["sgd"]))


def test_how_many_steps_make_an_update_changes_nothing(whole, tmp_path):
    latest = run(tmp_path, config=replace(optimised("sgd"), steps=3)).latest
    assert same(weights(latest), weights(whole["sgd"]))


@pytest.mark.parametrize("optimiser", ["sgd", ADAM])
@pytest.mark.parametrize("lost", [[2], [4], [5], [8], [11], [3, 4]], ids=str)  # of 11; passes end in steps 4, 8, 11
def test_a_run_goes_on_bit_for_bit_wherever_the_power_fails(whole, tmp_path, optimiser, lost):
    for batch in lost:
        with pytest.raises(Lost):
            run(tmp_path, splits(lose_at=batch), optimised(optimiser))
    latest = run(tmp_path, config=optimised(optimiser)).latest
    assert same(weights(latest), weights(whole[optimiser]))
    ours, theirs = (read_trainer(path) for path in (latest, whole[optimiser]))
    assert ours["generator"].equal(theirs["generator"]) and ours["window"] == theirs["window"]
    assert ours["best_frames"] == theirs["best_frames"]


def test_dropout_goes_on_bit_for_bit_and_leaves_the_global_generator_alone(tmp_path):

    def dropping(name, seed=0, **options):
        network = Dropping()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        run(tmp_path / name, splits(**options), network=network)
        assert torch.get_rng_state().equal(state)
        return network

    torch.manual_seed(0)
    whole = dropping("whole")
    torch.manual_seed(0)
    with pytest.raises(Lost):
        dropping("lost", 1, lose_at=5)
    assert same(dropping("lost", 2).state_dict(), whole.state_dict())


@given(st.integers(0, 2**62), st.integers(0, 100))
def test_within_a_seed_the_numbers_are_those_of_the_seed(seed, outer):
    torch.manual_seed(outer)
    expected = torch.rand(2)
    torch.manual_seed(outer)
    with seeded(seed, torch.device("cpu")):
        drawn = torch.rand(3)
    assert drawn.equal(torch.rand(3, generator=torch.Generator().manual_seed(seed)))
    assert torch.rand(2).equal(expected)


def test_ctrl_c_saves_and_the_run_goes_on(whole, tmp_path, monkeypatch, capsys):
    views = Patterns.views

    def interrupted(self, rows, draws=None):
        if self.taken == 4 and draws is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return views(self, rows, draws)

    never = replace(RUN, checkpoint_seconds=1e9)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Patterns, "views", interrupted)
        run(tmp_path, config=optimised("sgd"), run=never)
    assert stopped.value.code == 130 and numbered(tmp_path)[0] == 60
    assert f"the same command goes on from {tmp_path}" in capsys.readouterr().err
    assert same(weights(run(tmp_path, config=optimised("sgd")).latest), weights(whole["sgd"]))
    assert "goes on at 60 images of 110" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    with pytest.raises(Lost):
        run(tmp_path, splits(lose_at=5))
    others = splits(seed=7)
    with pytest.raises(UserError, match=r"images\.source holds other images to train on .*another run folder"):
        run(tmp_path, others)
    assert not others[0].seen
    saved = read_trainer(find_checkpoint(tmp_path))["actor"]
    begin(tmp_path).trainee.load_state_dict({name: value for name, value in saved.items() if name != "images"})


def test_longer_training_goes_on_and_a_complete_run_says_what_would(whole, tmp_path, capsys):
    config = replace(CONFIG, schedule="constant")
    run(tmp_path / "short", config=config)
    assert run(tmp_path / "short", config=config).frames == 110
    assert "complete at 110 images, nothing to train; a larger supervised.epochs" in capsys.readouterr().err
    longer = replace(config, epochs=5)
    again, once = (run(tmp_path / name, config=longer).latest for name in ("short", "long"))
    assert same(weights(again), weights(once))


def test_a_setting_of_the_optimiser_counts_from_where_the_run_goes_on(tmp_path):
    with pytest.raises(Lost):
        run(tmp_path, splits(lose_at=5))
    trainer = begin(tmp_path, config=replace(CONFIG, weight_decay=0.3, momentum=0.5))
    (group,) = trainer.learner.optimiser.param_groups
    assert trainer.frames == 40 and group["weight_decay"] == 0.3 and group["momentum"] == 0.5
    assert all("momentum_buffer" in state for state in trainer.learner.optimiser.state.values())


# What is kept and told ----------------------------------------------------------------------------------


def scripted(monkeypatch, scores):
    """Let validation find these, one after the other."""
    left = iter(scores)
    monkeypatch.setattr("rl.patterns.Reader.measure", lambda *_: {"top1": next(left), "top5": 1.0, "loss": 0.5})


# Passes end behind the updates to 40, 80 and 110 images.
@pytest.mark.parametrize(
    ("scores", "best"), [((0.2, 0.9, 0.5), 80), ((0.9, 0.2, 0.5), 40), ((0.1, 0.2, 0.3), 110), ((0.5, 0.7, 0.7), 110)]
)
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_the_best_checkpoint_is_that_of_the_best_validation_the_last_of_equals(
    tmp_path, monkeypatch, scores, best, seconds
):
    """However seldom checkpoints are written; one that was not measured is never the best."""
    scripted(monkeypatch, scores)
    result = run(tmp_path, run=replace(RUN, checkpoint_seconds=seconds))
    assert int(result.best.name) == best and int(find_checkpoint(tmp_path / "best").name) == best
    assert read_metrics(result.best)["top1"] == max(scores)


def test_checkpoints_tell_only_what_was_measured_of_them(tmp_path):
    run(tmp_path, run=replace(RUN, keep_checkpoints=99))
    measured = {
        frames for frames in numbered(tmp_path) if "top1" in read_metrics(tmp_path / f"checkpoints/{frames:012}")
    }
    assert measured == {40, 80, 110} < {*numbered(tmp_path)}


def test_where_nothing_is_held_out_the_latest_is_the_best(tmp_path):
    result = run(tmp_path, splits(val=None))
    assert result.best == result.latest and result.metrics == {}


@pytest.mark.parametrize("each", [1, 4])
def test_tensorboard_shows_losses_of_updates_and_measures_of_passes(tmp_path, each):
    """And no measure is lost where few updates are shown."""
    run(tmp_path, run=replace(RUN, log_updates=each))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in ("learner/loss", "learner/accuracy", "learning_rate", "perf/fps"):
        assert shown[tag] == ([20, 40, 60, 80, 100, 110] if each == 1 else [40, 80, 110])
    for tag in ("metrics/top1", "metrics/top5", "metrics/loss"):
        assert shown[tag] == [40, 80, 110]
    rates = [event.value for event in events.Scalars("learning_rate")]
    assert all(early > late > 0 for early, late in pairwise(rates))


# Workers ------------------------------------------------------------------------------------------------


def shared(size, folder, config=CONFIG, data=splits, run=RUN):
    parts, networks = [data() for _ in range(size)], [build(SPEC, 1) for _ in range(size)]

    def act(group):
        trainer = begin(folder, parts[group.rank], config, (), networks[group.rank], group, run)
        trainer.run()
        return trainer, parts[group.rank][0]

    return together(size, act)


def test_workers_compute_what_one_does(tmp_path):
    """The images of each step are exactly the same, the weights but for rounding; validation is of all images."""
    config = replace(CONFIG, batch=12, epochs=2, lr=1e-3)
    ((alone, images),) = shared(1, tmp_path / "1", config)
    steps = torch.tensor(images.seen).split(12)
    for size in (2, 3):
        workers = shared(size, tmp_path / str(size), config)
        parts = [torch.tensor(part.seen).split(12 // size) for _, part in workers]
        assert all(torch.cat(step).equal(expected) for step, expected in zip(zip(*parts, strict=True), steps))
        for trainer, _ in workers:
            assert trainer.generator.get_state().equal(alone.generator.get_state())
            assert trainer.window.mean() == pytest.approx(alone.window.mean(), abs=1e-4)
            for name, value in trainer.network.state_dict().items():
                assert value.equal(workers[0][0].network.state_dict()[name])
                torch.testing.assert_close(value, alone.network.state_dict()[name], rtol=1e-5, atol=1e-5)


def test_in_bfloat16_workers_learn_nearly_what_one_does(tmp_path):
    config, run = replace(CONFIG, batch=12, epochs=1, lr=1e-3), replace(RUN, bf16=True)
    (alone, _), *workers = (shared(size, tmp_path / str(size), config, run=run)[0] for size in (1, 2))
    for name, value in workers[0][0].network.state_dict().items():
        torch.testing.assert_close(value, alone.network.state_dict()[name], rtol=2e-2, atol=2e-2)


def test_more_workers_than_images_that_are_held_out_measure_them_all(tmp_path):
    (first, _), *_ = shared(3, tmp_path, replace(CONFIG, batch=12, epochs=1), lambda: splits(val=2))
    assert first.window.mean()["top1"] in (0, 0.5, 1)


def test_a_batch_that_workers_cannot_share_is_refused():
    group = Group()
    group.size = 3
    with pytest.raises(UserError, match=r"supervised\.batch is 10, which 3 workers cannot share; use a multiple"):
        Supervised(reader(group=group, network=build(SPEC)), CONFIG)
