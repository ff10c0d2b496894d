"""Shapes, and values that move."""

from __future__ import annotations

import numpy as np

from fastvq.compress.importers.onnx_operators._table import as_array, imports

# ---- shapes --------------------------------------------------------------------------------------


@imports("Constant")
def constant(b, node):
    for name, make in (
        ("value", as_array),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in node.attributes:
            value = node.attributes[name]
            array = make(value) if name == "value" else np.array(value, make)
            return b.constant(array, node.outputs[0])
    raise ValueError("it holds strings or sparse values, which are not supported")


@imports("ConstantOfShape")
def constant_of_shape(b, node):
    value = node.attributes.get("value")
    array = np.zeros(1, np.float32) if value is None else as_array(value)
    return b.add("Fill", node.input(0), value=array.reshape(()).item(), dtype=array.dtype.name)


@imports("Shape")
def shape(b, node):
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    known = node.shape(0)
    if known is not None and all(isinstance(n, int) for n in known[start:end]):
        return b.integers(*known[start:end])
    cut = {} if end is None else {"end": end}
    return b.add("Shape", node.input(0), **({"start": start} if start else {}), **cut)


@imports("Size")
def size(b, node):
    return b.add("Size", node.input(0))


@imports("Reshape")
def reshape(b, node):
    x, wanted = node.inputs
    array = b.value(wanted)
    copies = not node.attributes.get("allowzero") and (array is None or 0 in array)
    return b.add("Reshape", x, wanted, **({"zero_copies": True} if copies else {}))


@imports("Flatten")
def flatten(b, node):
    return b.add("Flatten", node.input(0), axis=node.attributes["axis"])


@imports("Squeeze")
def squeeze(b, node):
    return b.add("Squeeze", node.input(0), axes=tuple(node.whole_numbers(1, "axes") or ()))


@imports("Unsqueeze")
def unsqueeze(b, node):
    return b.add("Unsqueeze", node.input(0), axes=tuple(node.whole_numbers(1, "axes")))


@imports("Transpose")
def transpose(b, node):
    order = node.attributes.get("perm")
    if order is None:
        return b.add("Transpose", node.input(0))
    return b.transpose(node.input(0), order)


# ---- movement ------------------------------------------------------------------------------------


@imports("Concat")
def concat(b, node):
    return b.concat(node.inputs, node.attributes["axis"])


@imports("Split")
def split(b, node):
    n, axis = len(node.outputs), node.attributes["axis"]
    sizes = node.whole_numbers(1, "split")
    cut = {"parts": n} if sizes is None else {"sizes": tuple(sizes)}
    found = b.add("Split", node.input(0), n_outputs=n, axis=axis, **cut)
    return [found] if n == 1 else found


@imports("Slice")
def slice_(b, node):
    return b.add("Slice", *node.inputs)


@imports("Expand")
def expand(b, node):
    return b.add("Expand", *node.inputs)


@imports("Tile")
def tile(b, node):
    return b.add("Tile", *node.inputs)


@imports("Gather")
def gather(b, node):
    return b.add("Gather", *node.inputs, axis=node.attributes["axis"])


@imports("GatherElements")
def gather_elements(b, node):
    return b.add("GatherElements", *node.inputs, axis=node.attributes["axis"])


@imports("GatherND")
def gather_nd(b, node):
    return b.add("GatherND", *node.inputs, batch_dims=node.attributes["batch_dims"])


@imports("ScatterElements", "ScatterND", "Scatter")
def scatter(b, node):
    given = {"axis": node.attributes["axis"]} if "axis" in node.attributes else {}
    given |= {"reduction": node.attributes.get("reduction", "none")}
    name = "ScatterElements" if node.operator == "Scatter" else node.operator
    return b.add(name, *node.inputs, **given)


@imports("OneHot")
def one_hot(b, node):
    indices, depth, values = node.inputs
    if node.dtype(0) not in ("int64", "int32", "int16", "int8", "uint8"):
        indices = b.add("Cast", indices, dtype="int64")
    depth = b.add("Cast", depth, dtype="int64")
    return b.add("OneHot", indices, depth, values, axis=node.attributes["axis"])


@imports("Trilu")
def trilu(b, node):
    return b.add("Trilu", *node.inputs, upper=bool(node.attributes["upper"]))


@imports("Range")
def range_(b, node):
    return b.add("Range", *node.inputs)


@imports("Pad")
def pad(b, node):
    return b.add("Pad", *node.inputs, mode=node.attributes["mode"])


@imports("Resize")
def resize(b, node):
    x, region, scales, sizes = (node.input(i) for i in range(4))
    rank = node.rank(0)
    axes = [axis % rank for axis in node.attributes.get("axes") or range(rank)]
    if rank > 2:  # where the axes are once channels stand last
        places = [0, rank - 1, *range(1, rank - 1)]
        axes = [places[axis] for axis in axes]
    given = {
        "axes": tuple(axes),
        "mode": node.attributes["mode"],
        "coordinates": node.attributes["coordinate_transformation_mode"],
        "rounding": node.attributes["nearest_mode"],
        "cubic": float(node.attributes["cubic_coeff_a"]),
        "inside": bool(node.attributes["exclude_outside"]),
        "antialias": bool(node.attributes.get("antialias")),
        "outside": float(node.attributes["extrapolation_value"]),
        "policy": node.attributes.get("keep_aspect_ratio_policy", "stretch"),
    }
    if given["coordinates"] != "tf_crop_and_resize":
        region = ""
    y = b.add("Resize", b.channels_last(x, rank), scales, sizes, region, **given)
    return b.channels_first(y, rank)


@imports("DepthToSpace")
def depth_to_space(b, node):
    x, n = node.input(0), node.attributes["blocksize"]
    rows, picture = b.dimensions(x, 0, 1), b.dimensions(x, 2, 4)
    if node.attributes["mode"] == "DCR":
        y = b.transpose(b.reshape(x, rows, n, n, -1, picture), (0, 3, 4, 1, 5, 2))
    else:
        y = b.transpose(b.reshape(x, rows, -1, n, n, picture), (0, 1, 4, 2, 5, 3))
    return b.reshape(y, rows, -1, b.binary("multiply", picture, b.integers(n, n)))


@imports("SpaceToDepth")
def space_to_depth(b, node):
    x, n = node.input(0), node.attributes["blocksize"]
    small = b.binary("divide", b.dimensions(x, 2, 4), b.integers(n, n))
    height, width = (b.add("Gather", small, b.integers(i)) for i in (0, 1))
    y = b.reshape(x, b.dimensions(x, 0, 2), height, n, width, n)
    crd = node.attributes.get("mode") == "CRD"
    y = b.transpose(y, (0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4))
    return b.reshape(y, b.dimensions(x, 0, 1), -1, small)
