"""What each weight is stored in, for a number of bytes or for a score that is to be kept."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastvq import entropy
from fastvq.compress import sensitivity
from fastvq.compress.allocate import Candidate, Choice, allocated
from fastvq.compress.examples import outputs_of
from fastvq.compress.frontier import Frontier
from fastvq.compress.schemes.codebook import CodebookScheme
from fastvq.compress.schemes.grids import encoded, matrix_of
from fastvq.compress.schemes.grouped import GroupedScheme
from fastvq.compress.schemes.outliers import OutlierScheme
from fastvq.compress.schemes.stepped import SteppedScheme
from fastvq.compress.weights import replaced
from fastvq.compress.writing import noise
from fastvq.runtime.encoding import Raw

__all__ = ["Allocation", "fewest_bytes", "schemes_of"]

# What there is to choose from.
_GROUPS = (0, 128, 64, 48, 32, 24)
_TOWARDS_FLOAT16 = tuple(GroupedScheme(8, group) for group in (16, 8, 4))
_CANDIDATES = (
    *(GroupedScheme(bits, group) for bits in range(2, 9) for group in _GROUPS),
    *_TOWARDS_FLOAT16,
    *(CodebookScheme(bits, group) for bits in (2, 3, 4) for group in (0, 128, 64, 32)),
    *(
        OutlierScheme(GroupedScheme(bits, group), share)
        for bits in (2, 3, 4, 5)
        for group in (0, 64)
        for share in (0.005, 0.02)
    ),
)
# Where files hold codes entropy coded: of a third of a bit to 7 bits, and then as above.
_STEPS = [2 ** (-k / 4) for k in range(-8, 20)]
_ENTROPY_CODED = (*map(SteppedScheme, _STEPS), *_TOWARDS_FLOAT16)
# The same for layers that multiply whole numbers, which have 7 bits.
_WHOLE_ENTROPY_CODED = (
    *(SteppedScheme(step, most=63) for step in _STEPS),
    *(GroupedScheme(7, group) for group in (128, 64, 32, 16)),
)
_TABLE_BYTES = 64  # of entropy coded codes: about what the frequencies take
_PROBE = GroupedScheme(3, 64)  # what a weight is stored in while its layer's damage is measured
_PROBED = 64  # examples on which that is measured, fewer where their values take more bytes:
_PROBED_BYTES = 1 << 28
_SAMPLED = 1 << 14  # values of a weight on which candidates are compared
_UNUSED = 0.01  # of a budget that may be left; 3 % are promised where weights permit
_ATTEMPTS = 8  # at a file of just the size; at the smallest one that keeps the score
_TOLD = 256  # bytes for the scores, which are told in the file and come last


class _Half(NamedTuple):
    """float16, as a candidate: for budgets beyond 8 bits."""

    def encode(self, weight):
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16)
        return Raw(weight if (np.isinf(half) & np.isfinite(weight)).any() else half)


class Allocation:
    """Schemes for the weights of a model.

    Parameters
    ----------
    writing : Writing
    whole : CompressedModel
        The float model.
    """

    def __init__(self, writing, whole):
        self._writing, self._whole = writing, whole
        self._candidates = self._all_candidates()
        self._smallest = self._size_within(self._least())
        self._rest = self._smallest - self._least()

    # ---- goals -------------------------------------------------------------------------------

    def within_bytes(self, wanted: int) -> Choice:
        """Schemes whose file is just below so many bytes."""
        budget = wanted - _TOLD
        if self._smallest > budget:
            raise ValueError(
                f"size_budget={wanted:,} cannot be kept: the smallest file that these schemes "
                f"make takes {self._smallest + _TOLD:,} bytes"
            )
        fits, best, too_many = self._least(), None, math.inf
        aim = budget - self._rest
        for _ in range(_ATTEMPTS):
            left = budget - self._size_within(aim)
            if left >= 0:
                fits, best = max(fits, aim), self._last
                if left <= _UNUSED * budget or not best.price:  # no more can be bought
                    break
            else:
                too_many = min(too_many, aim)
            # What lies between parts is not counted in theirs, nor is what tells of the schemes.
            aim = self._last.nbytes + left
            if not fits < aim < too_many:
                aim = (fits + min(too_many, budget)) // 2
        if best is None:
            self._size_within(self._least())
            best = self._last
        return best

    def within_drop(self, most_drop: float, judge, judged) -> Choice:
        """The smallest file found that keeps the score, by halving the range of sizes.

        Parameters
        ----------
        most_drop : float
        judge : as :func:`fastvq.compress.scores.judge_of` gives it
        judged : list of ndarray
            Examples that the schemes have not seen.
        """
        before = outputs_of(self._whole, judged)

        def most_lost(budget):
            return judge.most_lost(before, outputs_of(self._model_within(budget), judged))

        least, most = self._least(), self._most()
        bound = most_lost(most)
        if not bound <= most_drop:
            raise ValueError(
                f"max_drop={most_drop} cannot be shown on {len(judged[0])} examples that were "
                f"held out: even in float16 up to {bound:.3g} may be lost; give more examples"
            )
        fewest = fewest_bytes(least, most, lambda budget: most_lost(budget) <= most_drop)
        return allocated(self._candidates, fewest)

    def frontier(self, n_points: int, judge=None, judged=None) -> Frontier:
        """Sizes and scores of models from the smallest on, in even ratios of their weights."""
        found: dict = {"bytes": [], "expected dB": [], "score": []}
        outputs = None if judge is None else outputs_of(self._whole, judged)
        for budget in np.geomspace(max(self._least(), 1), max(self._most(), 1), n_points):
            small = self._model_within(int(budget))
            found["bytes"].append(small.nbytes)
            damage = self._last.damage
            found["expected dB"].append(-10 * math.log10(damage) if damage else math.inf)
            score = None if judge is None else judge.score(outputs_of(small, judged))
            found["score"].append(score)
        found["whole"] = self._whole.nbytes, None if judge is None else judge.score(outputs)
        return Frontier(found, name=None if judge is None else judge.name)

    def model(self, schemes: dict):
        """The model with every weight in its scheme."""
        return self._writing.model(schemes)

    def _model_within(self, budget):
        """The model with the best schemes of so many bytes, which are kept as the last ones."""
        self._last = allocated(self._candidates, budget)
        return self.model(schemes_of(self._last))

    def _size_within(self, budget):
        """Bytes of that model."""
        self._last = allocated(self._candidates, budget)
        return self._writing.model(schemes_of(self._last), corrected=False).nbytes

    def _least(self):
        return sum(min(c.nbytes for c in some) for some in self._candidates.values())

    def _most(self):
        return sum(max(c.nbytes for c in some) for some in self._candidates.values())

    # ---- candidates --------------------------------------------------------------------------

    def _all_candidates(self):
        """Of each weight: true bytes, and the damage that is expected."""
        damages = self._damages()
        return {name: self._candidates_of(name, damages[name]) for name in self._writing.names}

    def _candidates_of(self, name, damage):
        """Candidates of a weight to which the probe does so much damage: others do it in the ratio
        of their squared errors."""
        weight, importance = self._writing.weights[name], self._writing.counts.get(name)
        part, share = _sampled(weight)
        probe = _error(part, *_coded(part, _PROBE, importance), importance)
        unit = damage / probe if probe else 0.0
        found = [
            _candidate(scheme, part, share, importance, unit)
            for scheme in self._schemes()
            if not scheme.group or scheme.group < part.shape[1]
        ]
        return [*found, Candidate(_Half(), 2 * weight.values.size, 0.0)]

    def _schemes(self):
        if self._writing.coder == "raw":
            return _CANDIDATES
        return _WHOLE_ENTROPY_CODED if self._writing.in_whole_numbers else _ENTROPY_CODED

    def _damages(self):
        """What storing a weight in the probe's scheme does to the outputs: noise to signal.

        Errors are not made up for: on a few hundred examples those of a layer with more inputs can
        be, nearly all, and only there (the classifier of MobileNetV2 then seemed to bear 2 bits,
        and the model lost 4 dB). Without examples, or floats among the outputs, it is what the
        scheme does to the weight itself.
        """
        writing = self._writing
        ways = {name: lambda name=name: self._probed(name) for name in writing.in_order()}
        found = {}
        if writing.arrays is not None:
            found = sensitivity.damages(
                writing.graph, writing.arrays, ways, writing.threads, _PROBED, _PROBED_BYTES
            )
        for name in [] if found else ways:
            found[name] = 10 ** (-noise(writing.weights[name].values, self._probe_of(name)) / 10)
        return {name: float(np.clip(damage, 1e-12, 1e12)) for name, damage in found.items()}

    def _probed(self, name):
        """The graph with one weight in the probe's scheme."""
        return replaced(self._writing.graph, {name: self._probe_of(name)})

    def _probe_of(self, name):
        weight, importance = self._writing.weights[name], self._writing.counts.get(name)
        return encoded(_PROBE, weight.values, importance=importance, leading=weight.leading)


def fewest_bytes(least: int, most: int, kept) -> int:
    """The fewest of some numbers of bytes for which `kept` holds, as it does for the most: by
    halving the range, in ratios.

    All are judged by the same examples, and what holds for few bytes is taken to hold for more: so
    one error of judgement in twenty stays one (`test_a_drop_that_holds_in_19_of_20_fits`).
    """
    for _ in range(_ATTEMPTS):
        middle = int(math.sqrt(least * most))
        if kept(middle):
            most = middle
        else:
            least = middle
    return most


def schemes_of(choice: Choice) -> dict:
    """The scheme of each weight."""
    return {name: candidate.scheme for name, candidate in choice.chosen.items()}


def _sampled(weight):
    """Some rows of a weight, evenly spread, and how many rows each stands for."""
    matrix = matrix_of(weight.values, weight.leading)
    n = max(1, min(len(matrix), max(4, _SAMPLED // matrix.shape[1])))
    return matrix[np.arange(n) * len(matrix) // n], len(matrix) / n


def _candidate(scheme, part, share, importance, unit):
    """A scheme for a weight of which `part` is a share of the rows."""
    grid, codes = _coded(part, scheme, importance)
    nbytes = scheme.nbytes(len(part) * share, part.shape[1])
    if isinstance(scheme, SteppedScheme):
        bits = entropy.entropy(codes.reshape(-1))
        nbytes += math.ceil(bits / 8 * codes.size * share) + _TABLE_BYTES
    return Candidate(scheme, nbytes, unit * _error(part, grid, codes, importance))


def _coded(matrix, scheme, importance):
    grid = scheme.fit(matrix, importance)
    return grid, grid.nearest(0, matrix)


def _error(matrix, grid, codes, importance):
    error = (grid.values(0, codes) - matrix.astype(np.float64)) ** 2
    return float((error if importance is None else error * importance).sum())
