"""Which widths and blocks keep the most importance within a limit on a cost that is a sum over layers, exactly.

A layer costs what its source and target widths say. Widths are eliminated one after the other (Bertele & Brioschi,
Nonserial Dynamic Programming, 1972): eliminating one leaves, for every choice of the widths that share a layer with
it, the most importance at each cost, a vector over `bins` steps of the limit. Where two such vectors meet, costs add
up (a max-plus convolution). Inside a residual block only its own widths are eliminated, which leaves a table over its
trunk; leaving the block out is one more entry of that table. Costs are rounded to bins, once or twice a width, so that
the sum may be off by a few bins; nothing else is approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from navprune.errors import UserError

Array = NDArray[np.float64]
Choice = dict[str, int]
"""{width: index of its level}, {block: 1 where it stays, 0 where not}."""


@dataclass(frozen=True)
class Factor:
    """What some layers cost at each combination of levels of their widths; `cost` has one dimension for each.

    `gain`, of the same shape, is importance that depends on them together, 0 or less, too; `block` the removable block
    that they lie in.
    """

    widths: tuple[str, ...]
    cost: Array
    block: str | None = None
    gain: Array | None = None

    def at(self, choice: Mapping[str, int]) -> tuple[int, ...]:
        """Where a choice lies in the arrays."""
        return tuple(choice[name] for name in self.widths)


@dataclass(frozen=True)
class Problem:
    """What there is to choose from.

    `gains` {width: importance of each of its levels}, `blocks` {block that may go: the widths inside it}, `own` {block:
    its importance beside theirs}. Of a block that goes neither costs nor gains count.
    """

    gains: Mapping[str, Array]
    factors: Sequence[Factor]
    blocks: Mapping[str, Collection[str]]
    own: Mapping[str, float] = field(default_factory=dict)

    def cost(self, choice: Mapping[str, int]) -> float:
        """The cost of a choice, without rounding."""
        return float(sum(factor.cost[factor.at(choice)] for factor in self._present(choice)))

    def gain(self, choice: Mapping[str, int]) -> float:
        """The importance that a choice keeps."""
        gone = {name for block, inside in self.blocks.items() if not choice[block] for name in inside}
        own = sum(gain for block, gain in self.own.items() if choice[block])
        own += sum(factor.gain[factor.at(choice)] for factor in self._present(choice) if factor.gain is not None)
        return own + float(sum(gain[choice[name]] for name, gain in self.gains.items() if name not in gone))

    def _present(self, choice: Mapping[str, int]) -> list[Factor]:
        return [factor for factor in self.factors if factor.block is None or choice[factor.block]]


def allocate(problem: Problem, limit: float, bins: int = 512) -> Choice:
    """The choice of most importance whose cost is `limit` at most, to a few parts of `bins`.

    Raises UserError where even the cheapest costs more.
    """
    if not limit > 0:
        raise UserError(f"no choice of widths and blocks costs {limit:g} or less; allow more")
    solver = _Solver(problem, limit / bins, bins)
    for block, inside in problem.blocks.items():
        solver.close(block, inside)
    left = set(problem.gains) - {name for inside in problem.blocks.values() for name in inside}
    while left:
        name = min(sorted(left), key=solver.reach)
        solver.eliminate(name)
        left.remove(name)
    final = solver.rest()
    if not np.isfinite(final.values).any():
        raise UserError(f"no choice of widths and blocks costs {limit:g} or less; allow more")
    choice: Choice = {}
    final.trace(choice, int(final.values.argmax()))
    return choice


@dataclass
class _Table:
    """The most importance [levels of each width..., bins] at each cost, and how to find what was chosen for it.

    `trace(choice, bin)` completes a choice of the table's own widths by what was eliminated.
    """

    widths: tuple[str, ...]
    values: Array
    trace: Callable[[Choice, int], None]


class _Solver:
    """Factors and tables that are still to be brought together."""

    def __init__(self, problem: Problem, step: float, bins: int) -> None:
        self.problem, self.step, self.size = problem, step, bins + 1
        self.factors, self.tables = list(problem.factors), list[_Table]()
        self.levels = {name: len(gain) for name, gain in problem.gains.items()}

    def reach(self, name: str) -> int:
        """Entries of the table that eliminating a width would leave."""
        parts = [part.widths for part in self.factors] + [part.widths for part in self.tables]
        met = {other for widths in parts if name in widths for other in widths}
        return int(np.prod([self.levels[other] for other in met - {name}], dtype=np.int64))

    def close(self, block: str, inside: Collection[str]) -> None:
        """Eliminate the widths inside a block, and let it be left out."""
        own = [factor for factor in self.factors if factor.block == block]
        rest = [factor for factor in self.factors if factor.block != block], self.tables
        self.factors, self.tables = own, []
        left = set(inside)
        while left:
            name = min(sorted(left), key=self.reach)
            self.eliminate(name)
            left.remove(name)
        table = self.rest()
        self.factors, self.tables = rest
        values = table.values + self.problem.own.get(block, 0.0)
        without = values[..., 0] < 0  # a block that costs nothing and is worth something stays
        values[..., 0] = np.where(without, 0.0, values[..., 0])

        def trace(choice: Choice, at: int) -> None:
            place = tuple(choice[name] for name in table.widths)
            choice[block] = int(not (at == 0 and without[place]))
            if choice[block]:
                table.trace(choice, at)
            else:
                choice.update(dict.fromkeys(inside, 0))

        self.tables.append(_Table(table.widths, values, trace))

    def eliminate(self, name: str) -> None:
        """Bring together all that depends on a width, and keep of its levels the best for each cost."""
        factors = [factor for factor in self.factors if name in factor.widths]
        tables = [table for table in self.tables if name in table.widths]
        self.factors = [factor for factor in self.factors if name not in factor.widths]
        self.tables = [table for table in self.tables if name not in table.widths]
        before = self.joined(tables)
        met = [*(factor.widths for factor in factors), before.widths]
        widths = tuple(dict.fromkeys(other for each in met for other in each if other != name))
        order = (*widths, name)
        costs = reduce(np.add, (self._spread(factor.cost, factor.widths, order) for factor in factors), np.zeros(()))
        shape = tuple(self.levels[other] for other in order)
        moved = np.broadcast_to(self._bins(costs), shape)
        added = (self._spread(factor.gain, factor.widths, order) for factor in factors if factor.gain is not None)
        joint = np.broadcast_to(reduce(np.add, added, np.zeros(())), shape)
        gains = self._spread(before.values, before.widths, order, bins=True)
        values = np.full((*shape[:-1], self.size), -np.inf)
        chosen = np.zeros(values.shape, np.int16)
        for level, gain in enumerate(self.problem.gains[name]):
            found = _shifted(gains[..., min(level, gains.shape[-2] - 1), :], moved[..., level])
            found += gain + joint[..., level, None]
            better = found > values
            values[better], chosen[better] = found[better], level

        def trace(choice: Choice, at: int) -> None:
            choice[name] = int(chosen[(*(choice[other] for other in widths), at)])
            before.trace(choice, at - int(moved[tuple(choice[other] for other in order)]))

        self.tables.append(_Table(widths, values, trace))

    def rest(self) -> _Table:
        """All that is left, as one table."""
        return self.joined([*self.tables, *map(self._as_table, self.factors)])

    def joined(self, tables: Iterable[_Table]) -> _Table:
        """Tables as one, over all their widths: their costs add up."""
        nothing = np.full(self.size, -np.inf)
        nothing[0] = 0.0
        return reduce(self._join, tables, _Table((), nothing, lambda choice, at: None))

    def _join(self, first: _Table, second: _Table) -> _Table:
        widths = tuple(dict.fromkeys((*first.widths, *second.widths)))
        a, b = (self._spread(table.values, table.widths, widths, bins=True) for table in (first, second))
        shape = np.broadcast_shapes(a.shape, b.shape)
        values, taken = np.full(shape, -np.inf), np.zeros(shape, np.int16)
        for at in range(self.size):
            part = a[..., at, None]
            if not np.isfinite(part).any():
                continue
            found = part + b[..., : self.size - at]
            place = values[..., at:]
            better = found > place
            np.copyto(place, found, where=better)
            np.copyto(taken[..., at:], np.int16(at), where=better)

        def trace(choice: Choice, at: int) -> None:
            mine = int(taken[(*(choice[name] for name in widths), at)])
            first.trace(choice, mine)
            second.trace(choice, at - mine)

        return _Table(widths, values, trace)

    def _as_table(self, factor: Factor) -> _Table:
        zero = np.zeros((*factor.cost.shape, self.size))
        zero[..., 1:] = -np.inf
        values = _shifted(zero, self._bins(factor.cost))
        values += 0.0 if factor.gain is None else factor.gain[..., None]
        return _Table(factor.widths, values, lambda choice, at: None)

    def _bins(self, costs: Array) -> NDArray[np.int64]:
        return np.minimum(np.rint(costs / self.step), self.size).astype(np.int64)

    def _spread(self, values: Array, own: tuple[str, ...], order: tuple[str, ...], bins: bool = False) -> Array:
        """The dimensions of an array in another order, with 1 for widths that it does not know."""
        last = (len(own),) if bins else ()
        known = [name for name in order if name in own]
        moved = values.transpose(*(own.index(name) for name in known), *last)
        shape = tuple(self.levels[name] if name in own else 1 for name in order)
        return moved.reshape(*shape, *((self.size,) if bins else ()))


def _shifted(values: Array, by: NDArray[np.int64]) -> Array:
    """Vectors [..., bins] moved up by so many bins each [...]; what moves beyond the last is lost."""
    size = values.shape[-1]
    index = np.arange(size) - by[..., None]
    source = np.broadcast_to(values, (*np.broadcast_shapes(values.shape[:-1], by.shape), size))
    found = np.take_along_axis(source, index.clip(min=0), axis=-1)
    return np.where(index >= 0, found, -np.inf)
