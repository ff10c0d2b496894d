"""Which weight gets how many bits: the least damage that a number of bytes can buy.

Every weight has candidates, each with its true bytes and the damage that it is expected to do. For
a price per byte each weight takes the candidate that is cheapest, damage and bytes together; the
price falls until the bytes are used up (Everett, "Generalized Lagrange multiplier method", 1963;
for quantizers Shoham and Gersho, 1988). Between two prices lies what no price can buy: the rest of
the bytes goes, move by move, to whatever lowers the damage most and still fits.

A model of few weights, or with one that is most of it, has wide gaps there: what was bought for
small change is missing for the one large step. So all combinations are weighed too, by dynamic
programming over the bytes above the least, in so many parts, and the better of both is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Candidate", "Choice", "allocated"]

_PARTS = 4096  # of the bytes above the least, that combinations are counted in


class Candidate(NamedTuple):
    """A way to store a weight: `scheme` is the caller's, and comes back in the choice."""

    scheme: object
    nbytes: int
    damage: float


class Choice(NamedTuple):
    """What each weight gets.

    Attributes
    ----------
    chosen : dict of name to Candidate
    nbytes : int
    damage : float
    price : float
        The damage that another byte would take away; 0 where nothing is left to buy.
    next : (str, Candidate) or None
        What such bytes would buy: which candidate for which weight.
    """

    chosen: dict[str, Candidate]
    nbytes: int
    damage: float
    price: float
    next: tuple[str, Candidate] | None = None


def allocated(candidates: Mapping[str, Sequence[Candidate]], budget: int) -> Choice | None:
    """The candidates with the least damage found within so many bytes; None if none fit.

    Examples
    --------
    >>> from fastvq.compress.allocate import Candidate, allocated
    >>> few, many = Candidate("few", 10, 4.0), Candidate("many", 20, 1.0)
    >>> choice = allocated({"a": [few, many], "b": [few, many._replace(damage=3.0)]}, 35)
    >>> {name: candidate.scheme for name, candidate in choice.chosen.items()}
    {'a': 'many', 'b': 'few'}
    """
    hulls = {name: _hull(some) for name, some in candidates.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(candidate.nbytes for candidate in chosen.values())
    if left < 0:
        return None
    for _, name, candidate in _steps(hulls):
        more = candidate.nbytes - chosen[name].nbytes
        if more > left:
            break
        chosen[name], left = candidate, left - more
    ways = chosen, _combined(candidates, budget)
    left, chosen = min(
        ((_fill(way, candidates, budget - _total(way).nbytes), way) for way in ways),
        key=lambda found: _total(found[1]).damage,
    )
    price, following = _next(chosen, candidates)
    return Choice(chosen, budget - left, _total(chosen).damage, price, following)


def _next(chosen, candidates):
    """What more bytes would be spent on first, and the damage that each of them takes away."""
    moves = [
        (_worth(chosen[name], candidate), (name, candidate))
        for name, some in candidates.items()
        for candidate in some
        if candidate.nbytes > chosen[name].nbytes and candidate.damage < chosen[name].damage
    ]
    return max(moves, key=lambda move: move[0], default=(0.0, None))


def _total(chosen):
    """All that was chosen, as if it were one candidate."""
    found = [*chosen.values()]
    return Candidate(None, sum(c.nbytes for c in found), sum(c.damage for c in found))


def _combined(candidates, budget):
    """The best combination, if every step above a weight's fewest bytes cost whole parts."""
    least = {name: min(c.nbytes for c in some) for name, some in candidates.items()}
    spare = budget - sum(least.values())
    part = max(1, -(-spare // _PARTS))
    n = spare // part + 1
    damages, picked = np.zeros(n), {}
    for name, some in candidates.items():
        before, damages = damages, np.full(n, np.inf)
        picked[name] = picks = np.zeros(n, np.int64)
        for i, candidate in enumerate(some):
            steps = -(-(candidate.nbytes - least[name]) // part)
            offered = before[: max(n - steps, 0)] + candidate.damage
            better = steps + np.flatnonzero(offered < damages[steps:])
            damages[better], picks[better] = offered[better - steps], i
    chosen, at = {}, n - 1
    for name in reversed(picked):
        chosen[name] = candidates[name][picked[name][at]]
        at -= -(-(chosen[name].nbytes - least[name]) // part)
    return {name: chosen[name] for name in candidates}


def _hull(candidates):
    """Those of some candidates that are the cheapest at some price, smallest first."""
    hull: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.nbytes, c.damage)):
        if hull and candidate.damage >= hull[-1].damage:
            continue
        while len(hull) > 1 and _worth(hull[-2], hull[-1]) <= _worth(hull[-2], candidate):
            hull.pop()
        hull.append(candidate)
    return hull


def _worth(few, many):
    """Damage that each byte more takes away."""
    return (few.damage - many.damage) / max(many.nbytes - few.nbytes, 1)


def _steps(hulls):
    """All steps to a next candidate, the most worth a byte first; of equals in order of names."""
    steps = [
        (_worth(hull[i - 1], hull[i]), name, hull[i])
        for name, hull in hulls.items()
        for i in range(1, len(hull))
    ]
    return sorted(steps, key=lambda step: -step[0])


def _fill(chosen, candidates, left):
    """Spend what is left, move by move; `chosen` is changed. What is left then."""
    while True:
        moves = [
            (chosen[name].damage - candidate.damage, name, candidate)
            for name, some in candidates.items()
            for candidate in some
            if candidate.nbytes - chosen[name].nbytes <= left
        ]
        best = max(moves, key=lambda move: move[0], default=None)
        if best is None or not best[0] > 0:
            return left
        _, name, candidate = best
        left -= candidate.nbytes - chosen[name].nbytes
        chosen[name] = candidate
