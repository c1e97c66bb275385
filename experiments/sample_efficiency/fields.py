"""Prototype: cost-to-go fields on a grid (fast marching), with a price for being near obstacles."""

import heapq
import math

import numba
import numpy as np

from navprune.tasks import STOP
from navprune.tasks.expert import shortest_path_actions

CELL = 0.05
P = {"clear": 0.3, "price": 2.0, "power": 1.0, "block": 30.0, "margin": 0.01, "tau": 0.02, "stride": 1.0, "tie": 0.002, "field": 0.0, "temperature": 0.0, "regret": 0.0, "burst": 0.0, "sharp": 1.0, "beta_power": 1.0}


@numba.njit(cache=True)
def march(slowness, start_i, start_j, offset_i, offset_j, cell):
    rows, columns = slowness.shape
    value = np.full((rows, columns), np.inf)
    done = np.zeros((rows, columns), np.bool_)
    heap = [(0.0, 0, 0)]
    heap.pop()
    for i in range(start_i - 2, start_i + 3):
        for j in range(start_j - 2, start_j + 3):
            if 0 <= i < rows and 0 <= j < columns:
                value[i, j] = math.hypot(i - offset_i, j - offset_j) * cell * slowness[i, j]
                heapq.heappush(heap, (value[i, j], i, j))
    while len(heap):
        v, i, j = heapq.heappop(heap)
        if done[i, j]:
            continue
        done[i, j] = True
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
    return value


@numba.njit(cache=True)
def look(field, x, z):
    i = min(max(x, 0.0), field.shape[0] - 1.001)
    j = min(max(z, 0.0), field.shape[1] - 1.001)
    a, b = int(i), int(j)
    s, t = i - a, j - b
    return (1 - s) * ((1 - t) * field[a, b] + t * field[a, b + 1]) + s * ((1 - t) * field[a + 1, b] + t * field[a + 1, b + 1])


@numba.njit(cache=True)
def worth(field, x, z, heading, angle, half, step, tau, margin, tie, q):
    """x, z in cells; step in cells."""
    count = 2 * half
    here = look(field, x, z)
    gain = np.empty(count)
    for k in range(count):
        h = heading + (k - half + 1) * angle
        s, c = math.sin(h), math.cos(h)
        end = look(field, x - step * s, z - step * c)
        mid = look(field, x - 0.5 * step * s, z - 0.5 * step * c)
        gain[k] = here - max(end, mid - 0.2)
    centre = half - 1
    for a in range(3):
        at = (0, 1, -1)[a]
        best, kept, turns = -1e9, 0, 0
        for k in range(count):
            n = abs(k - centre - at)
            n = min(n, count - n)
            if gain[k] - tie * n > best:
                best, kept, turns = gain[k] - tie * n, k, n
        if a == 0:
            q[1] = gain[centre] - tau * turns + margin
        else:
            q[1 + a] = gain[kept] - tau * (turns + 1)


class Maps:
    def __init__(self):
        self.grids, self.fields = {}, {}

    def grid(self, finder):
        key = id(finder)
        if key not in self.grids:
            (x0, _, z0), (x1, _, z1) = finder.bounds
            x0, z0 = x0 - 0.3, z0 - 0.3
            xs, zs = np.arange(x0, x1 + 0.3, CELL), np.arange(z0, z1 + 0.3, CELL)
            points = np.stack(np.meshgrid(xs, [0.0], zs, indexing="ij"), -1).reshape(-1, 3)
            free = finder.is_navigable(points)
            clear = np.zeros(len(points))
            clear[free] = finder.obstacle_distance(points[free], max(P["clear"], 0.01))
            near = np.clip(1 - clear / max(P["clear"], 0.01), 0, 1) ** P["power"]
            slowness = np.where(free, 1 + P["price"] * near, P["block"]).reshape(len(xs), len(zs))
            self.grids[key] = (slowness, x0, z0)
        return self.grids[key]

    def field(self, finder, goal):
        key = (id(finder), goal[0], goal[2])
        if key not in self.fields:
            slowness, x0, z0 = self.grid(finder)
            i, j = (goal[0] - x0) / CELL, (goal[2] - z0) / CELL
            if len(self.fields) > 400:
                self.fields.pop(next(iter(self.fields)))
            self.fields[key] = march(slowness, round(i), round(j), i, j, CELL)
        return self.fields[key]


MAPS = Maps()


def values(finder, positions, headings, goals, distances, *, success_distance, forward_step, turn_angle, sliding):
    q = np.empty((len(positions), 4))
    _, x0, z0 = MAPS.grid(finder)
    for n, (p, h, g) in enumerate(zip(positions, headings, goals)):
        field = MAPS.field(finder, g)
        worth(field, (p[0] - x0) / CELL, (p[2] - z0) / CELL, h, turn_angle, round(math.pi / turn_angle),
              P["stride"] * forward_step / CELL, P["tau"], P["margin"], P["tie"], q[n])
    q[:, 0] = np.where(distances < success_distance, 10.0, -1.0)
    return q


def actions(finder, *state, **task):
    return values(finder, *state, **task).argmax(1)


def use(settings):
    """Take over prototype settings; with `field` labels come from fields."""
    from navprune.tasks import pointnav

    P.update(settings)
    if settings.get("plain"):
        from navprune.tasks import expert

        expert.CLOSE_COST, expert.SIDE = 0.0, 1
    if settings.get("wary"):
        import wary

        wary.P.update({key: value for key, value in settings.items() if key in wary.P})
        pointnav.shortest_path_actions = wary.actions
    if settings.get("unseen"):
        import seen

        return seen.use({key: value for key, value in settings.items() if key in seen.P})
    if not settings.get("field"):
        return
    own = pointnav.PointNav.expert_actions

    def labels(self, envs):
        positions, headings = self._poses.positions.astype(np.float64), self._poses.headings
        self.q = np.empty((len(envs), 4))
        for finder, rows in self._poses.by_scene(envs):
            there = envs[rows]
            state = positions[there], headings[there], self.goals[there], self.distance[there]
            self.q[rows] = values(finder, *state, **self._expert.keywords)
        return self.q.argmax(1)

    pointnav.PointNav.expert_actions = labels
