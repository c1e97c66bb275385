"""Several workers compute what one process with all their environments computes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl.groups import Lanes, together

from navprune.errors import UserError
from navprune.models import encoders, fast, recurrent
from navprune.models.build import build
from navprune.rl.group import ENVIRONMENTS, Group, joined, part_of
from navprune.rl.monitor import Timers
from navprune.rl.phases import phases_of
from navprune.rl.ppo import PPO, PPOConfig
from navprune.rl.rollouts import Actor
from navprune.rl.trainer import Trainer, TrainerConfig
from navprune.rl.warm_start import Round, WarmStart, WarmStartConfig

SIZES = (1, 2, 4)
RUN = TrainerConfig(total_frames=16 * 24, threads=1, checkpoint_seconds=0, window=12)
PPO_CONFIG = PPOConfig(steps=12, epochs=2, minibatches=2, lr=1e-2, normalise_advantages=True, linear_lr=True)
WARM = WarmStartConfig(frames=192, steps=12, sequence=6, batch=4, capacity=192, lr=1e-2, patience=3)


@pytest.fixture
def exact(monkeypatch):
    """The learner in float64 throughout, so that only what is really different differs."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    for module in (encoders, fast, recurrent):
        monkeypatch.setattr(module, "plain_on_cpu", lambda x: False)  # which knows float32 by its name
    return torch.float64


def normalising(toys):
    spec = toys.spec()
    return replace(spec, encoder=replace(spec.encoder, normalise=True))


def actor_of(policy, group, dtype=torch.float64, environments=8, limit=5):
    count = environments // group.size
    env = Lanes(count, group.rank * count, dtype, limit=limit)
    generator, device = torch.Generator().manual_seed(5), torch.device("cpu")
    actor = Actor(env, policy, device=device, generator=generator, timers=Timers(), group=group)
    actor.reset()
    for module in policy.modules():
        if hasattr(module, "sum"):
            module.sum = group.sum
    return actor


# Gradients ----------------------------------------------------------------------------------------------


def first_gradients(toys, folder, kind, size, dtype, config):
    """The gradients of the first step, as each worker has them, before the weights move."""

    policies = [build(normalising(toys), 1).to(dtype) for _ in range(size)]  # not in threads: seeding is global

    def act(group):
        actor = actor_of(policies[group.rank], group, dtype)
        learner = PPO(actor, config) if kind == "ppo" else WarmStart(actor, folder, config)
        steps = []

        def note(*_):
            steps.append(torch.cat([p.grad.flatten() for p in actor.policy.parameters()]).clone())

        learner.optimiser.register_step_pre_hook(note)
        learner.update(0.0, 0)
        return steps[0]

    return together(size, act)


KINDS = {"ppo": replace(PPO_CONFIG, max_grad_norm=1e9), "warm_start": replace(WARM, max_grad_norm=1e9)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_are_those_of_one_process(toys, tmp_path, kind, size):
    (whole,) = first_gradients(toys, tmp_path, kind, 1, torch.float32, KINDS[kind])
    shared = first_gradients(toys, tmp_path, kind, size, torch.float32, KINDS[kind])
    assert whole.norm() > 1e-3 and all(own.equal(shared[0]) for own in shared)
    assert (shared[0] - whole).norm() < 1e-6 * whole.norm()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES[1:])
def test_gradients_in_float64_are_those_of_one_process_to_the_last_digits(toys, tmp_path, exact, kind, size):
    (whole,) = first_gradients(toys, tmp_path, kind, 1, exact, KINDS[kind])
    shared = first_gradients(toys, tmp_path, kind, size, exact, KINDS[kind])
    assert whole.dtype == exact and (shared[0] - whole).norm() < 1e-12 * whole.norm()


# Runs ---------------------------------------------------------------------------------------------------


def whole_run(toys, folder, size, monkeypatch, frames=RUN.total_frames, warm_start=WARM):
    """What each worker did in a run of a warm start and PPO."""
    policies = [build(normalising(toys), 1).double() for _ in range(size)]

    def act(group):
        count = 8 // group.size
        env = Lanes(count, group.rank * count, limit=5)
        phases = phases_of(PPO_CONFIG, warm_start)
        config = replace(RUN, total_frames=frames)
        trainer = Trainer(policies[group.rank], env, config, phases, folder, group=group)
        noted = {"places": [], "batches": [], "advantages": []}
        draw, split, collect = WarmStart._draw, Actor.minibatches, PPO.collect

        def drawing(self):
            noted["places"].append([(r, k, n + self.actor.rows.start) for r, k, n in draw(self)])
            return [(r, k, n - self.actor.rows.start) for r, k, n in noted["places"][-1]]

        def splitting(self, count):
            for rows in split(self, count):
                noted["batches"].append((rows + self.rows.start).tolist())
                yield rows

        def collecting(self):
            gained = collect(self)
            noted["advantages"].append(self.advantage)
            return gained

        begin = trainer._learner

        def learner(phase):
            made = begin(phase)
            for name, hook in (("_draw", drawing), ("collect", collecting)):
                if hasattr(made, name):
                    monkeypatch.setattr(made, name, hook.__get__(made))
            return made

        monkeypatch.setattr(trainer.trainee, "minibatches", splitting.__get__(trainer.trainee))
        monkeypatch.setattr(trainer, "_learner", learner)
        for name, hook in (("_draw", drawing), ("collect", collecting)):
            if hasattr(trainer.learner, name):
                monkeypatch.setattr(trainer.learner, name, hook.__get__(trainer.learner))
        result = trainer.run()
        return SimpleNamespace(trainer=trainer, env=env, result=result, **noted)

    return together(size, act)


@pytest.fixture
def runs(toys, tmp_path, monkeypatch, exact):
    return {size: whole_run(toys, tmp_path / str(size), size, monkeypatch) for size in SIZES}


def test_a_run_does_not_depend_on_how_many_share_it(runs):
    (alone,) = runs[1]
    assert len(alone.places) > 8 and len(alone.batches) == 2 * 2 * 2 and len(alone.advantages) == 2
    for size, workers in runs.items():
        first = workers[0]
        assert first.result.frames == alone.result.frames == RUN.total_frames
        # What is random is the same: acts, sequences, mini-batches, and what will be drawn next.
        acts = torch.cat([torch.stack(worker.env.taken) for worker in workers], dim=1)
        assert acts.equal(torch.stack(alone.env.taken)), size
        for step, expected in enumerate(alone.places):
            assert [place for worker in workers for place in worker.places[step]] == expected
        for step, expected in enumerate(alone.batches):
            assert [row for worker in workers for row in worker.batches[step]] == expected
        for step, expected in enumerate(alone.advantages):
            torch.testing.assert_close(torch.cat([worker.advantages[step] for worker in workers], dim=1), expected)
        for worker in workers:
            trainer = worker.trainer
            assert trainer.generator.get_state().equal(alone.trainer.generator.get_state())
            assert trainer.window.state_dict() == alone.trainer.window.state_dict() and trainer.window.episodes
            assert trainer.best_frames == alone.trainer.best_frames
            # Workers have one network; alone or not it is the same but for rounding.
            for name, value in trainer.network.state_dict().items():
                assert value.equal(first.trainer.network.state_dict()[name])
                torch.testing.assert_close(value, alone.trainer.network.state_dict()[name], rtol=1e-6, atol=1e-8)


def test_checkpoints_are_those_of_one_process_and_any_number_goes_on(toys, tmp_path, monkeypatch, exact):
    """In the middle of the warm start, and of PPO."""
    (alone,) = whole_run(toys, tmp_path / "whole", 1, monkeypatch)
    expected = alone.trainer.network.state_dict()
    for number, sizes in enumerate([(2, 4, 1), (4, 1, 2), (2, 2, 2)]):
        folder = tmp_path / str(number)
        for size, frames in zip(sizes, (96, 288, RUN.total_frames)):
            workers = whole_run(toys, folder, size, monkeypatch, frames)
        for worker in workers:
            assert worker.trainer.window.state_dict() == alone.trainer.window.state_dict()
            for name, value in worker.trainer.network.state_dict().items():
                torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)


# What is drawn ------------------------------------------------------------------------------------------


EMPTY = Round(1, {}, torch.zeros(0), torch.zeros(0))


def bare_actor(policy, environments, group, seed):
    env, generator = SimpleNamespace(num_envs=environments // group.size), torch.Generator().manual_seed(seed)
    return Actor(env, policy, device=torch.device("cpu"), generator=generator, timers=Timers(), group=group)


def place(rank, size):
    group = Group()
    group.rank, group.size = rank, size
    return group


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_minibatches_have_every_environment_once_and_workers_as_many(toys, seed, size, count, share):
    environments, policy = size * count * share, toys.blind_policy()
    alone = [rows.tolist() for rows in bare_actor(policy, environments, place(0, 1), seed).minibatches(count)]
    assert sorted(n for rows in alone for n in rows) == list(range(environments))
    shared = [[] for _ in range(count)]
    for rank in range(size):
        actor = bare_actor(policy, environments, place(rank, size), seed)
        for batch, rows in zip(shared, actor.minibatches(count), strict=True):
            assert len(rows) == share
            batch += (rows + actor.rows.start).tolist()
    assert shared == alone


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_uneven_minibatches_differ_by_one(toys, seed, environments, count):
    count = min(count, environments)
    batches = list(bare_actor(toys.blind_policy(), environments, place(0, 1), seed).minibatches(count))
    assert sorted(torch.cat(batches).tolist()) == list(range(environments))
    assert {len(rows) for rows in batches} <= {environments // count, -(-environments // count)}


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))
def test_sequences_are_spread_over_environments_and_workers(toys, tmp_path_factory, seed, size, each, own, rounds):
    environments, batch, policy = size * own, size * each, toys.blind_policy()
    config = WarmStartConfig(steps=8, sequence=4, batch=batch, capacity=8 * environments * 3)

    def drawn(rank, workers):
        actor = bare_actor(policy, environments, place(rank, workers), seed)
        warm = WarmStart(actor, tmp_path_factory.getbasetemp(), config)
        warm.rounds.extend([EMPTY] * rounds)
        places = [warm._draw() for _ in range(3)]
        assert all(0 <= n < actor.env.num_envs for step in places for _, _, n in step)
        return [[(r, k, n + actor.rows.start) for r, k, n in step] for step in places]

    (alone,) = [drawn(0, 1)]
    shared = [drawn(rank, size) for rank in range(size)]
    assert [[place for worker in shared for place in worker[step]] for step in range(3)] == alone
    for step in alone:
        assert all(0 <= r < rounds and 0 <= k < 2 for r, k, _ in step)
        times = np.bincount([n for *_, n in step], minlength=environments)
        # No environment lies idle while another one is taken twice, where they come out even.
        even = environments % batch == 0 or batch % environments == 0
        assert times.max() <= -(-batch // environments) + (not even)


@pytest.mark.parametrize(("environments", "batch"), [(4, 3), (5, 2), (3, 7), (6, 6), (12, 8)])
def test_every_place_is_as_likely(toys, tmp_path, environments, batch):
    config = WarmStartConfig(steps=8, sequence=4, batch=batch, capacity=8 * environments * 2)
    warm = WarmStart(bare_actor(toys.blind_policy(), environments, place(0, 1), 0), tmp_path, config)
    warm.rounds.extend([EMPTY] * 2)
    drawn = [place for _ in range(3000) for place in warm._draw()]
    assert set(drawn) == {(r, k, n) for r in range(2) for k in range(2) for n in range(environments)}
    often = np.bincount([n for *_, n in drawn]) * environments / len(drawn)
    assert np.abs(often - 1).max() < 0.1  # as often as any other


# States -------------------------------------------------------------------------------------------------


def leaves(count, each):
    """States of a number of environments; plain data wherever, data by environment only below their key."""
    plain = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=3), st.none(), st.booleans())
    if not each:
        return plain
    numbers = st.lists(st.integers(-99, 99), min_size=count, max_size=count)
    tensors = numbers.map(lambda row: torch.tensor(row)[:, None].expand(-1, 3).clone())
    return st.one_of(plain, tensors, numbers.map(np.array), st.lists(plain, min_size=count, max_size=count))


def states(count, depth=2, each=False):
    inner = leaves(count, each)
    if depth:
        inner = st.one_of(inner, states(count, depth - 1, each))
    names = st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    if each or not depth:
        return names
    return st.builds(lambda a, b: {**a, ENVIRONMENTS: b}, names, states(count, depth - 1, each=True))


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.equal(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return type(a) is type(b) and a == b


@settings(deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 3))
def test_states_are_taken_apart_and_put_together(data, size, own):
    whole = data.draw(states(size * own))
    parts = [part_of(whole, place(rank, size).rows(own)) for rank in range(size)]
    assert same(joined(parts), whole)
    assert all(same(part_of(joined(parts), place(rank, size).rows(own)), part) for rank, part in enumerate(parts))


# Refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ({"environments": 4}, "2 mini-batches cannot be made of 4 environments by 4 workers; ask for 8 or more"),
        ({"batch": 6}, r"warm_start.batch is 6; 4 workers need a multiple of 4"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(toys, tmp_path, kind, told):
    def act(group):
        actor = actor_of(toys.policy().double(), group, environments=kind.get("environments", 8))
        if "batch" in kind:
            return WarmStart(actor, tmp_path, replace(WARM, batch=kind["batch"]))
        return PPO(actor, PPO_CONFIG)

    with pytest.raises(UserError, match=told):
        together(4, act)


def test_preemption_alone_changes_nothing(toys):
    updates = []
    for share in (0.0, 0.5):
        actor = actor_of(build(normalising(toys), 1), Group(), torch.float32)
        updates.append(PPO(actor, replace(PPO_CONFIG, preempt=share)).update(0.0, 0))
    assert updates[0] == updates[1]
