"""Operators that move values: kernels against the definitions, definitions against plain NumPy."""

import itertools

import numpy as np
import pytest

from fastvq.runtime.encoding import Raw
from fastvq.runtime.graph import Graph, Node, Value
from fastvq.runtime.model import CompressedModel
from fastvq.runtime.ops import Form, operators
from fastvq.runtime.registry import KernelCall, compiled

DTYPES = [np.float32, np.float64, np.int64, np.int32, np.int16, np.uint8, np.bool_]


def model_of(operator, arrays, n_data=1, **attributes):
    """A model of one node; inputs after the first `n_data` are constants."""
    names = ["" if a is None else f"x{i}" for i, a in enumerate(arrays)]
    outputs = operators()[operator].run(arrays, attributes)
    made = [f"y{i}" for i in range(len(outputs))]
    data = zip(names[:n_data], arrays[:n_data], strict=True)
    constants = zip(names[n_data:], arrays[n_data:], strict=True)
    return CompressedModel(
        Graph(
            [Node(operator, names, made, attributes)],
            [Value(name, a.dtype.name, a.shape) for name, a in data],
            [Value(name, y.dtype.name, y.shape) for name, y in zip(made, outputs, strict=True)],
            {name: Raw(a) for name, a in constants if name},
        )
    )


def check(operator, arrays, n_data=1, exact=True, kernel=True, **attributes):
    """What a model gives is what the definition says, at every number of threads."""
    model = model_of(operator, arrays, n_data, **attributes)
    wanted = operators()[operator].run(arrays, attributes)
    given = {f"x{i}": a for i, a in enumerate(arrays[:n_data])}
    for threads in (1, 2, 5):
        plan = model.plan([a.shape for a in arrays[:n_data]], threads)
        if compiled() and kernel and all(y.size for y in wanted):
            assert all(isinstance(step, KernelCall) for step in plan.steps)
        for found, y in zip(model.run(given, n_threads=threads), wanted, strict=True):
            assert found.dtype == y.dtype
            if exact:
                np.testing.assert_array_equal(found, y)
            else:
                np.testing.assert_allclose(found, y, rtol=1e-5, atol=1e-5)


def numbers(*shape, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    values = (
        random.integers(0, 100, shape) if np.dtype(dtype).kind != "f" else random.normal(size=shape)
    )
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1,), (7, 1), (17, 33), (3, 50), (2, 3, 5), (3, 1, 16, 9), (2, 3, 2, 3, 4)]
)
def test_transpose(shape, dtype):
    x = numbers(*shape, dtype=dtype)
    for order in itertools.islice(itertools.permutations(range(len(shape))), 30):
        check("Transpose", [x], order=order)


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0), (2, 0, 1)])
def test_large_transpose(order):
    check("Transpose", [numbers(65, 130, 97)], order=order)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
def test_concat_and_split(axis, dtype):
    sizes = (1, 7, 3)
    shapes = [[5, 6, 4] for _ in sizes]
    for shape, n in zip(shapes, sizes, strict=True):
        shape[axis] = n
    parts = [numbers(*shape, dtype=dtype) for shape in shapes]
    check("Concat", parts, n_data=3, axis=axis)
    whole = np.concatenate(parts, axis)
    check("Split", [whole], axis=axis, sizes=sizes)
    check("Split", [whole], axis=axis, parts=3)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [4], [0], None),
        ([0, 2], [9, 1 << 60], [1, 2], [2, 3]),
        ([-1], [-(1 << 60)], [1], [-1]),
        ([4, -2], [0, 0], [-1, 0], [-2, -1]),
        ([3], [3], [0], None),
    ],
)
def test_slice(starts, ends, axes, steps):
    arrays = [None if a is None else np.array(a) for a in (starts, ends, axes, steps)]
    check("Slice", [numbers(5, 9, 7), *arrays])


def test_expand_and_tile():
    check("Expand", [numbers(3, 1, 5), np.array([2, 1, 4, 5])])
    check("Expand", [numbers(1), np.array([3, 4])])
    check("Expand", [numbers(6, 1), np.array([6, 70])])
    check("Tile", [numbers(3, 4, 5), np.array([2, 1, 3])])
    check("Tile", [numbers(3, 4), np.array([1, 0])])


@pytest.mark.parametrize("dtype", DTYPES)
def test_pad(dtype):
    x = numbers(4, 5, 6, dtype=dtype)
    check("Pad", [x, np.array([1, 0, 2, 0, 3, 1])])
    check("Pad", [x, np.array([-1, 0, 2, 0, -3, 1]), np.array(1, dtype)])
    check("Pad", [x, np.array([2, 1]), None, np.array([-1])])
    for mode in ("edge", "reflect", "wrap"):
        check("Pad", [x, np.array([1, 0, 2, 0, 3, 1])], mode=mode)
        check("Pad", [x, np.array([-1, 0, 3, 2, -2, 3])], mode=mode)
        check("Pad", [x, np.array([9, 7]), None, np.array([-1])], mode=mode)
        check("Pad", [x, np.zeros(6, int)], mode=mode)
        check("Pad", [x[:, :0], np.array([1, 0, 1, 0, 0, 1])], mode=mode, kernel=False)


@pytest.mark.parametrize("whole", [np.int64, np.int32])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(axis, dtype, whole):
    x = numbers(9, 6, 5, dtype=dtype)
    indices = np.array([[0, -1, 3], [2, -5, 4]], whole)
    check("Gather", [x, indices], n_data=2, axis=axis)
    check("Gather", [x, indices[0, 0]], n_data=2, axis=axis)
    check("Gather", [x, indices[:0]], n_data=2, axis=axis)


def test_gather_from_an_embedding():
    words, table = np.array([[3, 0, 99], [7, 7, -1]]), numbers(100, 33)
    graph = Graph(
        [Node("Gather", ("table", "words"), ("y",))],
        [Value("words", "int64", ("N", 3))],
        [Value("y", "float32", ("N", 3, 33))],
        {"table": Raw(table.astype(np.float16))},
    )
    model = CompressedModel(graph)
    np.testing.assert_array_equal(model(words), table.astype(np.float16).astype(np.float32)[words])
    for bad in (100, -101, 1 << 40):
        with pytest.raises(IndexError, match="out of"):
            model(np.array([[0, 1, bad]]))
    np.testing.assert_array_equal(model(words[:1]), model(words)[:1])


COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]


@pytest.mark.parametrize("coordinates", [*COORDINATES, "half_pixel_symmetric"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size", [(2, 3), (9, 14), (5, 7), (1, 1), (11, 7)])
def test_resize(size, mode, coordinates):
    x = numbers(2, 5, 7, 3)
    sizes = np.array([2, *size, 3])
    for antialias in (False, True):
        check(
            "Resize", [x, None, sizes], mode=mode, coordinates=coordinates, antialias=antialias,
            exact=mode == "nearest",
        )  # fmt: skip


def test_resize_as_torch_does():
    torch = pytest.importorskip("torch")
    x = numbers(2, 5, 7, 3)
    picture = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    for mode, theirs in (("linear", "bilinear"), ("cubic", "bicubic")):
        wanted = torch.nn.functional.interpolate(picture, (11, 4), mode=theirs).numpy()
        given = {"mode": mode, "coordinates": "pytorch_half_pixel"}
        (found,) = operators()["Resize"].run([x, None, np.array([2, 11, 4, 3])], given)
        np.testing.assert_allclose(np.moveaxis(found, -1, 1), wanted, atol=1e-5)


def test_a_row_moves_alike_in_any_batch():
    x = numbers(33, 5, 7, 3)
    model = model_of("Resize", [x, np.array([1, 2, 1.5, 1])], mode="linear")
    rows = Graph(
        model.graph.nodes,
        [Value("x0", "float32", ("N", 5, 7, 3))],
        [Value("y0", "float32", ("N", 10, 10, 3))],
        model.graph.constants,
    )
    model = CompressedModel(rows)
    whole = model(x, n_threads=2)
    for i in (0, 17, 32):
        np.testing.assert_array_equal(model(x[i : i + 1], n_threads=1), whole[i : i + 1])


@pytest.mark.parametrize(
    ("operator", "arrays", "attributes", "words"),
    [
        ("Reshape", [numbers(2, 3), np.array([4, -1])], {}, "cannot become"),
        ("Reshape", [numbers(2, 3), np.array([-1, -1])], {}, "is none"),
        ("Transpose", [numbers(2, 3)], {"order": (0, 0)}, "once"),
        ("Concat", [numbers(2, 3), numbers(3, 3)], {"axis": 1}, "do not meet"),
        ("Split", [numbers(2, 3)], {"axis": 1, "sizes": (1, 1)}, "cannot be cut"),
        (
            "Slice",
            [numbers(2), np.array([0]), np.array([1]), np.array([0]), np.array([0])],
            {},
            "step",
        ),
        ("Expand", [numbers(2, 3), np.array([2, 2])], {}, "broadcast"),
        ("Pad", [numbers(2), np.array([-2, -2])], {}, "than there is"),
        ("Gather", [numbers(2), numbers(2)], {}, "whole numbers"),
        ("Squeeze", [numbers(2, 1)], {"axes": (0,)}, "not all 1"),
        ("Resize", [numbers(2, 3)], {}, "needed"),
        ("Fill", [np.array([-1])], {}, "is none"),
        ("Range", [np.array(0), np.array(1), np.array(0)], {}, "step"),
    ],
)
def test_what_does_not_go_together(operator, arrays, attributes, words):
    forms = [Form(a.shape, a.dtype, a) for a in arrays]
    with pytest.raises(ValueError, match=words):
        operators()[operator].forms(forms, attributes)
