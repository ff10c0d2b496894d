"""Products, convolutions, windows."""

from __future__ import annotations

import numpy as np

from fastvq.compress.importers.onnx_operators._table import imports


@imports("MatMul")
def mat_mul(b, node):
    x, weight = node.inputs
    array = b.value(weight)
    if array is not None and array.ndim == 2 and array.dtype.kind == "f":
        return b.add("Dense", x, b.transpose(weight, (1, 0)))
    return b.add("MatMul", x, weight)


@imports("Gemm")
def gemm(b, node):
    x, weight, more = node.input(0), node.input(1), node.input(2)
    alpha, beta = node.attributes["alpha"], node.attributes["beta"]
    x = b.transpose(x, (1, 0)) if node.attributes["transA"] else x
    weight = weight if node.attributes["transB"] else b.transpose(weight, (1, 0))
    weight = _scaled(b, weight, alpha, node.dtype(1))
    more = _scaled(b, more, beta, node.dtype(2)) if more and beta else ""
    rows = b.value(weight)
    if rows is None or rows.dtype.kind != "f":
        y = b.add("MatMul", x, weight, transpose_b=True)
    elif more and (bias := _as_bias(b, more, len(rows))):
        return b.add("Dense", x, weight, bias)
    else:
        y = b.add("Dense", x, weight)
    return b.binary("add", y, more) if more else y


def _scaled(b, x, factor, dtype):
    return x if factor == 1 else b.binary("multiply", x, b.constant(np.array(factor, dtype)))


def _as_bias(b, name, n):
    """A constant as a vector of n, where it is the same for every row; else None."""
    array = b.value(name)
    if array is None or (array.ndim == 2 and array.shape[0] != 1):
        return None
    if array.shape == (n,):
        return name
    return b.add("Expand", b.reshape(name, -1), b.integers(n))


def _window(node, kernel):
    """Attributes that say how a window of that many axes walks."""
    n = len(kernel)
    same = {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}.get(node.attributes["auto_pad"], "")
    pads = node.attributes.get("pads") if node.attributes["auto_pad"] == "NOTSET" else None
    window = {
        "strides": tuple(node.attributes.get("strides") or [1] * n),
        "pads": tuple(pads or [0] * 2 * n),
    }
    dilations = node.attributes.get("dilations")
    if dilations and {*dilations} != {1}:
        window["dilations"] = tuple(dilations)
    return window | ({"same": same} if same else {})


@imports("Conv")
def conv(b, node):
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    rank = node.rank(1)
    weight = b.channels_last(weight, rank)
    window = _window(node, node.shape(1)[2:])
    if node.attributes["group"] != 1:
        window["groups"] = node.attributes["group"]
    y = b.add("Conv", b.channels_last(x, rank), weight, bias, **window)
    return b.channels_first(y, rank)


@imports("ConvTranspose")
def conv_transpose(b, node):
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    rank, groups = node.rank(1), node.attributes["group"]
    kernel = node.shape(1)[2:]
    n_in, n_out = node.shape(1)[:2]
    spatial = range(3, rank + 1)
    weight = b.reshape(weight, groups, n_in // groups, n_out, *kernel)
    weight = b.transpose(weight, (0, 2, *spatial, 1))
    weight = b.reshape(weight, groups * n_out, *kernel, n_in // groups)
    window = _window(node, kernel)
    window.pop("same", None)
    more = tuple(node.attributes.get("output_padding") or [0] * len(kernel))
    window["pads"], more = _pads_of_transposed(node, window, kernel, more)
    if any(more):
        window["output_pads"] = more
    if groups != 1:
        window["groups"] = groups
    y = b.add("ConvTranspose", b.channels_last(x, rank), weight, bias, **window)
    return b.channels_first(y, rank)


def _pads_of_transposed(node, window, kernel, more):
    """Pads, and rows put at the ends, as given, or such that the output has the size wanted."""
    wanted, auto_pad = node.attributes.get("output_shape"), node.attributes["auto_pad"]
    if not wanted and not auto_pad.startswith("SAME"):
        return window["pads"], more
    n = len(kernel)
    sizes = (node.shape(0) or ())[2:]
    if wanted and (len(sizes) != n or not all(isinstance(size, int) for size in sizes)):
        raise ValueError("output_shape needs inputs of a fixed size")
    begins, ends, extra = [], [], []
    for i in range(n):
        stride, dilation = window["strides"][i], window.get("dilations", [1] * n)[i]
        reach = (kernel[i] - 1) * dilation + 1 + more[i]
        # What the windows cover, less what is wanted; "same" wants stride times the input.
        total = (sizes[i] - 1) * stride + reach - wanted[-n:][i] if wanted else reach - stride
        extra.append(more[i] + max(0, -total))
        half = max(0, total) // 2
        rest = max(0, total) - half
        begins.append(half if auto_pad == "SAME_UPPER" else rest)
        ends.append(rest if auto_pad == "SAME_UPPER" else half)
    return (*begins, *ends), tuple(extra)


@imports("MaxPool", "AveragePool", "LpPool")
def pool(b, node):
    if node.wants(1):
        raise ValueError("the indices of its maxima are not supported")
    kernel = node.attributes["kernel_shape"]
    rank = len(kernel) + 2
    window = _window(node, kernel)
    window |= {"ceil": True} if node.attributes.get("ceil_mode") else {}
    x = b.channels_last(node.input(0), rank)
    if node.operator == "LpPool":
        y = _lp_pool(b, x, tuple(kernel), window, node.attributes["p"])
    else:
        function = "max" if node.operator == "MaxPool" else "average"
        window |= {"count_padding": True} if node.attributes.get("count_include_pad") else {}
        y = b.add("Pool", x, function=function, kernel=tuple(kernel), **window)
    return b.channels_first(y, rank)


def _lp_pool(b, x, kernel, window, p):
    """(Σ |x|^p)^(1/p): a mean over whole windows, times their size."""
    power = b.constant(np.float32(p))
    powers = b.binary("power", b.unary("abs", x), power)
    mean = b.add("Pool", powers, function="average", kernel=kernel, count_padding=True, **window)
    total = b.binary("multiply", mean, b.constant(np.float32(np.prod(kernel))))
    return b.binary("power", total, b.constant(np.float32(1 / p)))


@imports("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(b, node):
    rank = node.rank(0)
    function = {"GlobalAveragePool": "mean", "GlobalMaxPool": "max"}.get(node.operator)
    function = function or {1: "l1", 2: "l2"}.get(node.attributes["p"])
    if function is None:
        raise ValueError(f"p = {node.attributes['p']} is not supported, 1 and 2 are")
    x = b.channels_last(node.input(0), rank)
    return b.channels_first(b.reduce(function, x, range(1, rank - 1)), rank)


@imports("Einsum")
def einsum(b, node):
    terms, result = _einsum_terms(node)
    values = [*node.inputs]
    while len(terms) > 1:
        later = set(result).union(*terms[2:])
        kept = "".join(dict.fromkeys(c for c in terms[0] + terms[1] if c in later))
        values[:2] = [_product_of_two(b, values[:2], terms[:2], kept)]
        terms[:2] = [kept]
    return _summed(b, values[0], terms[0], result)


def _einsum_terms(node):
    """The labels of each input and of the output; "..." written out as capital letters."""
    equation = node.attributes["equation"].replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(node.inputs):
        raise ValueError(f"equation {equation!r} is not for {len(node.inputs)} inputs")
    dots = ""
    for i, term in enumerate(terms):
        if "..." in term:
            width = node.rank(i) - len(term) + 3
            free = "ABCDEFGHIJKLMNOP"[16 - width :]
            terms[i] = term.replace("...", free)
            dots = max(dots, free, key=len)
    if not arrow:
        labels = "".join(terms)
        result = "..." + "".join(sorted(c for c in set(labels) - set(dots) if labels.count(c) == 1))
    if any(len(set(term)) < len(term) for term in terms):
        raise ValueError(f"equation {equation!r} takes a diagonal, which is not supported")
    return terms, result.replace("...", dots)


def _summed(b, x, term, wanted):
    """x with the labels that are not wanted summed, the others in the order wanted."""
    gone = [i for i, c in enumerate(term) if c not in wanted]
    if gone:
        x = b.reduce("sum", x, gone, keep=False)
    left = [c for c in term if c in wanted]
    return b.transpose(x, [left.index(c) for c in wanted])


def _product_of_two(b, values, terms, result):
    """Two factors as one batched matrix product: (batch, left, inner) x (batch, inner, right)."""
    left, right = terms
    batch = [c for c in left if c in right and c in result]
    inner = [c for c in left if c in right and c not in result]
    own = [[c for c in term if c in result and c not in batch] for term in terms]
    x = _summed(b, values[0], left, [*batch, *own[0], *inner])
    y = _summed(b, values[1], right, [*batch, *inner, *own[1]])
    ends = [len(batch), len(batch) + len(own[0]), len(batch) + len(own[0]) + len(inner)]
    middle = ends[0] + len(inner)
    x_own = b.dimensions(x, ends[0], ends[1])
    y_own = b.dimensions(y, middle, middle + len(own[1]))
    lead = [b.dimensions(x, 0, ends[0])] if batch else []
    each = [_product(b, x_own), _product(b, b.dimensions(x, ends[1], ends[2])), _product(b, y_own)]
    x = b.reshape(x, *lead, each[0], each[1])
    y = b.reshape(y, *lead, each[1], each[2])
    z = b.reshape(b.add("MatMul", x, y), *lead, x_own, y_own)
    labels = [*batch, *own[0], *own[1]]
    return b.transpose(z, [labels.index(c) for c in result])


def _product(b, dimensions):
    return b.reduce("product", dimensions)
