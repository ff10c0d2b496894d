"""VectorQuantizer in the world: memory, threads, forks, Ctrl-C."""

import os
import sys
import threading
import time
import tracemalloc
import warnings

import numpy as np
import pytest

from fastvq import VectorQuantizer

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

MB = 1 << 20


class allocated:
    """Peak of what NumPy and Python allocate inside the block, beyond what they held before."""

    def __enter__(self):
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_):
        self.peak = tracemalloc.get_traced_memory()[1] - self._before
        tracemalloc.stop()


def table(dtype, order, folder, n=150_000, d=40):
    """Rows of which a float32 copy would take 160 bytes each."""
    X = np.random.RandomState(0).randint(0, 100, size=(n, d)).astype(dtype)
    if order == "F":
        return np.asfortranarray(X)
    if order == "strided":
        wide = np.zeros((n, 2 * d), dtype)
        wide[:, ::2] = X
        return wide[:, ::2]
    if order == "mapped":
        X.tofile(folder / "rows")
        return np.memmap(folder / "rows", dtype, "r", shape=X.shape)
    return X


FORMS = [
    ("float32", "C"),
    ("float32", "F"),
    ("float32", "strided"),
    ("float32", "mapped"),
    ("float64", "C"),
    ("float16", "C"),
    ("uint8", "F"),
    ("int8", "C"),
]


class TestMemory:
    @pytest.mark.parametrize(
        ("algorithm", "dtype", "order"),
        [
            *(("lloyd", *form) for form in FORMS),
            ("growing", "float32", "C"),
            ("growing", "uint8", "F"),
            ("minibatch", "float32", "C"),
            ("minibatch", "uint8", "F"),
        ],
    )
    def test_of_a_fit(self, algorithm, dtype, order, tmp_path):
        """At most 32 bytes a row, and a few codebooks."""
        X = table(dtype, order, tmp_path)
        vq = VectorQuantizer(30, algorithm=algorithm, max_iter=2, random_state=0, n_threads=2)
        vq.set_params(batch_size=5000)
        with allocated() as memory:
            vq.fit(X)
        assert memory.peak < 32 * len(X) + 8 * vq.codebook_.nbytes + 3 * MB

    @pytest.mark.parametrize("metric", ["euclidean", "cosine"])
    @pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
    def test_of_a_weighted_fit(self, init, metric):
        X = table("float32", "C", None, n=120_000, d=60)
        weight = np.random.RandomState(0).gamma(1, size=len(X))
        vq = VectorQuantizer(15, init=init, metric=metric, max_iter=2, random_state=0, n_threads=1)
        with allocated() as memory:
            vq.fit(X, sample_weight=weight)
        assert memory.peak < 32 * len(X) + 5 * MB

    def test_of_an_accelerated_fit(self):
        """A quarter of the input besides."""
        rng = np.random.RandomState(0)
        X = (rng.randn(60_000, 128) * np.logspace(0, -3, 128)).astype(np.float32)
        vq = VectorQuantizer(256, init=X[:256], max_iter=3, n_threads=2)
        with allocated() as memory:
            vq.fit(X)
        assert memory.peak < X.nbytes / 4 + 32 * len(X) + 12 * vq.codebook_.nbytes + 4 * MB

    @pytest.mark.parametrize(("dtype", "order"), FORMS)
    @pytest.mark.parametrize("output", ["codes", "onehot", "distances", "reconstruction"])
    def test_of_a_transform(self, output, dtype, order, tmp_path):
        """At most 8 MB a thread and the packed codebook, beside the result."""
        X = table(dtype, order, tmp_path)
        vq = VectorQuantizer(50, output=output, init=X[:50], max_iter=1, n_threads=2).fit(X)
        with allocated() as memory:
            Z = vq.transform(X)
        size = (
            Z.data.nbytes + Z.indices.nbytes + 2 * Z.indptr.nbytes
            if output == "onehot"
            else Z.nbytes
        )
        assert memory.peak < size + 16 * MB

    def test_of_a_score_and_a_stream(self):
        X = table("uint8", "C", None)
        vq = VectorQuantizer(50, init=X[:50], max_iter=1, n_threads=1).fit(X)
        with allocated() as memory:
            vq.score(X)
        assert memory.peak < 8 * MB
        blocks = (X[start : start + 10_000] for start in range(0, len(X), 10_000))
        out = np.empty(len(X), np.uint8)
        with allocated() as memory:
            vq.encode_blocks(blocks, out=out)
        assert memory.peak < 8 * MB

    @pytest.mark.parametrize(
        ("n", "d", "k", "dtype", "parameters"),
        [
            (150_000, 40, 30, "float32", {}),
            (150_000, 40, 30, "float64", {"algorithm": "lloyd"}),
            (60_000, 128, 256, "float32", {}),
            (60_000, 128, 64, "uint8", {"algorithm": "growing"}),
            (100_000, 16, 50, "float32", {"max_samples": 0.1}),
            (3_000, 64, 1_000, "float64", {"init": "random"}),
            (50_000, 4, 256, "int32", {"algorithm": "minibatch"}),
        ],
    )
    def test_of_an_estimate(self, n, d, k, dtype, parameters):
        X = table(dtype, "C", None, n, d)
        vq = VectorQuantizer(k, max_iter=2, random_state=0, n_threads=2, **parameters)
        estimate = vq.memory_estimate(n, d, dtype)
        with allocated() as fit:
            vq.fit(X)
        with allocated() as transform:
            vq.transform(X)
        # What "auto" may keep of all rows counts, and it goes without where that is not quicker.
        may_keep = 4 * n * (max(16, d // 8) + 2) if not parameters and d >= 64 else 0
        assert fit.peak <= estimate.fit <= 2 * fit.peak + 6 * MB + may_keep
        assert transform.peak <= estimate.transform <= 2 * transform.peak + 6 * MB

    @needs_linux
    def test_as_the_system_sees_it(self, run_python):
        """No allocation that NumPy does not know of."""
        result = run_python(
            """
import numpy as np
from fastvq import VectorQuantizer

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

X = np.empty((400_000, 40), np.float32)
for block in np.array_split(X, 40):
    block[...] = np.random.RandomState(0).rand(*block.shape)
vq = VectorQuantizer(50, algorithm="lloyd", max_iter=2, init=X[:50], n_threads=2)
vq.fit(X[:2000])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
vq.fit(X)
fit = status("VmHWM") - before
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
vq.transform(X)
print(fit, status("VmHWM") - before)
"""
        )
        fit, transform = map(int, result.stdout.split())
        assert fit < 32 * 400_000 + 8 * MB and transform < 16 * MB

    @needs_linux
    def test_none_left(self, run_python):
        """A limit on the address space: a clear error, nothing lost."""
        result = (
            run_python(
                """
import resource
import numpy as np
from fastvq import VectorQuantizer

X = np.random.RandomState(0).rand(1000, 4)
vq = VectorQuantizer(8, random_state=0).fit(X)
before, codes = dict(vars(vq)), vq.transform(X)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), resource.RLIM_INFINITY))
for parameters in ({"n_codewords": 20_000_000}, {"n_codewords": 10**15}):
    vq.set_params(**parameters)
    try:
        vq.fit(X)
    except MemoryError as error:
        print(error)
    vq.set_params(n_codewords=8)
    assert vars(vq) == before and (vq.transform(X) == codes).all()
try:
    vq.set_params(output="distances").transform(np.broadcast_to(X[:1], (20_000_000, 4)))
except MemoryError as error:
    print(error)
"""
            )
            if sys.platform.startswith("linux")
            else pytest.skip("reads /proc")
        )
        lines = result.stdout.splitlines()
        assert [("codebook_" in line, "GB" in line) for line in lines] == [
            (True, True),
            (True, True),
            (False, True),
        ]

    def test_estimates_of_what_cannot_be(self):
        for sizes in [(0, 5), (5, 0)]:
            with pytest.raises(ValueError, match="n_"):
                VectorQuantizer().memory_estimate(*sizes)
        with pytest.raises(ValueError, match="n_codewords"):
            VectorQuantizer(0).memory_estimate(5, 5)
        assert VectorQuantizer().memory_estimate(10**12, 1000).fit > 10**13


class TestThreads:
    def test_one_estimator_in_many_threads(self):
        rng = np.random.RandomState(0)
        X = rng.randn(8, 5000, 6).astype(np.float32)
        vq = VectorQuantizer(64, random_state=0).fit(X[0])
        expected = [vq.transform(part).tobytes() for part in X]
        scores = [vq.score(part) for part in X]
        wrong = []

        def work(i):
            for _ in range(15):
                if vq.transform(X[i]).tobytes() != expected[i] or vq.score(X[i]) != scores[i]:
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_estimators_of_their_own_in_many_threads(self):
        X = np.random.RandomState(0).randn(20_000, 6).astype(np.float32)
        codebooks = [None] * 4

        def work(i):
            codebooks[i] = VectorQuantizer(40, random_state=i % 2, max_iter=5).fit(X).codebook_

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(codebooks[0], codebooks[2])
        np.testing.assert_array_equal(codebooks[1], codebooks[3])
        assert (codebooks[0] != codebooks[1]).any()

    def test_the_gil_is_released(self):
        """Another thread gets on with its work while the kernels run."""
        X = np.random.RandomState(0).randn(60_000, 64).astype(np.float32)
        vq = VectorQuantizer(1024, init=X[:1024], max_iter=1, algorithm="lloyd", n_threads=1)
        thread = threading.Thread(target=vq.fit, args=(X,))
        pauses, before = [], time.perf_counter()
        thread.start()
        while thread.is_alive():
            time.sleep(0.001)
            now = time.perf_counter()
            pauses.append(now - before)
            before = now
        # A kernel that held it would let the other run once a call, every 0.02 s or longer.
        assert np.median(pauses) < 0.015


@needs_fork
def test_a_fork_after_a_parallel_fit_does_not_hang(run_python):
    result = run_python(
        """
import multiprocessing
import numpy as np
from fastvq import VectorQuantizer

X = np.random.RandomState(0).randn(50_000, 8).astype(np.float32)
vq = VectorQuantizer(64, random_state=0, max_iter=3, n_threads=2)
codes = vq.fit(X).transform(X)

def work(_):
    same = (vq.transform(X) == codes).all()
    again = VectorQuantizer(64, random_state=0, max_iter=3, n_threads=2).fit(X)
    return same and again.codebook_.tobytes() == vq.codebook_.tobytes()

with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map_async(work, range(4)).get(timeout=60))
print((vq.transform(X) == codes).all())
""",
        timeout=120,
    )
    assert result.stdout.split() == ["True"] * 5


INTERRUPT = """
import os, signal, threading, time
import numpy as np
from fastvq import VectorQuantizer

X = np.random.default_rng(0).standard_normal((300_000, 32), np.float32)
vq = VectorQuantizer({parameters}, random_state=0, n_threads=1)
if {fitted}:
    vq.set_params(n_codewords=20, algorithm="auto", init="random", max_iter=1).fit(X[:1000, :3])
    vq.set_params(max_iter=100, {parameters})
before = dict(vars(vq))
sent = []

def interrupt():
    time.sleep({delay})
    sent.append(time.process_time())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    vq.{call}
    print("finished")
except KeyboardInterrupt:
    # Processor time, so that it does not matter what else the machine does.
    print("interrupted after", time.process_time() - sent[0])
print("as it was", vars(vq) == before)
"""


@needs_posix
@pytest.mark.parametrize(
    ("fitted", "delay", "call", "parameters"),
    [
        (False, 0.2, "fit(X)", "n_codewords=1000, init='k-means++'"),
        (False, 0.4, "fit(X)", "n_codewords=1000, init='k-means||'"),
        (True, 0.6, "fit(X)", "n_codewords=2000, init='random', tol=0"),
        (True, 0.7, "fit(X)", "n_codewords=500, algorithm='growing', tol=0"),
        (True, 0.3, "fit(X)", "n_codewords=4000, algorithm='minibatch', tol=0"),
        (False, 0.5, "partial_fit(X)", "n_codewords=1000"),
        (False, 0.5, "fit(X)", "n_codewords=1000, init='random', metric='cosine'"),
    ],
)
def test_ctrl_c(fitted, delay, call, parameters, run_python):
    """Within half a second, and the estimator is as it was: fitted before, or not at all."""
    code = INTERRUPT.format(fitted=fitted, delay=delay, call=call, parameters=parameters)
    lines = run_python(code).stdout.splitlines()
    assert lines[0].startswith("interrupted after"), lines
    assert float(lines[0].split()[-1]) < 0.5
    assert lines[1] == "as it was True"


def test_warnings_as_errors_leave_it_as_it_was():
    vq = VectorQuantizer(10)
    before = dict(vars(vq))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="distinct rows"):
            vq.fit(np.zeros((3, 2)))
    assert vars(vq) == before
