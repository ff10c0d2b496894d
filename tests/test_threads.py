"""How many threads a call uses: what decides, what caps it, and what forces one."""

import ctypes
import json
import math
from pathlib import Path

import numpy as np
import pytest

import fastvq
from fastvq import _threads
from fastvq._kernels import _openmp

needs_openmp = pytest.mark.skipif(not _openmp.enabled, reason="built without OpenMP")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """No setting but what a test makes, and eight CPUs."""
    monkeypatch.delenv("FASTVQ_NUM_THREADS", raising=False)
    monkeypatch.setattr(_threads, "available_cpus", lambda: 8)
    yield
    fastvq.set_num_threads(None)


@needs_openmp
def test_precedence(monkeypatch):
    monkeypatch.setattr(_openmp, "max_threads", lambda: 6)
    assert fastvq.get_num_threads() == 6
    monkeypatch.setenv("FASTVQ_NUM_THREADS", "5")
    assert fastvq.get_num_threads() == 5
    fastvq.set_num_threads(4)
    assert fastvq.get_num_threads() == 4
    assert _threads.effective(3) == 3
    fastvq.set_num_threads(None)
    assert fastvq.get_num_threads() == 5
    monkeypatch.setenv("FASTVQ_NUM_THREADS", "")
    assert fastvq.get_num_threads() == 6


@needs_openmp
def test_only_the_default_is_capped(monkeypatch):
    monkeypatch.setattr(_threads, "available_cpus", lambda: 2)
    monkeypatch.setattr(_openmp, "max_threads", lambda: 64)
    assert _threads.effective() == 2
    assert _threads.effective(5) == 5
    fastvq.set_num_threads(7)
    assert _threads.effective() == 7


@needs_openmp
@pytest.mark.parametrize(("n_threads", "expected"), [(-1, 8), (-2, 7), (-8, 1), (-100, 1)])
def test_negative_numbers_count_back_from_the_cpus(n_threads, expected, monkeypatch):
    assert _threads.effective(n_threads) == expected
    fastvq.set_num_threads(n_threads)
    assert fastvq.get_num_threads() == expected
    fastvq.set_num_threads(None)
    monkeypatch.setenv("FASTVQ_NUM_THREADS", str(n_threads))
    assert fastvq.get_num_threads() == expected


@needs_openmp
def test_numpy_integers_are_integers():
    assert _threads.effective(np.int8(3)) == 3


@pytest.mark.parametrize("n_threads", [2.0, "2", True, [2], np.float64(2)])
def test_what_is_not_an_integer(n_threads):
    for call in (_threads.effective, fastvq.set_num_threads):
        with pytest.raises(TypeError, match="n_threads must be an integer or None, got"):
            call(n_threads)


@pytest.mark.parametrize("n_threads", [0, 1025, 10**12])
def test_nonsense_numbers(n_threads):
    for call in (_threads.effective, fastvq.set_num_threads):
        with pytest.raises(ValueError, match=f"n_threads must be from 1 .* got {n_threads}"):
            call(n_threads)


@pytest.mark.parametrize("text", ["two", "0", "1.5"])
def test_nonsense_in_the_environment(text, monkeypatch):
    monkeypatch.setenv("FASTVQ_NUM_THREADS", text)
    with pytest.raises(ValueError, match="variable FASTVQ_NUM_THREADS must be"):
        fastvq.get_num_threads()
    assert _threads.effective(1) == 1


@needs_openmp
def test_openmp_says_the_default(run_python):
    code = "import fastvq._threads as t; t.available_cpus = lambda: 8; print(t.effective())"
    assert run_python(code, OMP_NUM_THREADS="3").stdout.strip() == "3"


@needs_openmp
def test_threadpoolctl_counts():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with threadpoolctl.threadpool_limits(limits=3, user_api="openmp"):
        assert fastvq.get_num_threads() == 3
        assert _threads.effective(2) == 2


def test_without_openmp_it_is_always_one(monkeypatch):
    monkeypatch.setattr(_openmp, "enabled", False)
    fastvq.set_num_threads(4)
    assert fastvq.get_num_threads() == 1
    assert _threads.effective(3) == 1


@needs_openmp
def test_one_inside_a_parallel_region():
    """libgomp is asked to call Python on two threads of a region."""
    maps = Path("/proc/self/maps")
    mapped = maps.read_text().split() if maps.exists() else []
    path = next((word for word in mapped if Path(word).name.startswith("libgomp.so")), None)
    if path is None:
        pytest.skip("built with an OpenMP library other than libgomp")
    seen = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def region(_):
        seen.append((_openmp.in_parallel(), _threads.effective(), _threads.effective(2)))

    ctypes.CDLL(path).GOMP_parallel(region, None, 2, 0)
    assert seen == [(True, 1, 1)] * 2
    assert _threads.effective(2) == 2


@needs_openmp
@pytest.mark.skipif(not hasattr(_threads.os, "fork"), reason="no fork here")
def test_forked_child_works_on_one_thread(run_python):
    """The child runs the same parallel call as its parent did, and must not hang in it."""
    code = """
import json, os, sys, threading
import numpy as np
from fastvq import _threads, kernels, set_num_threads
X = np.random.default_rng(0).normal(size=(50_000, 8)).astype(np.float32)
before = kernels.assign(X, X[:64], n_threads=2)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    set_num_threads(4)
    counts = [_threads.effective(), _threads.effective(2)]
    same = np.array_equal(kernels.assign(X, X[:64], n_threads=2), before)
    os.write(writer, json.dumps([counts, bool(same)]).encode())
    os._exit(0)
killer = threading.Timer(60, os.kill, (child, 9))
killer.start()
_, status = os.waitpid(child, 0)
killer.cancel()
assert status == 0, f"the child ended with {status}"
print(json.dumps([json.loads(os.read(reader, 1000)), _threads.effective(2)]))
"""
    assert json.loads(run_python(code).stdout) == [[[1, 1], True], 2]


# --- CPU quotas ---------------------------------------------------------------------------------


@pytest.fixture
def quota(tmp_path):
    """Writes cgroup files below a directory that stands for /; the CPUs that they allow."""

    def cpus(listing, **files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(listing)
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return _threads._cgroup_cpus(tmp_path)

    return cpus


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("150000 100000", 1.5), ("max 100000", math.inf), ("max", math.inf), ("", math.inf)],
)
def test_cgroup_v2(quota, cpu_max, expected):
    assert quota("0::/\n", **{"cpu.max": cpu_max}) == expected


def test_cgroup_v2_smallest_quota_on_the_way_up_binds(quota):
    files = {
        "cpu.max": "max 100000",
        "a/cpu.max": "200000 100000",
        "a/b/cpu.max": "800000 100000",
        "a/b/c/cpu.max": "100 100000",
    }
    assert quota("0::/a/b\n", **files) == 2


def test_cgroup_v2_path_of_the_host_is_not_visible_in_a_container(quota):
    assert quota("0::/kubepods/pod1/x\n", **{"cpu.max": "300000 100000"}) == 3


def test_cgroup_v1(quota):
    listing = "12:memory:/m\n4:cpu,cpuacct:/box\n1:name=systemd:/s\n0::/s\n"
    files = {"cpu/box/cpu.cfs_quota_us": "250000", "cpu/box/cpu.cfs_period_us": "100000"}
    assert quota(listing, **files) == 2.5


def test_cgroup_v1_without_a_quota(quota):
    files = {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}
    assert quota("4:cpuacct,cpu:/\n", **files) == math.inf


def test_no_cgroups(tmp_path):
    assert _threads._cgroup_cpus(tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(0.2, 1), (1.5, 2), (64, 4), (math.inf, 4)])
def test_available_cpus(quota, expected, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(_threads, "_cgroup_cpus", lambda: quota)
    monkeypatch.setattr(_threads.os, "sched_getaffinity", lambda pid: {0, 2, 5, 7}, raising=False)
    assert _threads.available_cpus() == expected


def test_blas_stays_on_one_thread(monkeypatch):
    """Its threads wait for each other a hundred times as long as they compute on a busy machine."""
    from threadpoolctl import threadpool_info, threadpool_limits

    from fastvq import ResidualQuantizer, VectorQuantizer, _screen

    seen = []

    def noting(function):
        def noted(*arguments, **named):
            pools = threadpool_info()
            seen.append({p["num_threads"] for p in pools if p["user_api"] == "blas"})
            return function(*arguments, **named)

        return noted

    monkeypatch.setattr(_screen, "_leading", noting(_screen._leading))
    monkeypatch.setattr(np.linalg, "eigh", noting(np.linalg.eigh))
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(20_000, 64)) * np.arange(1, 65) ** -1.0).astype(np.float32)
    with threadpool_limits(2, user_api="blas"):
        VectorQuantizer(256, init="random", max_iter=2, random_state=0).fit(X)
        ResidualQuantizer(2, 4, max_iter=2, random_state=0).fit(X)
    assert len(seen) > 1
    assert all(found <= {1} for found in seen)
