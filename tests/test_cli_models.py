"""The commands that deal with models, as they are typed."""

import json

import joblib
import numpy as np
import pytest
from golden import make as golden

import fastvq
from fastvq.cli import main
from fastvq.runtime import CompressedModel, Graph, Node, Value
from fastvq.runtime.encoding import Raw

ROWS = np.random.default_rng(0).normal(size=(12, 4)).astype("f4")


@pytest.fixture
def model(tmp_path):
    """The paths of a model's file and of rows for it, and the model."""
    model = golden.MODELS["mlp_1"]()
    model.save(tmp_path / "m.fvq")
    np.save(tmp_path / "x.npy", ROWS)
    return str(tmp_path / "m.fvq"), str(tmp_path / "x.npy"), model


def test_run_prints_outputs(model, capsys):
    path, rows, cm = model
    assert main(["run", path, rows]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{cm.output_names[0]}: 12 x 3 float32") and "... and 2 more" in out
    assert "answered in" in err
    assert main(["run", path, rows, "--method", "predict", "--profile"]) == 0
    out = capsys.readouterr().out
    assert str(cm.predict(ROWS)[0]) in out and "microseconds" in out


def test_run_writes_outputs(model, tmp_path):
    path, rows, cm = model
    out = str(tmp_path / "y.npy")
    assert main(["run", path, f"x={rows}", "-o", out, "--threads", "1"]) == 0
    np.testing.assert_array_equal(np.load(out), cm(ROWS))
    assert main(["run", path, rows, "-o", out, "--method", "predict"]) == 0
    assert list(np.load(out)) == list(cm.predict(ROWS))


def test_run_on_several_outputs(tmp_path, capsys):
    forest = golden.MODELS["forest_1"]()
    forest.save(tmp_path / "f")
    np.save(tmp_path / "x.npy", ROWS[:, :3])
    command = ["run", str(tmp_path / "f"), str(tmp_path / "x.npy"), "-o"]
    assert main([*command, str(tmp_path / "y.npz")]) == 0
    with np.load(tmp_path / "y.npz") as found:
        assert sorted(found) == sorted(forest.output_names)
    assert main([*command, str(tmp_path / "y.npy")]) == 2
    assert "give a name in .npz" in capsys.readouterr().err


def test_run_on_text_and_pictures(tmp_path, capsys):
    golden.MODELS["transformer_1"]().save(tmp_path / "t")
    (tmp_path / "x.txt").write_text("a b\nabba c.\n")
    assert main(["run", str(tmp_path / "t"), str(tmp_path / "x.txt"), "--method", "transform"]) == 0
    assert "transform: 2 x 4 float32" in capsys.readouterr().out
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    golden.MODELS["cnn_1"]().save(tmp_path / "c")
    image.fromarray(np.full((20, 30, 3), 99, np.uint8)).save(tmp_path / "p.png")
    assert main(["run", str(tmp_path / "c"), str(tmp_path / "p.png"), str(tmp_path / "p.png")]) == 0
    assert ": 2 x 3 float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.fvq", "x.npy"], "absent.fvq: No such file"),
        (["m.fvq", "m.fvq"], "m.fvq"),
        (["m.fvq", "y=x.npy"], "input x is missing"),
        (["m.fvq", "x.npy", "--method", "transform"], "no transform; its methods: predict"),
        (["m.fvq", "x.npy", "-o", "x.npy"], "also an input"),
        (["vq.fvq", "x.npy"], "holds a VectorQuantizer, not a model"),
    ],
)
def test_bad_runs(model, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    fastvq.VectorQuantizer(2, random_state=0).fit(ROWS).save("vq.fvq")
    assert main(["run", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_compress_to_float16(model, tmp_path, capsys):
    path, _, cm = model
    assert (
        main(["compress", path, "-o", str(tmp_path / "h"), "--scheme", "float16", "--report"]) == 0
    )
    out = capsys.readouterr().out
    assert "float16" in out and f"{(tmp_path / 'h').stat().st_size:,} bytes" in out
    np.testing.assert_allclose(fastvq.load(tmp_path / "h")(ROWS), cm(ROWS), rtol=1e-3)


def test_pickles_only_when_told(tmp_path, capsys):
    from sklearn.linear_model import LogisticRegression

    path, out = str(tmp_path / "m.joblib"), str(tmp_path / "m.fvq")
    estimator = LogisticRegression().fit(ROWS, np.arange(12) % 2)
    joblib.dump(estimator, path)
    assert main(["compress", path, "-o", out]) == 2
    assert "runs whatever code it holds" in capsys.readouterr().err
    assert main(["compress", path, "-o", out, "--unpickle"]) == 0
    found = fastvq.load(out).predict(ROWS)
    assert list(found) == list(estimator.predict(ROWS))


def test_check(model, capsys):
    path, *_ = model
    assert main(["check"]) == 0
    assert "TreeEnsemble" in capsys.readouterr().out
    assert main(["check", path]) == 0
    assert "Dense" in capsys.readouterr().out
    assert main(["check", "absent.onnx"]) == 2


def test_inspect(model, capsys):
    path, *_ = model
    assert main(["inspect", path, "--verify"]) == 0
    out = capsys.readouterr().out
    for said in (
        "CompressedModel(x: float32 (N, 4)",
        "Dense",
        "float16",
        "all are right",
        "classes",
    ):
        assert said in out
    assert main(["inspect", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "CompressedModel"


def test_onnx_models(tmp_path, capsys):
    """Checked, compressed and run; what cannot be taken over is named by node."""
    onnx = pytest.importorskip("onnx", reason="needs the package onnx")
    cm = golden.MODELS["mlp_1"]()
    proto, path, out = cm.to_onnx(), str(tmp_path / "m.onnx"), str(tmp_path / "m.fvq")
    onnx.save(proto, path)
    assert main(["check", path]) == 0
    assert "all of its nodes are supported" in capsys.readouterr().out
    assert main(["compress", path, "-o", out]) == 0
    np.testing.assert_allclose(fastvq.load(out)(ROWS), cm(ROWS), rtol=1e-5, atol=1e-5)
    proto.graph.node[-1].op_type, proto.graph.node[-1].name = "Bernoulli", "dice"
    onnx.save(proto, path)
    assert main(["check", path]) == 2
    out, err = capsys.readouterr()
    assert "Bernoulli 'dice'" in out and "operators of ai.onnx:" in out
    assert "1 nodes cannot be taken over" in err
    assert main(["compress", path, "-o", str(tmp_path / "no")]) == 2


def test_compress_to_few_bits(tmp_path, capsys):
    layer = np.random.default_rng(0).normal(size=(64, 96)).astype("f4")
    x = np.random.default_rng(1).normal(size=(40, 96)).astype("f4")
    graph = Graph(
        [Node("Dense", ["x", "w"], ["y"])],
        [Value("x", "float32", ("N", 96))],
        [Value("y", "float32", ("N", 64))],
        {"w": Raw(layer)},
    )
    path, examples = str(tmp_path / "m.fvq"), str(tmp_path / "x.npy")
    CompressedModel(graph).save(path)
    np.save(examples, x)
    command = ["compress", path, "--calibrate", examples, "-o", str(tmp_path / "s.fvq")]
    sizes = []
    for settings in (
        ["--scheme", "int4", "--group", "32"],
        ["--scheme", "codebook", "--bits", "3"],
        ["--scheme", "auto", "--size-budget", "4000"],
        ["--scheme", "auto", "--size-budget", "4000", "--coder", "rans"],
    ):
        assert main([*command, *settings]) == 0, capsys.readouterr()
        sizes.append((tmp_path / "s.fvq").stat().st_size)
        assert fastvq.load(tmp_path / "s.fvq")(x).shape == (40, 64)
    assert sizes[1] < sizes[0] < 0.25 * layer.nbytes and sizes[2] <= 4000
    capsys.readouterr()
    for wrong, message in (
        (["--scheme", "int8", "--bits", "3"], "does not take --bits"),
        (["--scheme", "float16"], "needs no examples"),
        (["--scheme", "auto", "--size-budget", "10"], "cannot be kept"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_export(model, tmp_path, capsys):
    path, _, cm = model
    header = tmp_path / "small.h"
    assert main(["export", path, "-o", str(header)]) == 0
    assert f"{header.stat().st_size:,} bytes, c" in capsys.readouterr().out
    assert header.read_text() == cm.to_c(name="small") and (tmp_path / "small.npz").exists()
    for arguments, said in (
        (["-o", str(tmp_path / "m")], "say --to"),
        (["-o", path, "--to", "c"], "also an input"),
    ):
        assert main(["export", path, *arguments]) == 2
        assert said in capsys.readouterr().err
    fastvq.VectorQuantizer(2, random_state=0).fit(ROWS).save(tmp_path / "vq.fvq")
    assert main(["export", str(tmp_path / "vq.fvq"), "-o", str(header)]) == 2
    assert "not a model" in capsys.readouterr().err
    pytest.importorskip("onnx", reason="needs the package onnx")
    assert main(["export", path, "-o", str(tmp_path / "m.onnx")]) == 0
    again = str(tmp_path / "again.fvq")
    assert main(["compress", str(tmp_path / "m.onnx"), "-o", again]) == 0
    np.testing.assert_allclose(fastvq.load(again)(ROWS), cm(ROWS), rtol=1e-5, atol=1e-5)
