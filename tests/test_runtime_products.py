"""Products and pooling: definitions against torch, kernels against definitions, promises."""

import itertools

import numpy as np
import pytest
from oracles import THREADS, assert_same_bits

from fastvq.runtime import CompressedModel, Graph, GraphError, Node, Value
from fastvq.runtime.encoding import Raw
from fastvq.runtime.fuse import ACTIVATIONS
from fastvq.runtime.lowering import distances, products
from fastvq.runtime.ops import operators
from fastvq.runtime.registry import KernelCall, compiled

SIZES = (1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97)


@pytest.fixture(autouse=True)
def threads_at_once(monkeypatch):
    """As many threads as a test asks for, however little there is to do."""
    monkeypatch.setattr(products, "_THREAD_WORK", 1)
    monkeypatch.setattr(products, "_THREAD_VALUES", 1)
    monkeypatch.setattr(distances, "_THREAD_WORK", 1)


def model_of(operator, inputs, constants, **attributes):
    """A model of one node; constants that are None are left out."""
    names = [f"x{i}" for i in range(len(inputs))]
    given = {f"w{i}": a for i, a in enumerate(constants)}
    node = Node(operator, (*names, *["" if a is None else n for n, a in given.items()]), ("y",),
                attributes)  # fmt: skip
    # The batch of the first input is free.
    values = [
        Value(n, str(a.dtype), ("N", *a.shape[1:]) if i == 0 else a.shape)
        for i, (n, a) in enumerate(zip(names, inputs, strict=True))
    ]
    form = operators()[operator].forms(
        [*inputs, *constants] if operator != "Pool" else inputs, attributes
    )[0]
    output = Value("y", str(form.dtype), ("M", *form.shape[1:]))
    constants = {n: Raw(a) for n, a in given.items() if a is not None}
    return CompressedModel(Graph([node], values, [output], constants))


def check(operator, inputs, constants=(), tolerance=1e-5, **attributes):
    """Kernels against the definition, with the same bits at any number of threads; the answer."""
    expected = operators()[operator].run([*inputs, *constants], attributes)[0]
    model = model_of(operator, inputs, constants, **attributes)
    plan = model.plan([a.shape for a in inputs], 1)
    if compiled():
        assert all(isinstance(step, KernelCall) for step in plan.steps), "no kernel"
    first = None
    for threads in THREADS:
        y = model(*inputs, n_threads=threads)
        assert y.shape == expected.shape
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
        np.testing.assert_allclose(y, expected, rtol=tolerance, atol=tolerance * scale)
        first = y if first is None else first
        assert_same_bits(y, first, f"{threads} threads")
    return model, first


def check_rows(model, y, x, *others):
    """A row alone, and in part of a batch, has the bits that it has in the whole batch."""
    if not compiled():
        return
    for rows in ([0], [len(x) - 1], range(len(x) // 2), range(1, len(x), 2)):
        part = x[list(rows)]
        if len(part):
            assert_same_bits(model(part, *others, n_threads=1), y[list(rows)], f"rows {rows}")


def random(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


# ---- dense layers and matrices -----------------------------------------------------------------


@pytest.mark.parametrize("step", [5, 7, 11])
def test_dense_at_awkward_sizes(step):
    for i, m in enumerate(SIZES):
        k, n = SIZES[(step * i + 3) % 12], SIZES[(7 * step * i + 5) % 12]
        x, weight, bias = random(i, m, k), random(i + 1, n, k), random(i + 2, n)
        model, y = check("Dense", [x], [weight, bias if i % 3 else None])
        check_rows(model, y, x)


def test_dense_with_more_features_than_a_block():
    for m, k, n in [(1, 1000, 100), (2, 785, 40), (3, 770, 33), (50, 1537, 17), (97, 769, 65)]:
        x, weight, bias = random(m, m, k), random(k, n, k), random(n, n)
        model, y = check("Dense", [x], [weight, bias])
        check_rows(model, y, x)


def test_every_number_of_rows_has_the_same_bits():
    """All shapes of tiles: one to three rows by several panels, full and half panels."""
    weight, bias, x = random(0, 150, 90), random(1, 150), random(2, 30, 90)
    model, whole = check("Dense", [x], [weight, bias], activation="relu")
    for n in range(1, 31):
        assert_same_bits(model(x[:n], n_threads=1), whole[:n], f"{n} rows")


@pytest.mark.parametrize(
    ("activation", "alpha", "beta"),
    [("identity", 0, 0), ("relu", 0, 0), ("clip", -0.5, 0.75), ("leaky_relu", 0.1, 0)],
)
def test_activations_and_values_that_are_none(activation, alpha, beta):
    x, weight, bias = random(0, 20, 9), random(1, 21, 9), random(2, 21)
    x[3, 4], x[5, 6], x[7, 1] = np.nan, np.inf, -np.inf
    attributes = {"activation": activation, "alpha": float(alpha), "beta": float(beta)}
    _, y = check("Dense", [x], [weight, bias], **attributes)
    assert np.isnan(y[3]).all()
    assert np.isnan(y).sum() == 21
    picture, kernel = random(3, 2, 5, 6, 9), random(4, 9, 3, 3, 1)
    picture[1, 2, 3, 4] = np.nan
    _, y = check("Conv", [picture], [kernel], groups=9, **attributes)
    assert np.isnan(y).sum() == 9
    _, y = check("Pool", [picture], function="max", kernel=(2, 2))
    assert np.isnan(y).sum() == 4


@pytest.mark.skipif(not compiled(), reason="by definition it is the same code")
@pytest.mark.parametrize("function", ACTIVATIONS)
def test_a_function_behind_a_product_has_the_bits_of_one_afterwards(function):
    alpha, beta = 0.75, 1.5
    dense, conv = random(0, 300, 9), random(1, 2, 9, 7, 19)
    for operator, x, weight, attributes in [
        ("Dense", dense[:5], random(2, 300, 9), {}),
        ("Dense", dense, random(2, 21, 9), {}),
        ("Conv", conv, random(3, 33, 3, 3, 19), {"pads": (1, 1, 1, 1)}),
        ("Conv", conv, random(4, 19, 3, 3, 1), {"groups": 19}),
    ]:
        plain = model_of(operator, [x], [weight], **attributes)(x)
        after = model_of("Unary", [plain], [], function=function, alpha=alpha, beta=beta)(plain)
        model = model_of(
            operator, [x], [weight], activation=function, alpha=alpha, beta=beta, **attributes
        )
        for threads in THREADS:
            assert_same_bits(model(x, n_threads=threads), after, f"{operator}, {threads} threads")


def test_dense_of_more_dimensions_and_of_none():
    x, weight, bias = random(0, 4, 5, 6, 7), random(1, 8, 7), random(2, 8)
    check("Dense", [x], [weight, bias])
    check("Dense", [x[:, :0]], [weight, bias])
    check("Dense", [x[..., :0]], [weight[:, :0], bias])
    check("Dense", [x, weight, bias], [])
    check("Dense", [x, weight], [], activation="relu")


@pytest.mark.parametrize(("flip_a", "flip_b"), [*itertools.product([False, True], repeat=2)])
def test_matmul(flip_a, flip_b):
    shapes = [
        ((3, 7, 17), (3, 17, 33)),
        ((3, 1, 65), (3, 65, 31)),
        ((2, 3, 16, 15), (2, 3, 15, 97)),
        ((2, 1, 5, 64), (3, 64, 16)),
        ((5, 63), (4, 63, 1)),
        ((4, 2, 31, 1), (1, 7)),
    ]
    for a_shape, b_shape in shapes:
        a, b = random(1, *a_shape), random(2, *b_shape)
        a = np.ascontiguousarray(np.swapaxes(a, -1, -2)) if flip_a else a
        b = np.ascontiguousarray(np.swapaxes(b, -1, -2)) if flip_b else b
        check("MatMul", [a, b], transpose_a=flip_a, transpose_b=flip_b)
        check("MatMul", [a], [b], transpose_a=flip_a, transpose_b=flip_b)


def test_matmul_of_vectors():
    vector, matrix, many = random(0, 9), random(1, 9, 7), random(2, 3, 9, 7)
    check("MatMul", [vector, matrix])
    check("MatMul", [matrix.T.copy(), vector])
    check("MatMul", [vector, many])
    check("MatMul", [np.swapaxes(many, 1, 2).copy(), vector])
    assert check("MatMul", [vector, vector])[1].shape == ()


# ---- convolutions ------------------------------------------------------------------------------

CONVOLUTIONS = [
    # x, kernel, C_out, groups, attributes
    ((2, 9, 11, 3), (3, 3), 16, 1, {"pads": (1, 1, 1, 1)}),
    ((2, 9, 11, 3), (3, 3), 17, 1, {"strides": (2, 2), "same": "upper"}),
    ((2, 10, 10, 3), (3, 3), 17, 1, {"strides": (2, 2), "same": "lower"}),
    ((3, 12, 7, 8), (5, 3), 31, 1, {"dilations": (2, 3), "pads": (4, 0, 1, 2)}),
    ((2, 7, 7, 65), (1, 1), 33, 1, {}),
    ((2, 7, 8, 16), (1, 1), 33, 1, {"strides": (2, 3)}),
    ((2, 8, 9, 12), (3, 2), 18, 3, {"pads": (0, 1, 2, 0)}),
    ((2, 8, 9, 12), (3, 3), 24, 12, {"pads": (1, 1, 1, 1)}),
    ((1, 33, 15, 1), (5, 5), 6, 1, {}),
    ((2, 15, 17, 130), (3, 3), 10, 1, {"pads": (1, 1, 1, 1)}),
    ((2, 9, 11, 33), (3, 3), 33, 33, {"pads": (1, 1, 1, 1)}),
    ((2, 9, 11, 16), (3, 3), 16, 16, {"strides": (2, 2), "same": "upper"}),
    ((2, 12, 13, 31), (5, 3), 31, 31, {"dilations": (2, 3), "pads": (5, 3, 4, 7)}),
    ((2, 3, 2, 8), (7, 7), 8, 8, {"pads": (3, 3, 3, 3)}),
    ((3, 31, 7), (3,), 17, 1, {"pads": (2, 0), "dilations": (2,)}),
    ((3, 31, 8), (4,), 8, 8, {"strides": (2,), "same": "lower"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=range(len(CONVOLUTIONS)))
def test_convolutions(case):
    shape, kernel, n_out, groups, attributes = case
    x, bias = random(0, *shape), random(1, n_out)
    weight = random(2, n_out, *kernel, shape[-1] // groups)
    model, y = check("Conv", [x], [weight, bias], groups=groups, **attributes)
    check_rows(model, y, x)
    check("Conv", [x], [weight], groups=groups, activation="relu", **attributes)


TRANSPOSED = [
    ((2, 5, 6, 7), (3, 3), 9, 1, {}),
    ((2, 5, 6, 7), (3, 3), 9, 1, {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((2, 5, 6, 7), (4, 4), 9, 1, {"strides": (2, 2), "pads": (1, 0, 1, 2)}),
    ((2, 5, 6, 8), (2, 3), 6, 2, {"strides": (3, 2), "output_pads": (2, 1)}),
    ((1, 4, 3, 16), (3, 2), 17, 1, {"strides": (2, 3), "dilations": (2, 2), "pads": (0, 1, 2, 0)}),
    ((2, 9, 8), (4,), 5, 1, {"strides": (2,), "pads": (1, 1)}),
    ((2, 3, 3, 6), (3, 3), 6, 6, {"strides": (2, 2)}),
]  # fmt: skip


@pytest.mark.parametrize("case", TRANSPOSED, ids=range(len(TRANSPOSED)))
def test_transposed_convolutions(case):
    shape, kernel, n_out, groups, attributes = case
    x, bias = random(0, *shape), random(1, n_out)
    weight = random(2, n_out, *kernel, shape[-1] // groups)
    model, y = check(
        "ConvTranspose", [x], [weight, bias], groups=groups, activation="relu", **attributes
    )
    check_rows(model, y, x)


def test_three_dimensions_by_definition():
    x, weight = random(0, 2, 5, 6, 4, 3), random(1, 7, 2, 3, 2, 3)
    y = model_of("Conv", [x], [weight], pads=(1, 0, 1, 0, 1, 0))(x)
    torch = pytest.importorskip("torch")
    expected = torch.nn.functional.conv3d(
        torch.nn.functional.pad(_torch(torch, x), (1, 0, 0, 1, 1, 0)), _torch(torch, weight)
    )
    np.testing.assert_allclose(_first(y), expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CONVOLUTIONS + TRANSPOSED, ids=str)
def test_definitions_against_torch(case):
    torch = pytest.importorskip("torch")
    shape, kernel, n_out, groups, attributes = case
    n = len(kernel)
    pads = attributes.get("pads", (0,) * 2 * n)
    if "same" in attributes:
        pytest.skip("torch has no such padding")
    transposed = case in TRANSPOSED
    x, bias = random(0, *shape), random(1, n_out)
    weight = random(2, n_out, *kernel, shape[-1] // groups)
    options = {"stride": attributes.get("strides", 1), "dilation": attributes.get("dilations", 1),
               "groups": groups}  # fmt: skip
    functional = torch.nn.functional
    if transposed:
        w = weight.reshape(groups, n_out // groups, *weight.shape[1:])
        w = np.moveaxis(w, -1, 1).reshape(shape[-1], n_out // groups, *kernel)
        call = getattr(functional, f"conv_transpose{n}d")
        y = call(_torch(torch, x), torch.from_numpy(w.copy()), torch.from_numpy(bias), **options)
        extra = attributes.get("output_pads", (0,) * n)
        y = functional.pad(y, [p for e in extra[::-1] for p in (0, e)])
        y = y.numpy()
        # torch adds the bias to what it makes, not to what is added behind it
        cut = [slice(pads[i], y.shape[2 + i] - pads[n + i]) for i in range(n)]
        inner = [slice(0, y.shape[2 + i] - extra[i]) for i in range(n)]
        full = np.broadcast_to(bias.reshape(-1, *[1] * n), y.shape).copy()
        inner, cut = ((slice(None), slice(None), *part) for part in (inner, cut))
        full[inner] = y[inner]
        y = full[cut]
        name = "ConvTranspose"
    else:
        padding = [p for i in reversed(range(n)) for p in (pads[i], pads[n + i])]
        y = getattr(functional, f"conv{n}d")(
            functional.pad(_torch(torch, x), padding), _torch(torch, weight),
            torch.from_numpy(bias), **options,
        ).numpy()  # fmt: skip
        name = "Conv"
    found = operators()[name].run([x, weight, bias], {"groups": groups, **attributes})[0]
    np.testing.assert_allclose(_first(found), y, rtol=1e-4, atol=1e-4)


def _first(y):
    """Channels first."""
    return np.moveaxis(y, -1, 1)


def _torch(torch, x):
    return torch.from_numpy(np.ascontiguousarray(_first(x)))


# ---- pooling -----------------------------------------------------------------------------------

POOLS = [
    ((2, 9, 11, 6), {"kernel": (2, 2), "strides": (2, 2)}),
    ((2, 9, 11, 33), {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((2, 9, 12, 32), {"kernel": (3, 2), "strides": (2, 3), "ceil": True, "pads": (1, 0, 0, 1)}),
    ((2, 9, 12, 65), {"kernel": (2, 3), "dilations": (3, 2), "same": "upper"}),
    ((2, 7, 7, 97), {"kernel": (7, 7)}),
    ((2, 17, 5), {"kernel": (3,), "strides": (2,), "same": "lower"}),
]


@pytest.mark.parametrize("function", ["max", "average"])
@pytest.mark.parametrize("case", POOLS, ids=range(len(POOLS)))
def test_pooling(case, function):
    shape, attributes = case
    x = random(0, *shape)
    model, y = check("Pool", [x], function=function, **attributes)
    check_rows(model, y, x)
    if function == "average":
        check("Pool", [x], function=function, count_padding=True, **attributes)


def test_pooling_against_torch():
    torch = pytest.importorskip("torch")
    x = random(0, 2, 9, 12, 5)
    pooled = operators()["Pool"].run
    same = {"kernel": (3, 2), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    for ceil in (False, True):
        options = {"kernel_size": (3, 2), "stride": 2, "padding": 1, "ceil_mode": ceil}
        y = pooled([x], {"function": "max", "ceil": ceil, **same})[0]
        expected = torch.nn.functional.max_pool2d(_torch(torch, x), **options)
        np.testing.assert_array_equal(_first(y), expected.numpy())
        for counted in (False, True):
            attributes = {"function": "average", "ceil": ceil, "count_padding": counted, **same}
            y = pooled([x], attributes)[0]
            expected = torch.nn.functional.avg_pool2d(
                _torch(torch, x), count_include_pad=counted, **options
            )
            np.testing.assert_allclose(_first(y), expected.numpy(), rtol=1e-5, atol=1e-6)


# ---- errors ------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    x, weight = random(0, 2, 5, 5, 4), random(1, 6, 3, 3, 4)
    cases = [
        ("Dense", [x], [random(0, 3, 5)], {}, "does not go with a weight"),
        ("Dense", [x], [random(0, 3, 4), random(0, 4)], {}, "bias"),
        ("Dense", [x], [random(0, 3, 4)], {"activation": "blue"}, "blue"),
        ("MatMul", [x, random(0, 3, 4)], [], {}, "does not go with"),
        ("Conv", [x], [weight], {"groups": 2}, "groups"),
        ("Conv", [x], [random(0, 6, 7, 7, 4)], {}, "does not fit"),
        ("Conv", [x], [weight], {"strides": (0, 1)}, "positive"),
        ("Conv", [x], [weight], {"pads": (0, 1)}, "pads"),
        ("Conv", [x], [weight], {"same": "left"}, "left"),
        ("ConvTranspose", [x], [weight], {"pads": (4, 4, 4, 4)}, "nothing"),
        ("Pool", [x], [], {"function": "least", "kernel": (2, 2)}, "least"),
    ]
    for operator, inputs, constants, attributes, message in cases:
        forms = [*inputs, *constants]
        with pytest.raises((ValueError, GraphError), match=message):
            operators()[operator].forms(forms, attributes)


# ---- distances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", ["", "each point", "all"])
@pytest.mark.parametrize("metric", ["squared", "euclidean", "manhattan", "chebyshev"])
def test_distances(metric, scaled):
    for i, n in enumerate(SIZES):
        d, k = SIZES[(5 * i + 3) % 12], SIZES[(7 * i + 5) % 12]
        x, points = random(i, n, d) + 100, random(i + 1, k, d) + 100
        scale = {"": [], "each point": [random(i, k, d)], "all": [random(i, 1, d)]}[scaled]
        model, y = check("Distances", [x], [points, *scale], metric=metric)
        check_rows(model, y, x)


@pytest.mark.parametrize("metric", ["squared", "euclidean", "manhattan", "chebyshev"])
def test_distances_of_values_that_are_none(metric):
    x, points = random(0, 9, 7), random(1, 20, 7)
    x[3, 4], x[5, 6], x[6, 0] = np.nan, np.inf, -np.inf
    x[8, 2], points[4, 2] = np.inf, np.inf
    _, y = check("Distances", [x], [points], metric=metric)
    assert np.isnan(y[3]).all()
    assert np.isposinf(y[5:7]).all()
    assert np.isnan(y[8, 4])


def test_distances_to_many_features():
    x, points = random(0, 5, 3000), random(1, 40, 3000)
    check("Distances", [x], [points])
