import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rl.groups import together
from torch import nn

from navprune.models.build import build
from navprune.models.spec import PolicySpec, encoder_spec
from navprune.rl.muon import LARGE, MATRIX_RATE, MOMENTUM, Muon, orthogonalised, shares

SPEC = PolicySpec(encoder_spec("resnet18", (1, 32, 32), 8, output=16), 24, 16)
sizes = st.integers(1, 40)


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _teach(network, optimiser, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimiser.step()


@settings(deadline=None)
@given(sizes, sizes, st.integers(0, 100), st.floats(1e-3, 1e3))
def test_singular_vectors_stay_and_singular_values_come_near_one(n, m, seed, scale):
    x = _random(n, m, seed=seed)
    u, values, v = torch.linalg.svd(x, full_matrices=False)
    (y,) = orthogonalised([x * scale])
    inner = u.T @ y @ v.T / max(1, n / m) ** 0.5
    torch.testing.assert_close(inner, torch.diag(inner.diag()), atol=1e-6, rtol=0)
    large = inner.diag()[values > 0.03 * values.norm()]
    assert 0.6 < large.min() and large.max() < 1.25


@settings(deadline=None)
@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=6))
def test_matrices_that_go_together_do_not_see_each_other(shapes):
    matrices = [_random(*shape, seed=i) for i, shape in enumerate(shapes)]
    for alone, both in zip(matrices, orthogonalised(matrices)):
        torch.testing.assert_close(orthogonalised([alone])[0], both)


def test_large_matrices_go_another_way_to_the_same_steps():
    matrices = [_random(LARGE, 150), _random(160, LARGE, seed=1), _random(LARGE - 1, LARGE, seed=2)]
    for ours, exact in zip(orthogonalised([m.float() for m in matrices]), orthogonalised(matrices)):
        torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-4)


def test_a_matrix_moves_by_its_orthogonalised_momentum_and_each_gate_by_its_own():
    gru = nn.GRU(10, 12).double()
    before = copy.deepcopy(gru.state_dict())
    _teach(gru, Muon(gru, lr=0.1), 1)
    gradient = gru.weight_ih_l0.grad * (1 - MOMENTUM**2)
    wanted = torch.cat(orthogonalised(gradient.chunk(3)))
    torch.testing.assert_close(before["weight_ih_l0"] - gru.weight_ih_l0, 0.1 * MATRIX_RATE * wanted)


@settings(deadline=None, max_examples=4)
@given(st.integers(2, 5))
def test_workers_share_the_matrices_out_and_move_all_of_them_alike(size):
    policy = build(SPEC, 0).double()
    alone, each = copy.deepcopy(policy), [copy.deepcopy(policy) for _ in range(size)]
    _teach(alone, Muon(alone, lr=0.01), 2)
    together(size, lambda group: _teach(each[group.rank], Muon(each[group.rank], lr=0.01, workers=group), 2))
    for name, wanted in alone.state_dict().items():
        for other in each:
            assert other.state_dict()[name].equal(each[0].state_dict()[name])
        torch.testing.assert_close(each[0].state_dict()[name], wanted)


@given(st.lists(st.tuples(sizes, sizes), max_size=20), st.integers(1, 8))
def test_no_worker_has_more_than_a_fair_share_and_one_matrix(shapes, workers):
    def work(each):
        return sum(min(shape) ** 2 * (2 * max(shape) + 20 * min(shape)) for shape in each)

    whose = shares(shapes, workers)
    largest = max(map(work, ([shape] for shape in shapes)), default=0)
    for rank in range(workers):
        own = [shape for shape, owner in zip(shapes, whose) if owner == rank]
        assert work(own) <= work(shapes) / workers + largest


def test_all_but_matrices_move_as_adam_moves_them():
    network = nn.ModuleList([nn.LayerNorm(20), nn.Embedding(30, 30), nn.Linear(20, 4), nn.Linear(3, 20)])
    other = copy.deepcopy(network)
    _teach(network, Muon(network, lr=0.1), 5)
    _teach(other, torch.optim.Adam(other.parameters(), lr=0.1, eps=1e-5), 5)
    for ours, adams in zip(network.parameters(), other.parameters()):
        torch.testing.assert_close(ours, adams)


def test_every_weight_of_a_policy_belongs_to_one_group():
    policy = build(SPEC, 0)
    groups = Muon(policy, lr=0.1).param_groups
    parts = {id(p): group["parts"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(parts) == len(list(policy.parameters()))
    found = {name: parts[id(p)] for name, p in policy.named_parameters()}
    assert found["net.state_encoder.rnn.weight_hh_l0"] == 3
    assert found["net.visual_fc.1.weight"] == found["net.visual_encoder.compression.0.weight"] == 1
    heads = "action_distribution.linear.weight", "critic.fc.weight", "net.prev_action_embedding.weight"
    assert not any(found[name] for name in heads)


def test_it_goes_on_from_what_was_saved():
    policy = build(SPEC, 0)
    whole = Muon(policy, lr=0.01)
    _teach(policy, whole, 2)
    again = build(SPEC, 1)
    again.load_state_dict(policy.state_dict())
    resumed = Muon(again, lr=0.5)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for network, optimiser in ((policy, whole), (again, resumed)):
        _teach(network, optimiser, 2, seed=1)
    for a, b in zip(policy.parameters(), again.parameters()):
        assert torch.equal(a, b)


def test_weights_without_gradients_stay():
    policy = build(SPEC, 0)
    optimiser, before = Muon(policy, lr=0.1), copy.deepcopy(policy.state_dict())
    optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
