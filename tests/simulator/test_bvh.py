import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from navprune.simulator import bvh
from navprune.simulator.bvh import BINS, LEAF_TRIANGLES, build_tree


def soup(count, seed, size=0.3):
    """Small triangles, some of them in one place."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(-5, 5, (count, 1, 3))
    places[: count // 4] = places[:1]
    return (places + rng.uniform(-size, size, (count, 3, 3))).astype(np.float32)


def unfolded(tree):
    """Box, first triangle and count (-1: an inner node) of each node, from the root down, first child last."""
    boxes, nodes, order = tree
    todo, seen = [0], []
    while todo:
        seen.append(node := todo.pop())
        first, count = nodes[node]
        if count == 0 and len(nodes) > 1:
            todo += [first, first + 1]
    assert sorted(seen) == list(range(len(nodes)))  # each is the child of one
    return boxes[seen], np.where(nodes[seen, 1:] == 0, -1, nodes[seen]), order


def plain_splits(vertices):
    """First triangle and count of each node as `unfolded` gives them, and the order; by the same rule, plainly."""
    lower, upper = vertices.min(axis=1), vertices.max(axis=1)
    centres = (lower + upper) * np.float32(0.5)
    order, todo, seen = np.arange(len(vertices)), [(0, len(vertices))], []

    def half_area(members):
        x, y, z = (upper[members].max(axis=0) - lower[members].min(axis=0)).astype(np.float64)
        return x * y + y * z + z * x

    while todo:
        begin, end = todo.pop()
        seen.append((begin, end - begin) if end - begin <= LEAF_TRIANGLES else (-1, -1))
        if end - begin <= LEAF_TRIANGLES:
            continue
        members, best, first = order[begin:end], np.inf, None
        for axis in range(3):
            values = centres[members, axis]
            if (width := values.max() - values.min()) < 1e-7:
                continue
            bins = np.minimum(BINS - 1, ((values - values.min()) / width * np.float32(BINS)).astype(int))
            for cut in range(BINS - 1):
                left = bins <= cut
                if left.any() and not left.all():
                    cost = half_area(members[left]) * left.sum() + half_area(members[~left]) * (~left).sum()
                    best, first = (cost, left) if cost < best else (best, first)
        middle = (begin + end) // 2
        if first is not None:
            middle = begin + first.sum()
            left, right, first = begin, end - 1, dict(zip(members, first))
            while left <= right:
                if first[order[left]]:
                    left += 1
                else:
                    order[left], order[right] = order[right], order[left]
                    right -= 1
        todo += [(begin, middle), (middle, end)]
    return np.array(seen), order


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 400), seed=st.integers(0, 99))
def test_it_is_the_tree_of_the_plain_rule(count, seed):
    vertices = soup(count, seed)
    _, nodes, order = unfolded(build_tree(vertices))
    plain, plain_order = plain_splits(vertices)
    np.testing.assert_array_equal(nodes, plain)
    np.testing.assert_array_equal(order, plain_order)


@pytest.mark.parametrize("branch", [10, 300, 10**6])
def test_it_is_the_same_for_any_number_of_threads_and_size_of_branches(monkeypatch, branch):
    vertices = soup(5000, 0)
    expected = unfolded(build_tree(vertices))
    monkeypatch.setattr(bvh, "BRANCH", branch)
    monkeypatch.setattr(bvh, "cores", lambda: 1)
    once = build_tree(vertices)
    for threads in (2, 3, 8):
        monkeypatch.setattr(bvh, "cores", lambda threads=threads: threads)
        for array, again in zip(once, build_tree(vertices)):
            np.testing.assert_array_equal(array, again)
    for array, again in zip(expected, unfolded(once)):
        np.testing.assert_array_equal(array, again)


@pytest.mark.parametrize("size", [1e30, 3e38])
def test_coordinates_beyond_all_reason_make_a_tree(size):
    vertices = np.random.default_rng(0).choice(np.array([-size, 0.0, 1.0, size]), (300, 3, 3)).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        order = build_tree(vertices)[2]
    np.testing.assert_array_equal(np.sort(order), np.arange(300))


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 2000), seed=st.integers(0, 99), size=st.sampled_from([0.0, 1e-6, 0.3, 30.0]))
def test_every_box_holds_its_triangles(count, seed, size):
    vertices = soup(count, seed, size)
    boxes, nodes, order = build_tree(vertices)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    leaves = nodes[:, 1] > 0
    assert nodes[leaves, 1].max() <= LEAF_TRIANGLES and nodes[leaves, 1].sum() == count
    corners = vertices[order]
    for (first, triangles), box in zip(nodes[leaves], boxes[leaves]):
        assert (np.abs(corners[first : first + triangles] - box[:3]) <= box[3:]).all()
    for (child, _), box in zip(nodes[~leaves], boxes[~leaves]):
        for inner in boxes[child : child + 2]:
            assert (np.abs(inner[:3] - box[:3]) + inner[3:] <= box[3:] * (1 + 1e-5) + 1e-5).all()


def test_a_scene_without_triangles_is_one_empty_leaf():
    boxes, nodes, order = build_tree(np.zeros((0, 3, 3), np.float32))
    assert boxes.tolist() == [[0.0] * 6] or np.abs(boxes).max() < 1e-30
    assert nodes.tolist() == [[0, 0]] and len(order) == 0


def test_a_tree_of_nested_triangles_stays_shallow():
    """Each split would part one triangle from the others; from some depth on they are halved."""
    vertices = np.float32(2.0) ** -np.arange(120, dtype=np.float32)[:, None, None] * np.eye(3, dtype=np.float32)
    vertices = np.repeat(vertices, 40, axis=0)
    _, nodes, _ = build_tree(vertices)
    depth, level = 0, [0]
    while level := [child for node in level if nodes[node, 1] == 0 for child in nodes[node, 0] + np.arange(2)]:
        depth += 1
    assert depth < bvh.STACK_SIZE
