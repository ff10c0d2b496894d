"""Fit: the time to a codebook that is as good, from the same start.

Stopping rules differ between libraries, and whoever stops first looks fastest, so what is compared
is the time to the same inertia. For each problem:

1. Every exact Lloyd method that has a stopping rule fits as it comes (table "own stopping rule").
   The target is the largest inertia that one of them stops at: what each takes for converged.
2. Everyone then runs, stopping rules off, the fewest iterations after which its codebook reaches
   the target; these runs are timed (table "time to the same inertia") and give the ratio. Mostly
   all take the same iterations. On data with many equal distances, such as the photograph's
   integers, ties lead to different paths, and some need more iterations than others.

The inertia is worked out here from each codebook, in float64, not taken from a library. All start
from the rows that faiss draws, the only start that SuperKMeans takes. fastvq's "growing" is another
algorithm, with its own path: it runs to its own end, and has a ratio where it ends within 0.1 % of
the target.

A third table has the fit that most people run, seeding included, at everyone's defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from bench import answers, data, intelex, ours, peers, report, timing
from bench.options import Options

#: part of the target by which rounding may miss it
ROUNDING = 1e-5

#: part by which two inertias may differ and count as equal
SAME_INERTIA = 1e-3

#: the most iterations of a fit that stops by itself, as scikit-learn's default
MOST_ITERATIONS = 300

#: iterations at a time while the target is looked for, and the most of them altogether
STRIDE = 16
MOST_TO_TARGET = 2 * MOST_ITERATIONS

#: further iterations that a whole run may need, because it rounds otherwise than one in strides
EXTRA_ITERATIONS = 8

#: n·k above which SciPy is left out: it writes and reads all n·k scores in every iteration, which
#: makes it 4 to 10 times slower than the fastest peer
SCIPY_MOST_SCORES = 3e7


class Problem(NamedTuple):
    """Rows to be made, codewords to be fitted, and the ratio to the fastest peer to be reached."""

    make: Callable[[Callable[[int], int]], np.ndarray]
    n_codewords: int
    wanted: float


PROBLEMS = {
    "blobs 100k×64, 256": Problem(lambda rows: data.blobs(rows(100_000), 64, 256), 256, 2.0),
    "Fashion-MNIST 60k×784, 100": Problem(lambda rows: data.fashion_mnist(rows(60_000)), 100, 2.0),
    "Fashion-MNIST 60k×784, 1024": Problem(
        lambda rows: data.fashion_mnist(rows(60_000)), 1024, 2.0
    ),
    "white 1M×8, 256": Problem(lambda rows: data.white(rows(1_000_000), 8, 1)[0], 256, 2.0),
    "photograph 273k×3, 256": Problem(lambda rows: _thinned(data.photograph(), rows), 256, 5.0),
}

SEEDED_PROBLEMS = {
    "blobs 100k×64, 256": PROBLEMS["blobs 100k×64, 256"],
    "blobs 20k×128, 1000": Problem(lambda rows: data.blobs(rows(20_000), 128, 1000), 1000, 1.0),
    "Fashion-MNIST 60k×784, 100": PROBLEMS["Fashion-MNIST 60k×784, 100"],
}

QUICK_PROBLEMS = ("blobs 100k×64, 256", "photograph 273k×3, 256")

CHOSEN, GROWING = "fastvq", "fastvq growing"


def _thinned(X, rows):
    return X[:: max(1, len(X) // rows(len(X)))]


def cases(problems, options: Options) -> dict:
    """{case: function giving (X, n_codewords)}."""

    def made(problem):
        X = problem.make(options.rows)
        return X, min(problem.n_codewords, len(X) // 40)

    return {
        name: partial(made, problem)
        for name, problem in problems.items()
        if name in QUICK_PROBLEMS or not options.quick
    }


# -- contestants --------------------------------------------------------------------------------


class Start(NamedTuple):
    """The same start for everyone, and the seed that makes faiss.SuperKmeans draw it."""

    rows: np.ndarray
    seed: int


def same_start(X: np.ndarray, n_codewords: int) -> Start:
    """The first of faiss's draws whose rows all differ.

    Equal ones would leave codewords empty, which every library repairs in its own way.
    """
    for seed in range(1000):
        rows = peers.faiss_start_rows(len(X), n_codewords, seed)
        if len(np.unique(X[rows], axis=0)) == n_codewords:
            return Start(rows, seed)
    raise ValueError(f"no draw of {n_codewords} different rows among 1000")


class Iterating(NamedTuple):
    """A library's fit that is told how many iterations to do.

    `advance(codebook, m)` goes on from any codebook; `history(m)`, for a library that takes no
    start, gives the inertia before each of m iterations instead.
    """

    run: Callable[[int], np.ndarray]
    advance: Callable[[np.ndarray, int], np.ndarray] | None = None
    history: Callable[[int], np.ndarray] | None = None


def _advance_sklearn(X, codebook, m, algorithm="lloyd"):
    return peers.sklearn_fit(X, codebook, algorithm=algorithm, max_iter=m)[0]


def _advance_intelex(X, codebook, m):
    return peers.sklearnex_fit(X, codebook, max_iter=m)[0]


def _advance_ours(X, n_threads, codebook, m):
    return ours.fit(X, codebook, n_threads=n_threads, max_iter=m).codebook_


def _going_on(advance, start) -> Iterating:
    return Iterating(partial(advance, start), advance)


def iterating(X, start: Start, n_threads, options) -> dict[str, Iterating]:
    codebook = np.ascontiguousarray(X[start.rows])
    k = len(codebook)
    advances = {
        f"sklearn {name}": partial(_advance_sklearn, X, algorithm=name)
        for name in ("lloyd", "elkan")
    }
    advances["faiss Kmeans"] = lambda C, m: peers.faiss_fit(X, C, max_iter=m)[0]
    if len(X) * k <= SCIPY_MOST_SCORES:
        advances["scipy"] = lambda C, m: peers.scipy_fit(X, C, max_iter=m)
    if not options.peers_only:
        advances[CHOSEN] = partial(_advance_ours, X, n_threads)
    found = {name: _going_on(advance, codebook) for name, advance in advances.items()}
    if X.shape[1] >= peers.SUPERKMEANS_FEWEST_FEATURES:
        fit = partial(peers.faiss_superkmeans_fit, X, k, seed=start.seed)
        found["faiss SuperKmeans"] = Iterating(
            run=lambda m: fit(max_iter=m)[0], history=lambda m: fit(max_iter=m)[1]
        )
    return found


def stopping_by_themselves(X, start: Start, n_threads, options) -> dict:
    """Name to function → (codebook, iterations)."""
    codebook = np.ascontiguousarray(X[start.rows])
    found = {
        f"sklearn {name}": lambda name=name: peers.sklearn_fit(
            X, codebook, algorithm=name, max_iter=MOST_ITERATIONS, tol=1e-4
        )
        for name in ("lloyd", "elkan")
    }
    if not options.peers_only:
        for name, algorithm in ((CHOSEN, "auto"), (GROWING, "growing")):
            found[name] = lambda algorithm=algorithm: _own_fit(
                X, codebook, n_threads, tol=1e-4, algorithm=algorithm
            )
    return found


def _own_fit(X, start, n_threads, **parameters):
    model = ours.fit(X, start, n_threads=n_threads, max_iter=MOST_ITERATIONS, **parameters)
    return model.codebook_, model.n_iter_


def seeding_too(X, n_codewords, n_threads, options) -> dict:
    """Name to function → (codebook, iterations)."""
    found = {"sklearn": lambda: peers.sklearn_fit_seeded(X, n_codewords, seed=0)}
    if not options.peers_only:
        found[CHOSEN] = lambda: _seeded_fit(X, n_codewords, n_threads)
    return found


def _seeded_fit(X, n_codewords, n_threads):
    model = ours.fit_as_it_comes(X, n_codewords, n_threads=n_threads)
    return model.codebook_, model.n_iter_


# -- measuring ----------------------------------------------------------------------------------


def measure(options: Options) -> dict:
    records = []
    for n_threads in options.threads:
        task = {}
        with timing.thread_limit(n_threads):
            for case, X, k in data.available(cases(PROBLEMS, options), options.only):
                start = same_start(X, k)
                own = _measure_own(case, X, start, n_threads, options)
                target = max(each["inertia"] for each in own if each["name"] != GROWING)
                fits = iterating(X, start, n_threads, options)
                records += own + race(case, X, fits, target, n_threads, options)
                task[case] = {"rows": start.rows.tolist(), "target": target}
            for case, X, k in data.available(cases(SEEDED_PROBLEMS, options), options.only):
                records += _measure_seeded(case, X, k, n_threads, options)
        records += intelex.records("fit", n_threads, options, task)
    return {"records": records}


def _measure_own(case, X, start, n_threads, options) -> list[dict]:
    fits = stopping_by_themselves(X, start, n_threads, options)
    return _measure_whole_fits("own", case, X, fits, 1, n_threads, options)


def _measure_seeded(case, X, k, n_threads, options) -> list[dict]:
    fits = seeding_too(X, k, n_threads, options)
    return _measure_whole_fits("seeded", case, X, fits, options.repeats, n_threads, options)


def _measure_whole_fits(kind, case, X, fits, repeats, n_threads, options) -> list[dict]:
    timings = timing.take_turns(
        fits,
        repeats=repeats,
        budget=options.budget,
        pause=timing.pause_for(n_threads),
        clock=options.clock,
    )
    records = [
        report.record(
            case,
            n_threads,
            name,
            each,
            table=kind,
            iterations=int(each.answer[1]),
        )
        # not rounded: the target is worked out from it
        | {"inertia": answers.inertia(X, each.answer[0])}
        for name, each in timings.items()
    ]
    report.progress(records)
    return records


def race(case, X, fits: dict[str, Iterating], target, n_threads, options) -> list[dict]:
    """Time the fewest iterations with which each reaches the target."""
    runs, firsts, found, missed = {}, {}, {}, []
    for name, fit in fits.items():
        fewest, inertia = iterations_to(target, X, fit)
        if fewest is None:
            missed.append({"name": name, "table": "missed", "above": inertia / target - 1})
            continue
        for m in range(fewest, fewest + EXTRA_ITERATIONS + 1):
            run = partial(fit.run, m)
            first = timing.first_runs({name: run}, clock=options.clock)[name]
            inertia = answers.inertia(X, first.answer)
            if inertia <= (1 + ROUNDING) * target:
                runs[name], firsts[name] = run, first
                found[name] = {"iterations": m, "inertia": inertia, "target": target}
                break
        else:
            missed.append({"name": name, "table": "missed", "above": inertia / target - 1})
    timings = timing.take_turns(
        runs,
        **timing.as_told(options, n_threads),
        timings=firsts,
    )
    records = [
        report.record(case, n_threads, name, each, table="target", **found[name])
        for name, each in timings.items()
    ]
    report.progress(records)
    return records + [{"case": case, "threads": n_threads, **each} for each in missed]


def iterations_to(target: float, X, fit: Iterating) -> tuple[int | None, float]:
    """(fewest iterations that reach the target or None, the inertia found)."""
    if fit.history is not None:
        for m in (4 * STRIDE, 16 * STRIDE, MOST_TO_TARGET):
            before_each = fit.history(m)
            reached = np.flatnonzero(before_each <= target)
            if len(reached):
                return max(1, int(reached[0])), float(before_each[reached[0]])
        return None, float(before_each[-1])

    codebook = fit.run(STRIDE)
    before, done = None, 0
    while (inertia := answers.inertia(X, codebook)) > target:
        before, done = codebook, done + STRIDE
        if done >= MOST_TO_TARGET:
            return None, inertia
        codebook = fit.advance(codebook, STRIDE)
    too_few, enough = 0, STRIDE
    while enough - too_few > 1:
        m = (too_few + enough) // 2
        codebook = fit.run(m) if before is None else fit.advance(before, m)
        if answers.inertia(X, codebook) <= target:
            enough = m
        else:
            too_few = m
    return done + enough, inertia


def measure_intelex(task: dict, n_threads: int, options: Options) -> list[dict]:
    """scikit-learn-intelex's records, to be called in its own process."""
    records = []
    for case, X, _ in data.available(cases({name: PROBLEMS[name] for name in task}, options)):
        start = np.ascontiguousarray(X[task[case]["rows"]])
        advances = {
            intelex.NAME: partial(_advance_intelex, X),
            "sklearn": partial(_advance_sklearn, X),
        }
        if not options.peers_only:
            advances[CHOSEN] = partial(_advance_ours, X, n_threads)
        fits = {name: _going_on(advance, start) for name, advance in advances.items()}
        measured = race(case, X, fits, task[case]["target"], n_threads, options)
        reached = [record for record in measured if record["table"] == "target"]
        if any(record["name"] == intelex.NAME for record in reached):
            records.append(intelex.joined(reached))
    return records


# -- reporting ----------------------------------------------------------------------------------

PEERS = ("sklearn lloyd", "sklearn elkan", "faiss Kmeans", "faiss SuperKmeans", "scipy")


def tables(measured: dict) -> str:
    kinds = {
        kind: [each for each in measured["records"] if each["table"] == kind]
        for kind in ("target", "missed", "own", "seeded")
    }
    texts = ["Time to the same inertia, same start; in brackets iterations", _target_table(kinds)]
    texts += [
        "Own stopping rule, same start; in brackets iterations, and inertia above the smallest"
    ]
    texts += [_own_table(kinds["own"]), "Seeding included, defaults; in brackets iterations"]
    return "\n\n".join([*texts, _seeded_table(kinds["seeded"])])


def _target_table(kinds: dict) -> str:
    own = report.by_case(kinds["own"])
    rows, notes, found = [], [], []
    for key, by_name in report.by_case(kinds["target"]).items():
        case, n_threads = key
        name = f"{case}, {report.threads_text(n_threads)}"
        row = [name, *(_time_and_iterations(by_name.get(peer)) for peer in PEERS)]
        row.append(intelex.cell(by_name.get(intelex.NAME)))
        found.append(by_name.get(intelex.NAME))
        row.append(_time_and_iterations(by_name.get(CHOSEN)))
        ratios = ratio_to_fastest(by_name)
        row += [report.ratio_text(ratios.get("median")), report.ratio_text(ratios.get("min"))]
        if ratios and ratios["median"] < PROBLEMS[case].wanted:
            notes.append(f"{name}: {ratios['median']:.2f}× of {PROBLEMS[case].wanted}×")
        row += _growing(own[key].get(GROWING), by_name)
        rows.append(row)
    header = ["problem", *PEERS, intelex.NAME, CHOSEN, "ratio", "of minima", GROWING, "ratio"]
    lines = [report.table(header, rows)]
    missed = [
        f"{each['name']} stays {each['above']:.2%} above ({each['case']}, {each['threads']})"
        for each in kinds["missed"]
    ]
    lines += ["Target not reached: " + "; ".join(missed) + "."] if missed else []
    lines += ["Below what is wanted: " + "; ".join(notes) + "."] if notes else []
    return "\n\n".join([*lines, *intelex.footnotes(found)])


def ratio_to_fastest(by_name: dict) -> dict[str, float]:
    """How many times faster than the fastest peer that reached the target."""
    if CHOSEN not in by_name:
        return {}
    return {
        kind: min(
            [
                *(by_name[p][kind] / by_name[CHOSEN][kind] for p in PEERS if p in by_name),
                *intelex.ratios(by_name.get(intelex.NAME), kind),
            ]
        )
        for kind in ("median", "min")
    }


def _growing(record: dict | None, by_name: dict) -> list[str | None]:
    """Time of "growing" and its ratio to the fastest peer, or by how much it misses the target."""
    if record is None:
        return [None, None]
    target = next(iter(by_name.values()))["target"]
    fastest = min(by_name[peer]["median"] for peer in PEERS if peer in by_name)
    above = record["inertia"] / target - 1
    ratio = (
        f"stays {above:.2%} above"
        if above > SAME_INERTIA
        else report.ratio_text(fastest / record["median"])
    )
    return [_time_and_iterations(record), ratio]


def _time_and_iterations(record: dict | None) -> str | None:
    if record is None:
        return None
    return f"{report.seconds_text(record['median'])} ({record['iterations']})"


def _own_table(records: list[dict]) -> str:
    names = ["sklearn lloyd", "sklearn elkan", CHOSEN, GROWING]
    rows, notes = [], []
    for (case, n_threads), by_name in report.by_case(records).items():
        smallest = min(each["inertia"] for name, each in by_name.items() if name != GROWING)
        row = [f"{case}, {report.threads_text(n_threads)}"]
        for name in names:
            each = by_name.get(name)
            row.append(
                each
                and f"{report.seconds_text(each['median'])} ({each['iterations']}, "
                f"{each['inertia'] / smallest - 1:+.2%})"
            )
        rows.append(row)
        if CHOSEN in by_name and by_name[CHOSEN]["inertia"] > (1 + SAME_INERTIA) * smallest:
            notes.append(row[0])
    text = report.table(["problem", *names], rows)
    return text + (f"\n\nfastvq stops too early: {'; '.join(notes)}." if notes else "")


def _seeded_table(records: list[dict]) -> str:
    rows = []
    for (case, n_threads), by_name in report.by_case(records).items():
        peer, mine = by_name["sklearn"], by_name.get(CHOSEN)
        row = [f"{case}, {report.threads_text(n_threads)}", _time_and_iterations(peer)]
        if mine:
            row += [
                _time_and_iterations(mine),
                report.ratio_text(peer["median"] / mine["median"]),
                f"{mine['inertia'] / peer['inertia'] - 1:+.2%}",
            ]
        rows.append(row + [None] * (5 - len(row)))
    return report.table(["problem", "sklearn", CHOSEN, "ratio", "inertia against sklearn's"], rows)


# -- pytest-benchmark ---------------------------------------------------------------------------

#: iterations of each fit under pytest-benchmark, where every library does the same number
FIXED_ITERATIONS = 10


def pytest_generate_tests(metafunc):
    metafunc.parametrize("name", [*PEERS, CHOSEN], ids=report.id_text)
    metafunc.parametrize("problem", PROBLEMS, ids=report.id_text)


@lru_cache(maxsize=1)
def _problem_data(problem):
    X, k = cases(PROBLEMS, Options())[problem]()
    start = same_start(X, k)
    return X, start, answers.inertia(X, peers.faiss_fit(X, X[start.rows], max_iter=5)[0])


def test_fit(benchmark, problem, name, n_threads):
    import pytest

    benchmark.group = f"{FIXED_ITERATIONS} iterations, {problem}, {report.threads_text(n_threads)}"
    with timing.thread_limit(n_threads):
        try:
            X, start, inertia_halfway = _problem_data(problem)
        except data.MissingData as error:
            pytest.skip(str(error))
        fits = iterating(X, start, n_threads, Options())
        if name not in fits:
            pytest.skip("left out at this problem: see iterating()")
        codebook = benchmark.pedantic(fits[name].run, (FIXED_ITERATIONS,), rounds=1)
        assert answers.inertia(X, codebook) < inertia_halfway
