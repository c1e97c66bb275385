"""Prototype: an expert that plans with what its agent has seen; unseen obstacles cost `unseen` times as much as free floor."""

import heapq
import math

import numba
import numpy as np

from fields import look, worth

P = {"cell": 0.06, "unseen": 1.0, "block": 60.0, "price": 0.5, "clear": 0.15, "feel": 0.3, "tau": 0.02, "margin": 0.01, "tie": 0.002}


@numba.njit(cache=True)
def march(slowness, gi, gj, cell, ai, aj, slack):
    """Cost to the goal (gi, gj in cells) of all cells that are not costlier than the agent's (ai, aj) and `slack`."""
    rows, columns = slowness.shape
    value = np.full((rows, columns), np.inf)
    done = np.zeros((rows, columns), np.bool_)
    heap = [(0.0, 0, 0)]
    heap.pop()
    for i in range(int(gi) - 1, int(gi) + 3):
        for j in range(int(gj) - 1, int(gj) + 3):
            if 0 <= i < rows and 0 <= j < columns:
                value[i, j] = math.hypot(i - gi, j - gj) * cell * slowness[i, j]
                heapq.heappush(heap, (value[i, j], i, j))
    limit = np.inf
    while len(heap):
        v, i, j = heapq.heappop(heap)
        if v > limit:
            break
        if done[i, j]:
            continue
        done[i, j] = True
        if i == ai and j == aj:
            limit = v + slack
        for d in range(4):
            a = i + (1 if d == 0 else -1 if d == 1 else 0)
            b = j + (1 if d == 2 else -1 if d == 3 else 0)
            if a < 0 or b < 0 or a >= rows or b >= columns or done[a, b]:
                continue
            x = min(value[a - 1, b] if a > 0 else np.inf, value[a + 1, b] if a + 1 < rows else np.inf)
            y = min(value[a, b - 1] if b > 0 else np.inf, value[a, b + 1] if b + 1 < columns else np.inf)
            f = slowness[a, b] * cell
            if abs(x - y) < f:
                new = 0.5 * (x + y + math.sqrt(2 * f * f - (x - y) ** 2))
            else:
                new = min(x, y) + f
            if new < value[a, b]:
                value[a, b] = new
                heapq.heappush(heap, (new, a, b))
    for i in range(rows):
        for j in range(columns):
            if not done[i, j]:
                value[i, j] = 1e3
    return value


@numba.njit(cache=True)
def see(free, known, x, z, heading, hfov, rays, feel):
    """Marks the obstacles that rays and touch find; x, z, feel in cells."""
    rows, columns = free.shape
    for r in range(rays):
        h = heading + hfov * ((r + 0.5) / rays - 0.5)
        s, c = -0.5 * math.sin(h), -0.5 * math.cos(h)
        a, b = x, z
        for _ in range(400):
            a += s
            b += c
            i, j = int(round(a)), int(round(b))
            if i < 0 or j < 0 or i >= rows or j >= columns:
                break
            if not free[i, j]:
                for u in range(max(0, i - 2), min(rows, i + 3)):
                    for v in range(max(0, j - 2), min(columns, j + 3)):
                        known[u, v] |= not free[u, v]
                break
    reach = int(math.ceil(feel))
    for i in range(int(round(x)) - reach, int(round(x)) + reach + 1):
        for j in range(int(round(z)) - reach, int(round(z)) + reach + 1):
            if 0 <= i < rows and 0 <= j < columns and not free[i, j] and math.hypot(i - x, j - z) <= feel:
                known[i, j] = True


@numba.njit(cache=True)
def holds(field, known, planned, i, j):
    """Whether the way down the field from a cell meets no obstacle that was not known when it was planned."""
    rows, columns = field.shape
    for _ in range(1000):
        v = field[i, j]
        if v >= 1e3:
            return False
        if known[i, j] and not planned[i, j]:
            return False
        bi, bj, best = i, j, v
        for di in range(-1, 2):
            for dj in range(-1, 2):
                a, b = i + di, j + dj
                if 0 <= a < rows and 0 <= b < columns and field[a, b] < best:
                    bi, bj, best = a, b, field[a, b]
        if bi == i and bj == j:
            return True
        i, j = bi, bj
    return True


@numba.njit(cache=True)
def prices(free, near, known, unseen, block, price):
    out = np.empty(free.shape)
    for i in range(free.shape[0]):
        for j in range(free.shape[1]):
            if free[i, j]:
                out[i, j] = 1 + price * near[i, j]
            else:
                out[i, j] = block if known[i, j] else unseen
    return out


class Memory:
    """What the agent of one episode has seen and plans."""

    def __init__(self, shape):
        self.known, self.planned, self.field = np.zeros(shape, bool), None, None


class Expert:
    def __init__(self):
        self.grids, self.memories, self.plans, self.calls = {}, {}, 0, 0

    def grid(self, finder):
        key = id(finder)
        if key not in self.grids:
            (x0, _, z0), (x1, _, z1) = finder.bounds
            x0, z0 = x0 - 0.3, z0 - 0.3
            xs, zs = np.arange(x0, x1 + 0.3, P["cell"]), np.arange(z0, z1 + 0.3, P["cell"])
            points = np.stack(np.meshgrid(xs, [0.0], zs, indexing="ij"), -1).reshape(-1, 3)
            free = finder.is_navigable(points)
            clear = np.zeros(len(points))
            clear[free] = finder.obstacle_distance(points[free], P["clear"])
            near = np.clip(1 - clear / P["clear"], 0, 1).reshape(len(xs), len(zs))
            self.grids[key] = free.reshape(len(xs), len(zs)), near, x0, z0
        return self.grids[key]

    def begin(self, envs):
        for env in envs:
            self.memories.pop(int(env), None)

    def values(self, envs, finder, positions, headings, goals, distances, *, success_distance, forward_step, turn_angle, sliding):
        free, near, x0, z0 = self.grid(finder)
        q, cell = np.empty((len(envs), 4)), P["cell"]
        for n, env in enumerate(envs):
            self.calls += 1
            memory = self.memories.setdefault(int(env), Memory(free.shape))
            x, z = (positions[n, 0] - x0) / cell, (positions[n, 2] - z0) / cell
            i, j = int(round(x)), int(round(z))
            see(free, memory.known, x, z, headings[n], math.pi / 2, 64, P["feel"] / cell)
            if memory.field is None or not holds(memory.field, memory.known, memory.planned, i, j):
                memory.planned = memory.known.copy()
                slow = prices(free, near, memory.planned, P["unseen"], P["block"], P["price"])
                memory.field = march(slow, (goals[n, 0] - x0) / cell, (goals[n, 2] - z0) / cell, cell, i, j, 0.8)
                self.plans += 1
            worth(memory.field, x, z, headings[n], turn_angle, round(math.pi / turn_angle), forward_step / cell, P["tau"], P["margin"], P["tie"], q[n])
        q[:, 0] = np.where(distances < success_distance, 10.0, -1.0)
        return q


EXPERT = Expert()


def use(settings):
    from navprune.tasks import pointnav

    P.update(settings)
    kind = pointnav.PointNav
    if not hasattr(kind, "plain_begin"):
        kind.plain_begin = kind.begin
    def begin(self, envs, episodes):
        kind.plain_begin(self, envs, episodes)
        EXPERT.begin(envs)
    def labels(self, envs):
        positions, headings = self._poses.positions.astype(np.float64), self._poses.headings
        q = np.empty((len(envs), 4))
        for finder, rows in self._poses.by_scene(envs):
            there = envs[rows]
            q[rows] = EXPERT.values(there, finder, positions[there], headings[there], self.goals[there], self.distance[there], **self._expert.keywords)
        self.q = q
        return q.argmax(1)
    kind.begin, kind.expert_actions = begin, labels
