"""The `fastvq` command: every subcommand, in this process and as a program of its own."""

import argparse
import io
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastvq
from fastvq import VectorQuantizer, _coded, _files, cli, container, entropy, kernels

COMMANDS = [
    "info",
    "demo",
    "fit",
    "encode",
    "decode",
    "inspect",
    "image",
    "compress",
    "export",
    "check",
    "run",
]
PROGRAM = [sys.executable, "-m", "fastvq"]
# A program started in another folder finds the package that is tested, installed or not.
SOURCE = str(Path(fastvq.__file__).parents[1])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with vectors X.npy and 7 of them as array C.npy, quantizer C.fvq."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    monkeypatch.delenv("FASTVQ_DEBUG", raising=False)
    X = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    np.save("X.npy", X)
    np.save("C.npy", X[:7])
    save_codebook(X[:7])
    return tmp_path


def save_codebook(codewords, **parameters):
    """C.fvq, a quantizer with exactly these codewords."""
    vq = VectorQuantizer(len(codewords), init=codewords, max_iter=1, **parameters)
    vq.fit(codewords)
    np.testing.assert_array_equal(vq.codebook_, codewords)
    vq.save("C.fvq")


def run(*args):
    """Exit code of a command line given as one string and further arguments."""
    first, *rest = args
    try:
        return cli.main([*shlex.split(first), *map(str, rest)])
    except SystemExit as end:  # argparse: --help and wrong usage
        return end.code


def program(*args, **kwargs):
    kwargs = {"capture_output": True, "text": True, "timeout": 120, **kwargs}
    return subprocess.run([*PROGRAM, *map(str, args)], **kwargs)


def parsers():
    actions = cli._parser()._actions
    return next(a.choices for a in actions if isinstance(a, argparse._SubParsersAction))


# ---- the command as a whole ----


def test_help_loads_neither_numpy_nor_scikit_learn():
    code = (
        "import sys; from fastvq import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(sorted({'numpy', 'scipy', 'sklearn', 'PIL'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert all(command in result.stdout for command in COMMANDS)


def test_the_commands_are_these():
    assert list(parsers()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command, capsys):
    assert run(f"{command} --help") == 0
    *_, title, example = capsys.readouterr().out.rstrip().splitlines()
    assert title == "example:"
    name, *arguments = shlex.split(example)
    assert name == "fastvq"
    assert callable(cli._parser().parse_args(arguments).run)


def test_fit_leaves_defaults_to_the_class(folder):
    assert run("fit X.npy -o D.fvq") == 0
    seeded = VectorQuantizer(random_state=0)
    assert fastvq.load("D.fvq").get_params() == seeded.get_params()


def test_quantizers_of_fit_are_those_of_the_package():
    own = [name for name in fastvq.vq.__all__ if name.endswith("Quantizer")]
    assert sorted(cli.QUANTIZERS.values()) == own


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"fastvq {fastvq.__version__}\n"


@pytest.mark.parametrize("line", ["", "nonsense", "fit X.npy", "fit X.npy -o C.fvq --codewords x"])
def test_wrong_usage_exits_2(line, capsys):
    assert run(line) == 2
    assert "error:" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(folder):
    process = subprocess.Popen(
        [*PROGRAM, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


# ---- info ----


def test_info_prints_the_configuration(capsys):
    assert run("info") == 0
    out = capsys.readouterr().out
    config = fastvq.show_config(mode="dict")
    assert config["version"] in out and config["level_active"] in out


def test_info_json_is_the_configuration():
    result = program("info", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout) == fastvq.show_config(mode="dict")


# ---- fit, encode, decode ----


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "u1", "i1", ">f4", "i4", "?"])
def test_round_trip_equals_the_estimator(folder, dtype, metric):
    rng = np.random.default_rng(1)
    X = (rng.normal(size=(300, 20)) * 30 + 60).clip(1, 120)
    X = X > 60 if dtype == "?" else X.astype(dtype)
    np.save("X.npy", X)
    options = f"--metric {metric} --threads 2"
    assert run(f"fit X.npy -o C.fvq --codewords 9 --max-iter 5 --seed 3 {options}") == 0
    assert run("encode X.npy --codebook C.fvq -o codes.npy --threads 2") == 0
    assert run("decode codes.npy --codebook C.fvq -o Y.npy") == 0
    expected = VectorQuantizer(9, max_iter=5, random_state=3, metric=metric).fit(np.load("X.npy"))
    codes = expected.transform(X)
    saved = fastvq.load("C.fvq")
    np.testing.assert_array_equal(saved.codebook_, expected.codebook_, strict=True)
    assert saved.get_params() == expected.get_params()
    np.testing.assert_array_equal(np.load("codes.npy"), codes, strict=True)
    np.testing.assert_array_equal(np.load("Y.npy"), expected.inverse_transform(codes), strict=True)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_encode_beside_rows_of_another_size(folder, scale):
    rows = np.random.default_rng(1).normal(size=(300, 4)) * scale
    vq = VectorQuantizer(9, random_state=0).fit(rows.astype(np.float32))
    X = np.concatenate([rows, rows * 1e-12, np.full((1, 4), 3e38)]).astype(np.float32)
    np.save("X.npy", X)
    vq.save("C.fvq")
    assert run("encode X.npy --codebook C.fvq -o codes.npy") == 0
    np.testing.assert_array_equal(np.load("codes.npy"), vq.transform(X), strict=True)


def test_as_programs(folder):
    fit = program("fit", "X.npy", "-o", "D.fvq", "--codewords", "5", "--verbose")
    assert fit.returncode == 0, fit.stderr
    assert "500 x 6 float32" in fit.stdout and "VectorQuantizer" in fit.stdout
    encode = program("encode", "X.npy", "--codebook", "D.fvq", "-o", "codes.npy")
    assert (encode.returncode, encode.stderr) == (0, "")
    decode = program("decode", "codes.npy", "--codebook", "D.fvq", "-o", "Y.npy")
    assert (decode.returncode, decode.stderr) == (0, "")
    codebook = fastvq.load("D.fvq").codebook_
    np.testing.assert_array_equal(np.load("Y.npy"), codebook[np.load("codes.npy")[:, 0]])


def test_fit_passes_every_option_on(folder, monkeypatch):
    seen = {}

    class Spy(VectorQuantizer):
        def fit(self, X):
            seen.update(self.get_params())
            return super().fit(X)

    monkeypatch.setattr(fastvq, "VectorQuantizer", Spy)
    assert (
        run(
            "fit X.npy -o D.fvq --codewords 7 --algorithm lloyd --init C.npy --max-iter 3 "
            "--tol 0.5 --max-samples 400 --metric euclidean --seed 5 --threads 1 --verbose "
            "--set n_init=3 --set output=codes --set batch_size=null"
        )
        == 0
    )
    np.testing.assert_array_equal(seen.pop("init"), np.load("C.npy"))
    expected = VectorQuantizer().get_params()
    expected |= dict(n_codewords=7, algorithm="lloyd", max_iter=3, tol=0.5, max_samples=400)
    del expected["init"]
    expected |= dict(metric="euclidean", random_state=5, n_threads=1, verbose=1)
    expected |= dict(n_init=3, output="codes", batch_size=None)
    assert seen == expected


@pytest.mark.parametrize("init", ["k-means++", "random", "C.npy"])
def test_fit_with_each_kind_of_init(folder, init):
    assert run(f"fit X.npy -o D.fvq --codewords 7 --init {init} --max-iter 2") == 0
    assert fastvq.load("D.fvq").codebook_.shape == (7, 6)


def test_the_same_seed_gives_the_same_codebook(folder):
    for name, seed in [("a", 1), ("b", 1), ("c", 2)]:
        assert run(f"fit X.npy -o {name}.fvq --codewords 20 --seed {seed}") == 0
    first, second, other = (fastvq.load(f"{name}.fvq").codebook_ for name in "abc")
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("k", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65537, "u4")])
def test_codes_take_the_smallest_type(folder, k, dtype):
    codebook = np.arange(2 * k, dtype=np.float32).reshape(k, 2)
    save_codebook(codebook)
    np.save("X.npy", codebook[::-1])
    assert run("encode X.npy --codebook C.fvq -o codes.npy") == 0
    np.testing.assert_array_equal(
        np.load("codes.npy"), np.arange(k, dtype=dtype)[::-1, None], strict=True
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_many_blocks_give_what_one_gives(folder, monkeypatch, order):
    X = np.load("X.npy")
    np.save("X.npy", np.asarray(X, order=order))
    monkeypatch.setattr(_files, "BLOCK_BYTES", 7 * X[0].nbytes)  # 500 is not a multiple of 7
    assert run("encode X.npy --codebook C.fvq -o codes.npy") == 0
    assert run("decode codes.npy --codebook C.fvq -o Y.npy") == 0
    codes = kernels.assign(X, X[:7])
    np.testing.assert_array_equal(np.load("codes.npy")[:, 0], codes)
    np.testing.assert_array_equal(np.load("Y.npy"), X[codes])


@pytest.mark.parametrize("shape", [(0, 6), (500,), (500, 6, 1)])
def test_odd_shapes_of_vectors(folder, shape, capsys):
    np.save("X.npy", np.zeros(shape, np.float32))
    code = run("encode X.npy --codebook C.fvq -o codes.npy")
    assert code == 2
    assert "X.npy" in capsys.readouterr().err
    assert not os.path.exists("codes.npy")


def sparse_npy(path, shape, dtype):
    """A file of zeros that takes no room on disk."""
    dtype = np.dtype(dtype)
    with open(path, "wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape)) * dtype.itemsize)


def test_memory_stays_small_beside_the_files(folder):
    sparse_npy("X.npy", (5_000_000, 16), "f4")  # 320 MB; decoded again as many
    save_codebook(np.eye(3, 16, dtype=np.float32))
    tracemalloc.start()
    assert run("encode X.npy --codebook C.fvq -o codes.npy") == 0
    assert run("decode codes.npy --codebook C.fvq -o Y.npy") == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert os.path.getsize("Y.npy") == os.path.getsize("X.npy")
    assert peak < 100e6


def test_packed_codes(folder):
    X = np.load("X.npy")
    save_codebook(np.arange(600, dtype=np.float32).reshape(300, 2))
    np.save("X.npy", X[:, :2])
    assert run("encode X.npy --codebook C.fvq -o codes.npy") == 0
    assert run("encode X.npy --codebook C.fvq -o packed.npy --packed") == 0
    packed, vq = np.load("packed.npy"), fastvq.load("C.fvq")
    np.testing.assert_array_equal(packed, vq.pack(np.load("codes.npy")), strict=True)
    assert packed.shape == (500, vq.code_size_)
    assert run("decode codes.npy --codebook C.fvq -o Y.npy") == 0
    assert run("decode packed.npy --codebook C.fvq -o Z.npy --packed") == 0
    np.testing.assert_array_equal(np.load("Z.npy"), np.load("Y.npy"), strict=True)


@pytest.mark.parametrize("kind", ["vector", "product"])
def test_entropy_coded(folder, capsys, kind, monkeypatch):
    monkeypatch.setattr(_coded, "_BLOCK_CODES", 1000)  # several blocks
    X = np.random.default_rng(0).standard_normal((5000, 6)).astype(np.float32) ** 3
    np.save("X.npy", X)
    sizes = "--codewords 64 --set rate_weight=3.0" if kind == "vector" else "--set n_subspaces=3"
    assert run(f"fit X.npy -o q.fvq --quantizer {kind} {sizes} --max-iter 3") == 0
    for option, output in {"": "codes.npy", "--packed": "packed.npy", "--entropy": "E.fvc"}.items():
        capsys.readouterr()
        assert run(f"encode X.npy --codebook q.fvq -o {output} {option}") == 0
        size = os.path.getsize(output)
        assert f", {8 * size / 5000:.2f} bits a row, " in capsys.readouterr().out
    codes = np.load("codes.npy")
    np.testing.assert_array_equal(np.concatenate([*_coded.read("E.fvc")]), codes, strict=True)
    tables = 2000 * -(-codes.size // 1000)  # of such small blocks, amply
    assert 8 * os.path.getsize("E.fvc") < 1.1 * 5000 * entropy.entropy(codes) + 8 * tables
    if kind == "vector":
        assert os.path.getsize("E.fvc") < os.path.getsize("packed.npy")
    assert run("decode codes.npy --codebook q.fvq -o Y.npy") == 0
    assert run("decode E.fvc --codebook q.fvq -o Z.npy") == 0
    np.testing.assert_array_equal(np.load("Z.npy"), np.load("Y.npy"), strict=True)
    assert run("inspect E.fvc --verify") == 0
    told = capsys.readouterr().out
    assert f"E.fvc: codes, {os.path.getsize('E.fvc'):,} bytes\n" in told
    assert f"n_rows: 5000\nn_codes: {codes.shape[1]}\ndtype: " in told


def test_entropy_coded_files_are_checked(folder, capsys):
    np.save("X.npy", np.random.default_rng(0).standard_normal((500, 6)).astype(np.float32))
    assert run("encode X.npy --codebook C.fvq -o E.fvc --entropy") == 0
    whole = container.read("E.fvc")
    cases = {
        "no codes": lambda: container.write("E.fvc", "other", whole.tensors, whole.attributes),
        "rows are missing": lambda: container.write(
            "E.fvc", "codes", whole.tensors, {**whole.attributes, "n_rows": 501}
        ),
        "more than max_codes": lambda: container.write(
            "E.fvc", "codes", whole.tensors, {**whole.attributes, "n_rows": 5}
        ),
        "another shape": lambda: container.write(
            "E.fvc", "codes", whole.tensors, {**whole.attributes, "dtype": "uint16"}
        ),
        "damaged": lambda: container.write(
            "E.fvc", "codes", {"rows.0": whole.tensors["rows.0"][:-9]}, whole.attributes
        ),
        "cut short": lambda: corrupt("E.fvc", lambda content: content[:-20]),
        "--packed is for": lambda: None,
    }
    for message, spoil in cases.items():
        capsys.readouterr()
        spoil()
        option = "--packed" if "packed" in message else ""
        assert run(f"decode E.fvc --codebook C.fvq -o Y.npy {option}") == 2
        assert message in capsys.readouterr().err, message
        assert not os.path.exists("Y.npy")


def test_no_codes_are_no_vectors(folder):
    np.save("codes.npy", np.empty((0, 1), np.uint8))
    assert run("decode codes.npy --codebook C.fvq -o Y.npy") == 0
    assert np.load("Y.npy").shape == (0, 6)


def test_decode_takes_any_integers(folder):
    codebook = np.load("C.npy")
    for dtype in ["i1", "u2", "i4", ">i8", "u8"]:
        for shape in [(3,), (3, 1)]:
            np.save("codes.npy", np.array([6, 0, 3], dtype).reshape(shape))
            assert run("decode codes.npy --codebook C.fvq -o Y.npy") == 0
            np.testing.assert_array_equal(np.load("Y.npy"), codebook[[6, 0, 3]], strict=True)


# ---- inspect ----


def test_inspect(folder, capsys):
    assert run("inspect C.fvq") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"C.fvq: VectorQuantizer, {os.path.getsize('C.fvq'):,} bytes\n")
    assert f"written by fastvq {fastvq.__version__}, format 1\n" in out
    for line in [r"n_codewords +7", r"codebook_ +7 x 6 float32, 168 bytes", r"code_size_ +1"]:
        assert re.search(rf"^  {line}$", out, re.MULTILINE), line
    assert "--verify" in out.splitlines()[-1]


def test_inspect_verifies(folder, capsys):
    assert run("inspect C.fvq --verify") == 0
    assert capsys.readouterr().out.endswith("checksums: all are right\n")
    corrupt("C.fvq", lambda content: content[:-1] + b"x")
    assert run("inspect C.fvq") == 0
    capsys.readouterr()
    assert run("inspect C.fvq --verify") == 2
    captured = capsys.readouterr()
    assert captured.out.count("DAMAGED") == 1
    assert (
        captured.err
        == "fastvq: error: C.fvq: damaged: checksums do not match in 'parameters.init'\n"
    )


def test_inspect_as_json(folder, capsys):
    assert run("inspect C.fvq --json --verify") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["kind"] == "VectorQuantizer" and summary["damaged"] == []
    codebook = {"dtype": "float32", "shape": [7, 6], "nbytes": 168}
    assert summary["tensors"]["codebook_"] == codebook
    assert summary["attributes"]["parameters"]["n_codewords"] == 7


def test_inspect_shows_no_control_characters(folder, capsys):
    container.write("C.fvq", "K", {}, {"a\x1b[2J": 1, "b": "\x1b", "c": {"\n": "x" * 999}})
    assert run("inspect C.fvq") == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() and len(line) < 100 for line in out.splitlines())


def test_inspect_loads_no_class(folder):
    code = (
        "import sys; from fastvq.cli import main\n"
        "assert main('inspect C.fvq --verify'.split()) == 0\n"
        "assert not {'sklearn', 'scipy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


# ---- bad input ----

ENCODE = "encode X.npy --codebook C.fvq -o out.npy"


def corrupt(path, change):
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(change(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b[:-1],
        lambda b: b[:50],
        lambda b: b"",
        lambda b: b"not an array at all",
        lambda b: b.replace(b"(500, 6)", b"(999, 6)"),
        lambda b: b.replace(b"(500, 6)", b"(-50, 6)"),
        lambda b: b.replace(b"(500, 6)", b"(500, 6("),
        lambda b: b.replace(b"'shape'", b"'shame'"),
        lambda b: b.replace(b"<f4", b"|O8"),
    ],
)
def test_damaged_vectors(folder, capsys, change):
    corrupt("X.npy", change)
    assert run(ENCODE) == 2
    message = capsys.readouterr().err
    assert message.startswith("fastvq: error: X.npy: ") and message.count("\n") == 1
    assert sorted(os.listdir()) == ["C.fvq", "C.npy", "X.npy"]


def test_a_pickle_is_refused_and_not_run(folder, capsys):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, ("exploded",))

    np.save("X.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    assert run(ENCODE) == 2
    assert not os.path.exists("exploded")


def save(name, array):
    np.save(name, np.asarray(array))


@pytest.mark.parametrize(
    ("prepare", "line", "said"),
    [
        (None, "encode absent.npy --codebook C.fvq -o out.npy", "absent.npy: No such file"),
        (None, "encode X.npy --codebook absent.npy -o out.npy", "absent.npy: No such file"),
        (None, "encode . --codebook C.fvq -o out.npy", "Is a directory"),
        (None, "encode X.npy --codebook C.fvq -o absent/out.npy", "no folder"),
        (None, "encode X.npy --codebook C.fvq -o .", "not a plain file"),
        (None, "encode X.npy --codebook C.fvq -o /dev/null", "not a plain file"),
        (None, "encode X.npy --codebook C.fvq -o ./X.npy", "also an input"),
        (None, "encode X.npy --codebook C.fvq -o C.fvq", "also an input"),
        (None, "decode X.npy --codebook C.fvq -o out.npy", "codes must be integers"),
        (None, "fit X.npy -o X.npy", "also an input"),
        (None, "fit X.npy -o C.npy --init C.npy --codewords 7", "also an input"),
        (
            None,
            "fit X.npy -o out.fvq --set taxi=1",
            "VectorQuantizer has no parameter taxi",
        ),
        (None, "fit X.npy -o out.fvq --set metric=taxi", "metric must be one of"),
        (None, "encode X.npy --codebook C.npy -o out.npy", "C.npy: not a fastvq file but a NumPy"),
        (None, "fit X.npy -o out.npy --init nonsense", "init"),
        (None, "fit X.npy -o out.npy --init C.npy --codewords 8", "init"),
        (None, "fit X.npy -o out.npy --tol -1", "tol"),
        (None, "fit X.npy -o out.npy --threads 0", "n_threads"),
        (None, "fit X.npy -o out.npy --seed -1", "Seed must be"),
        (lambda: save("X.npy", np.zeros((3, 5))), ENCODE, "X has 5 features, but VectorQuantizer"),
        (lambda: corrupt("C.fvq", lambda b: b[:-1]), ENCODE, "C.fvq: cut short"),
        (lambda: corrupt("C.fvq", lambda b: b[:-1] + b"x"), ENCODE, "C.fvq: damaged: tensor"),
        (lambda: save("X.npy", np.full((2, 6), np.inf)), ENCODE, "X.npy"),
        (lambda: save("X.npy", np.ones((2, 6), complex)), ENCODE, "X.npy"),
        (lambda: save("X.npy", [["a"] * 6]), ENCODE, "X.npy"),
        (lambda: save("X.npy", np.full((20, 6), np.nan)), "fit X.npy -o out.npy", "X"),
        (lambda: save("X.npy", np.zeros((20, 0))), "fit X.npy -o out.npy", "X"),
        (
            lambda: save("codes.npy", [0, 1, 7]),
            "decode codes.npy --codebook C.fvq -o out.npy",
            "codes.npy, counting from row 0: codes must be from 0 to 6, got values from 0 to 7",
        ),
        (
            lambda: save("codes.npy", [0, -1, 7]),
            "decode codes.npy --codebook C.fvq -o out.npy",
            "got values from -1 to 7",
        ),
        (
            lambda: save("codes.npy", [[0, 1], [1, 0]]),
            "decode codes.npy --codebook C.fvq -o out.npy",
            "codes must have the shape (n, 1) or (n,), got (2, 2)",
        ),
    ],
)
def test_bad_input_exits_2_with_one_line(folder, capsys, prepare, line, said):
    if prepare:
        prepare()
    before = {name: os.path.getsize(name) for name in os.listdir()}
    assert run(line) == 2
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("fastvq: error: ") and said in last
    assert "Traceback" not in captured.err and captured.out == ""
    assert {name: os.path.getsize(name) for name in os.listdir()} == before


def test_a_row_that_is_not_finite_is_found_in_its_block(folder, capsys, monkeypatch):
    X = np.load("X.npy")
    X[299, 2] = np.nan
    np.save("X.npy", X)
    monkeypatch.setattr(_files, "BLOCK_BYTES", 100 * X[0].nbytes)
    assert run(ENCODE) == 2
    message = capsys.readouterr().err
    assert "counting from row 200" in message and "99" in message


def test_zero_rows_have_no_direction(folder, capsys):
    X = np.load("X.npy")
    X[3] = 0
    np.save("X.npy", X)
    save_codebook(np.eye(3, 6, dtype=np.float32), metric="cosine")
    assert run(ENCODE) == 2
    assert "X.npy" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback(folder, capsys, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("FASTVQ_DEBUG", "1")
    option = " --debug" if how == "option" else ""
    assert run("encode absent.npy --codebook C.fvq -o out.npy" + option) == 2
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert message.splitlines()[-1].startswith("fastvq: error: absent.npy")


# ---- failures and interruptions: all or nothing ----


@pytest.mark.parametrize("old", [None, b"precious"])
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (MemoryError(), 1, "out of memory"),
        (ImportError("pip install it"), 1, "pip install it"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines"),
    ],
)
def test_a_failed_write_leaves_no_half_file(folder, monkeypatch, capsys, error, code, said, old):
    if old:
        (folder / "out.npy").write_bytes(old)
    calls = []
    encode = VectorQuantizer.encode_blocks

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return encode(*args, **kwargs)

    monkeypatch.setattr(VectorQuantizer, "encode_blocks", failing)
    monkeypatch.setattr(_files, "BLOCK_BYTES", 1000)
    before = sorted(os.listdir())
    assert run(ENCODE) == code
    message = capsys.readouterr().err
    assert message.startswith("fastvq: ") and said in message and message.count("\n") == 1
    assert sorted(os.listdir()) == before
    assert old is None or (folder / "out.npy").read_bytes() == old


def test_a_full_disk(folder):
    """A limit on the size of files stands for it: writes beyond it fail in the same way."""
    sparse_npy("codes.npy", (1_000_000,), "u1")
    (folder / "Y.npy").write_bytes(b"precious")
    limit = 1 << 20
    result = program(
        *shlex.split("decode codes.npy --codebook C.fvq -o Y.npy"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1
    assert result.stderr.startswith("fastvq: error: ") and result.stderr.count("\n") == 1
    assert sorted(os.listdir()) == ["C.fvq", "C.npy", "X.npy", "Y.npy", "codes.npy"]
    assert (folder / "Y.npy").read_bytes() == b"precious"


@pytest.mark.parametrize("command", ["fit", "encode"])
def test_ctrl_c_in_a_long_run(folder, command):
    sparse_npy("X.npy", (10_000_000, 6), "f4")
    line = {
        "fit": "fit X.npy -o out.npy --codewords 100 --init random --tol 0 --verbose",
        "encode": "encode X.npy --codebook C.fvq -o out.npy",
    }[command]
    if command == "encode":
        save_codebook(np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32))
    # A shell's background jobs, of which these tests may be one, hand down that Ctrl-C is ignored.
    process = subprocess.Popen(
        [*PROGRAM, *shlex.split(line)], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    if command == "encode":
        deadline = time.monotonic() + 60
        while not any(name.endswith(".tmp") for name in os.listdir()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)
    else:
        process.stderr.read(1)  # it shows progress: it fits
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert message.splitlines()[-1] == "fastvq: interrupted" and "Traceback" not in message
    assert time.monotonic() - sent < 5  # 0.5 s is promised; the machine may be busy
    assert sorted(os.listdir()) == ["C.fvq", "C.npy", "X.npy"]


def test_a_good_file_is_replaced_and_links_are_followed(folder):
    (folder / "real").mkdir()
    (folder / "out.npy").symlink_to(folder / "real" / "codes.npy")
    for _ in range(2):
        assert run(ENCODE) == 0
    assert os.path.islink("out.npy")
    assert np.load("real/codes.npy").shape == (500, 1)
    assert os.listdir("real") == ["codes.npy"]


# ---- image ----

Image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")

from fastvq.images import psnr, read_picture, round_codebook, to_rows  # noqa: E402


@pytest.fixture(scope="module")
def photograph():
    datasets = pytest.importorskip("sklearn.datasets")
    return np.asarray(datasets.load_sample_image("china.jpg"))[100:203, 200:333]  # 103 x 133


def test_image_writes_an_indexed_png(folder, photograph, capsys):
    Image.fromarray(photograph).save("in.bmp")
    assert run("image in.bmp out.png --codewords 16 --seed 4") == 0
    rows = to_rows(photograph)
    expected = VectorQuantizer(16, random_state=4).fit(rows)
    copy = round_codebook(expected.codebook_)[expected.predict(rows)].reshape(photograph.shape)
    with Image.open("out.png") as image:
        assert image.mode == "P" and len(image.getcolors()) == 16
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), copy)
    out = capsys.readouterr().out
    assert f"{os.path.getsize('in.bmp'):,} bytes" in out
    assert f"{os.path.getsize('out.png'):,} bytes" in out
    assert f"PSNR {psnr(photograph, copy):.2f} dB" in out
    assert os.path.getsize("out.png") < os.path.getsize("in.bmp") / 5


def test_image_of_more_than_256_colours_is_rgb(folder, photograph):
    Image.fromarray(photograph).save("in.png")
    assert run("image in.png out.png --codewords 300 --max-samples 5000") == 0
    with Image.open("out.png") as image:
        assert image.mode == "RGB"
        assert 256 < len(image.getcolors(10**6)) <= 300
        assert psnr(photograph, np.asarray(image)) > 30


@pytest.mark.parametrize("block", [2, 4, 7])
def test_image_of_blocks_keeps_the_size(folder, photograph, block):
    Image.fromarray(photograph).save("in.png")
    assert run(f"image in.png out.png --codewords 64 --block {block}") == 0
    with Image.open("out.png") as image:
        assert image.mode == "RGB"
        assert psnr(photograph, np.asarray(image)) > 15
    # As many codewords as blocks: nothing is lost, at the padded edges neither.
    n_blocks = len(to_rows(photograph, block))
    assert run(f"image in.png out.png --codewords {n_blocks} --block {block}") == 0
    with Image.open("out.png") as image:
        np.testing.assert_array_equal(np.asarray(image), photograph)


@pytest.mark.parametrize(
    ("mode", "written", "levels"),
    [
        ("1", "L", 2),
        ("L", "L", 5),
        ("LA", "RGBA", 6),
        ("P", "RGB", 6),
        ("RGB", "RGB", 6),
        ("RGBA", "RGBA", 6),
    ],
)
def test_a_picture_of_few_colours_is_unchanged(folder, mode, written, levels):
    rng = np.random.default_rng(0)
    palette = rng.integers(1, 256, size=(levels, 4), dtype=np.uint8)
    picture = Image.fromarray(palette[rng.integers(levels, size=(9, 11))])
    picture = picture.convert("RGB").quantize(levels) if mode == "P" else picture.convert(mode)
    picture.save("in.png")
    assert run("image in.png out.png --codewords 6") == 0
    with Image.open("out.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(
            np.asarray(image.convert("RGBA")), np.asarray(picture.convert("RGBA"))
        )
    assert run("image in.png out.png --codewords 99 --block 1") == 0
    assert run("image in.png blocks.png --codewords 99 --block 2") == 0
    with Image.open("blocks.png") as image:
        assert image.mode == written
        np.testing.assert_array_equal(
            np.asarray(image.convert("RGBA")), np.asarray(picture.convert("RGBA"))
        )


def test_image_modes_that_become_rgb(folder, photograph):
    picture = Image.fromarray(photograph)
    picture.convert("CMYK").save("in.tif")
    assert run("image in.tif out.png --codewords 64") == 0
    with Image.open("out.png") as image:
        assert psnr(photograph, np.asarray(image.convert("RGB"))) > 25


def test_image_of_16_bit_grey_is_reduced_with_a_warning(folder, capsys):
    grey = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(grey).save("in.png")
    assert run("image in.png out.png --codewords 256") == 0
    assert "fastvq: warning: in.png: 16-bit grey reduced to 8 bits" in capsys.readouterr().err
    with Image.open("out.png") as image:
        copy = np.asarray(image.convert("L")).astype(float)
    assert np.abs(copy - grey / 257.0).max() <= 1.5


def test_image_of_floats_is_refused(folder, capsys):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save("in.tif")
    assert run("image in.tif out.png") == 2
    assert "floating-point pixels have no fixed range" in capsys.readouterr().err


def test_image_is_turned_upright(folder, photograph):
    picture = Image.fromarray(photograph)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: rotate by 90 degrees clockwise to see it upright
    picture.save("in.jpg", quality=95, exif=exif)
    assert run("image in.jpg out.png --codewords 256") == 0
    with Image.open("out.png") as image:
        assert image.size == photograph.shape[:2]
        upright = np.rot90(photograph, k=-1)
        assert psnr(upright, np.asarray(image.convert("RGB"))) > 25


def test_invisible_colours_cost_no_codeword(folder):
    noise = np.random.default_rng(0).integers(256, size=(20, 20, 4), dtype=np.uint8)
    noise[..., 3] = 0
    noise[:10] = (255, 0, 0, 255)
    Image.fromarray(noise).save("in.png")
    assert run("image in.png out.png --codewords 2") == 0
    with Image.open("out.png") as image:
        copy = np.asarray(image.convert("RGBA"))
    assert (copy[:10] == (255, 0, 0, 255)).all() and (copy[10:, :, 3] == 0).all()


def test_animations_give_their_first_frame(folder, capsys):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    first.save("in.gif", save_all=True, append_images=[second])
    assert run("image in.gif out.png --codewords 1") == 0
    assert "2 frames; taking the first" in capsys.readouterr().err
    with Image.open("out.png") as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("image X.npy out.png", "X.npy: not a picture"),
        ("image absent.png out.png", "absent.png: No such file"),
        ("image cut.png out.png", "cut.png: damaged picture"),
        ("image cut.jpg out.png", "cut.jpg: damaged picture"),
        ("image whole.png out.jpg", "ends in .png"),
        ("image whole.png whole.png", "also an input"),
        ("image whole.png absent/out.png", "no folder"),
    ],
)
def test_bad_pictures_exit_2_with_one_line(folder, photograph, capsys, line, said):
    for name in ["whole.png", "cut.png", "cut.jpg"]:
        Image.fromarray(photograph).save(name)
    for name in ["cut.png", "cut.jpg"]:
        corrupt(name, lambda content: content[: len(content) // 2])
    before = sorted(os.listdir())
    assert run(line) == 2
    message = capsys.readouterr().err
    assert message.startswith("fastvq: error: ") and said in message and message.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("line", ["image in.png out.png", "demo"])
def test_without_pillow_the_extra_is_named(folder, monkeypatch, capsys, line):
    for name in ["PIL", "PIL.Image", "PIL.ImageOps"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert run(line) == 1
    assert 'pip install "fastvq[image]"' in capsys.readouterr().err
    assert sorted(os.listdir()) == ["C.fvq", "C.npy", "X.npy"]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "TIFF", "BMP"])
def test_pictures_damaged_at_random_end_in_a_picture_or_a_valueerror(photograph, format):
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(photograph[:20, :24]).save(file, format=format)
    whole = file.getvalue()
    refused = 0
    for _ in range(200):
        content = bytearray(whole[: rng.integers(len(whole) // 2, len(whole) + 1)])
        for place in rng.integers(len(content), size=3):
            content[place] = rng.integers(256)
        try:
            pixels = read_picture(io.BytesIO(bytes(content)))
            assert pixels.dtype == np.uint8 and pixels.ndim == 3
        except ValueError:
            refused += 1
    assert refused > 20


def test_image_as_a_program(folder, photograph):
    Image.fromarray(photograph).save("in.png")
    result = program("image", "in.png", "out.png", "--codewords", "8", "--threads", "1")
    assert (result.returncode, result.stderr) == (0, "")
    assert "8 colours" in result.stdout and "codes 3 bits a pixel (of 24)" in result.stdout
