"""Which environment runs which episode next."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

STAY = 50
"""Episodes in a row for which an environment that loads its scenes anew stays in one."""


class EpisodeOrder(Protocol):
    """Says which episode an environment runs next, as an index, or None when nothing is left."""

    def next(self, env: int) -> int | None:
        """Index of the next episode of this environment."""

    def state_dict(self) -> dict[str, Any]:
        """Positions in the order."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to these positions."""


class Shuffled:
    """Each environment runs through permutations of its own, for ever; a function of seed, environment and count."""

    def __init__(
        self, episodes: int, num_envs: int, seed: int, scenes: NDArray[np.integer] | None = None, first: int = 0
    ) -> None:
        """Number of episodes; with the scene's number of each [E], an environment runs STAY of a scene in a row.

        first: what the first environment is counted as, where others run elsewhere.
        """
        self._episodes, self._seed, self._scenes, self._first = episodes, seed, scenes, first
        self._counts = [0] * num_envs
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def next(self, env: int) -> int | None:
        """Index of the next episode of this environment."""
        epoch, position = divmod(self._counts[env], self._episodes)
        self._counts[env] += 1
        if self._permutations.get(env, (None,))[0] != epoch:
            rng = np.random.default_rng([self._seed, self._first + env, epoch])
            permutation = rng.permutation(self._episodes)
            if self._scenes is not None:
                permutation = permutation[grouped(self._scenes[permutation], STAY)]
            self._permutations[env] = (epoch, permutation)
        return int(self._permutations[env][1][position])

    def state_dict(self) -> dict[str, Any]:
        """How many episodes each environment has begun."""
        return {"counts": list(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to these counts."""
        self._counts = list(state["counts"])


class Once:
    """Every episode once, in the data set's order, to whichever environment is free."""

    def __init__(self, episodes: int) -> None:
        self._episodes, self._next = episodes, 0

    def next(self, env: int) -> int | None:
        """Index of the next episode, None when all were given out."""
        if self._next == self._episodes:
            return None
        self._next += 1
        return self._next - 1

    def state_dict(self) -> dict[str, Any]:
        """How many episodes were given out."""
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to this many."""
        self._next = int(state["next"])


def grouped(kinds: NDArray[np.integer], stay: int) -> NDArray[np.int64]:
    """Positions [E] in an order that draws items of one kind together, `stay` at a time.

    kinds [E] says of which kind each item is. A group comes where its first item was among those of other groups,
    and items of one kind keep their order; groups of one change nothing.
    """
    by_kind = np.argsort(kinds, kind="stable")
    rank = np.arange(len(kinds)) - np.searchsorted(kinds[by_kind], kinds[by_kind])
    heads = by_kind[np.arange(len(kinds)) - rank % stay]
    return by_kind[np.argsort(heads, kind="stable")]
