"""Large codebooks: look for the nearest codeword in a few groups of them only.

The codewords are clustered themselves, into about √k groups. A row measures its distance to the
groups' centres and scans the `n_probes` nearest groups in full, as an inverted file does with a
data base (Jégou, Douze & Schmid, "Product quantization for nearest neighbor search", IEEE Trans.
PAMI 33, 2011); √k·(1 + n_probes) distances instead of k. Rows are brought together by group, so
that every group is one call of the exact kernel, which shares its work among many rows.

Which codewords a row sees follows from that row and the codebook; of these it takes the nearest
(the first one of equally near ones). So the code of a row depends on no other row here, too.

What it misses is measured: a row finds its nearest codeword if that one's group is among those that
it probes. The rank of that group, for a sample of rows, tells the recall of every `n_probes` at
once.
"""

import numpy as np

from fastvq import kernels
from fastvq.vq._rows import Rows, spans

__all__ = ["Probes", "ProbingAssigner", "group_codewords", "probes_for"]

_GROUP_ROUNDS = 8  # of Lloyd's iterations over the codewords
_BLOCK_VALUES = 1 << 22  # probes in flight
_PAIR_VALUES = 1 << 20  # distances to centres in flight
_SAMPLE_ROWS = 2048  # rows that recall is measured on, half of them to choose, half to report


class Probes:
    """A codebook in groups.

    Parameters
    ----------
    codebook : ndarray of shape (k, d), float32 or float64
    groups : ndarray of int32, shape (k,)
        The group of each codeword.
    """

    def __init__(self, codebook, groups, n_threads=None):
        n_groups = int(groups.max()) + 1
        sums, counts = kernels.sums(codebook, groups, n_groups, n_threads=n_threads)
        order = np.argsort(groups, kind="stable").astype(np.int32)
        parts = np.split(order, np.cumsum(np.bincount(groups, minlength=n_groups))[:-1])
        self.members = [part for part in parts if len(part)]  # ascending codes
        filled = counts > 0
        self.centres = (sums[filled] / counts[filled, None]).astype(codebook.dtype)
        self.books = [kernels.widened(kernels.prepare(codebook[part])) for part in self.members]
        self.place = np.empty(len(codebook), np.intp)  # of the group of each codeword
        for place, part in enumerate(self.members):
            self.place[part] = place

    def assign(self, rows, n_probes, codes=None):
        """The nearest codeword found for each row: (n,) int32, or the dtype of `codes`."""
        if codes is None:
            codes = np.empty(len(rows), np.int32)
        n_probes = min(n_probes, len(self.members))
        for span in spans(len(rows), max(1024, _BLOCK_VALUES // n_probes)):
            some = rows.subset(np.arange(span.start, span.stop))
            codes[span] = self._scan(some, self._nearest_groups(some, n_probes))[0]
        return codes

    def _scan(self, rows, probed):
        """Nearest codewords in the groups (n, n_probes) of each row, and the distances to them."""
        nearest = np.full(len(rows), np.inf)
        codes = np.zeros(len(rows), np.int32)
        order = np.argsort(probed.ravel(), kind="stable")
        bounds = np.searchsorted(probed.ravel()[order], np.arange(len(self.members) + 1))
        for members, book, start, stop in zip(
            self.members, self.books, bounds[:-1], bounds[1:], strict=True
        ):
            if start == stop:
                continue
            at = order[start:stop] // probed.shape[1]  # ascending: the order is stable
            some = rows.subset(at)
            found = some.assign(book)
            distances = some.distances(book, found)
            found = members[found]
            closer = distances < nearest[at]
            closer |= (distances == nearest[at]) & (found < codes[at])
            nearest[at[closer]] = distances[closer]
            codes[at[closer]] = found[closer]
        return codes, nearest

    def _nearest_groups(self, rows, n_probes):
        """The groups (n, n_probes) whose centres are nearest to each row, in any order."""
        probed = np.empty((len(rows), n_probes), np.int32)
        for span, distances in self._to_centres(rows):
            if n_probes < len(self.members):
                probed[span] = np.argpartition(distances, n_probes - 1, axis=1)[:, :n_probes]
            else:
                probed[span] = np.arange(n_probes)
        return probed

    def ranks(self, rows, codes):
        """How many centres are nearer to each row than that of the group of its code."""
        ranks = np.empty(len(rows), np.intp)
        for span, distances in self._to_centres(rows):
            own = np.take_along_axis(distances, self.place[codes[span]][:, None], axis=1)
            ranks[span] = (distances < own).sum(axis=1)
        return ranks

    def _to_centres(self, rows):
        book = kernels.widened(kernels.prepare(self.centres))
        for span, piece in rows.pieces(n_rows=max(64, _PAIR_VALUES // len(self.centres))):
            yield span, kernels.pairwise(piece, book, n_threads=rows.n_threads)


class ProbingAssigner:
    """Assigns all rows by probing in every iteration of a fit: see `_plans.PlainAssigner`.

    Groups follow the codewords by one iteration of their own in each step. A row keeps the code
    that it had where probing finds no nearer codeword, so that no step raises the inertia.
    """

    def __init__(self, rows, recall):
        self._rows, self._recall = rows, recall
        self._groups = self._n_probes = None
        self._codes = None

    def step(self, codebook):
        rows = self._rows
        self._groups = group_codewords(codebook, self._groups, rows.n_threads)
        probes = Probes(codebook, self._groups, rows.n_threads)
        if self._n_probes is None:
            self._n_probes, _ = probes_for(probes, rows, codebook, self._recall)
        codes = probes.assign(rows, self._n_probes)
        book = kernels.prepare(codebook)
        distances = rows.distances(book, codes)
        if self._codes is not None:
            before = rows.distances(book, self._codes)
            kept = before < distances
            codes[kept], distances[kept] = self._codes[kept], before[kept]
        self._codes = codes
        return codes.copy(), distances


def group_codewords(codebook, groups=None, n_threads=None):
    """Clusters codewords into about √k groups, (k,) int32; from `groups`, by one iteration."""
    n_groups = max(1, round(len(codebook) ** 0.5))
    words = Rows(codebook, dtype=codebook.dtype, n_threads=n_threads)
    if groups is None:
        first = np.random.RandomState(0).permutation(len(codebook))[:n_groups]
        centres, rounds = codebook[first], _GROUP_ROUNDS
        groups = words.assign(kernels.prepare(centres))
    else:
        centres, rounds = np.zeros((n_groups, codebook.shape[1]), codebook.dtype), 1
    for _ in range(rounds):
        centres = words.centroids(*words.sums(groups, n_groups), centres)
        groups = words.assign(kernels.prepare(centres))
    return groups


def probes_for(probes, rows, codebook, recall):
    """The probes that find the nearest codeword of a share `recall` of the rows; the share that
    they found of other rows."""
    step = max(1, len(rows) // _SAMPLE_ROWS)
    sample = rows.subset(np.arange(0, len(rows), step)[:_SAMPLE_ROWS])
    ranks = probes.ranks(sample, sample.assign(kernels.prepare(codebook)))
    chosen, other = np.sort(ranks[::2]), ranks[1::2] if len(ranks) > 1 else ranks
    n_probes = int(chosen[max(0, int(np.ceil(recall * len(chosen))) - 1)]) + 1
    return n_probes, float(np.mean(other < n_probes))
