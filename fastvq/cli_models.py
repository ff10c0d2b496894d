"""The commands of ``fastvq`` that deal with models: compress, export, check, run."""

from __future__ import annotations

import os
import sys
import time

from ._schemes import SCHEMES

__all__ = ["add_commands", "model_lines"]

_PICKLES = (".pkl", ".pickle", ".joblib")
_SHOWN = 10  # rows of an output
# Settings of compress, by scheme.
_SETTINGS = {
    "int8": ("activations", "calibration", "max_drop", "size_budget", "keep"),
    "auto": ("coder", "max_drop", "size_budget", "keep"),
    "sign": ("group", "coder", "keep"),
    **dict.fromkeys(("int4", "codebook", "product"), ("bits", "group", "coder", "keep")),
}


def add_commands(add):
    """Add the commands by the function that describes one."""
    _add_compress(add)
    _add_export(add)
    _add_check(add)
    _add_run(add)


# ---- compress ----------------------------------------------------------------------------


def _add_compress(add):
    command = add(
        "compress",
        _compress,
        "a trained model -> a small file that runs",
        "Make a file of an ONNX model (needs the package onnx), or of a fitted scikit-learn "
        "estimator that was pickled. `fastvq run` and fastvq.load run it with NumPy alone. "
        "Loading a pickle runs whatever code it holds: that takes --unpickle, and a file whose "
        "origin you trust.",
        "fastvq compress model.onnx --calibrate X.npy --scheme int8 -o model.fvq",
    )
    command.add_argument("model", metavar="MODEL", help=f".onnx, or {', '.join(_PICKLES)}")
    command.add_argument("-o", "--output", required=True, metavar="OUT.fvq", help="the file")
    command.add_argument(
        "--scheme",
        default="float32",
        choices=SCHEMES,
        help="how weights are stored; int8: how they are multiplied, too; auto: each weight as "
        "--size-budget or --max-drop permit (%(default)s)",
    )
    command.add_argument(
        "--calibrate",
        metavar="X.npy",
        help="examples of the input, on which ranges are found and scores are told",
    )
    command.add_argument("--labels", metavar="Y.npy", help="what the examples are")
    command.add_argument("--bits", type=int, help="int4, codebook, product: bits of a code")
    command.add_argument(
        "--group", type=int, help="int4, codebook: inputs that share a scale; product: of a block"
    )
    command.add_argument(
        "--coder",
        choices=["raw", "rans"],
        help="how the file holds codes; rans: entropy coded, in fewer bytes (raw)",
    )
    command.add_argument(
        "--size-budget", type=int, metavar="BYTES", help="auto, int8: the most that the file takes"
    )
    command.add_argument(
        "--activations",
        choices=["dynamic", "static"],
        help="int8: steps of activations are found as the model runs (the default), or on X.npy",
    )
    command.add_argument(
        "--calibration",
        choices=["minmax", "moving", "percentile", "mse", "entropy"],
        help="int8: how static steps are chosen (mse)",
    )
    command.add_argument(
        "--max-drop", type=float, metavar="D", help="auto, int8: how much of the score may be lost"
    )
    command.add_argument(
        "--keep",
        action="append",
        metavar="PATTERN",
        help="layers of such a name stay float; may be given several times",
    )
    _add_unpickle(command)
    command.add_argument("--report", action="store_true", help="list what each tensor costs")


def _compress(args):
    import fastvq

    from ._files import as_output

    as_output(args.output, [args.model])  # before the work: a bad output fails at once
    examples, settings = _examples(args)
    compressed = fastvq.compress(_loaded(args), *examples, scheme=args.scheme, **settings)
    compressed.save(args.output)
    if args.report:
        print(compressed.report())
    before, after = os.path.getsize(args.model), os.path.getsize(args.output)
    print(f"{args.model}: {before:,} bytes")
    print(f"{args.output}: {after:,} bytes ({after / before:.1%}), {args.scheme}")


def _examples(args):
    """X and y of the arguments, and settings of the scheme."""
    from ._files import open_npy

    allowed = _SETTINGS.get(args.scheme, ())
    settings = {
        name: getattr(args, name)
        for name in {name for names in _SETTINGS.values() for name in names}
        if getattr(args, name) is not None
    }
    if wrong := sorted(set(settings) - set(allowed)):
        words = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        others = [scheme for scheme, names in _SETTINGS.items() if {*wrong} <= {*names}]
        hint = f": say --scheme {' or '.join(others)}" if others else ""
        raise ValueError(f"--scheme {args.scheme} does not take {words}{hint}")
    paths = args.calibrate, args.labels
    if not allowed and any(paths):
        raise ValueError(f"--scheme {args.scheme} needs no examples")
    return [None if path is None else open_npy(path, range(33)) for path in paths], settings


def _loaded(args):
    """What `compress` is to take: a path of ONNX, an estimator of a pickle, a model of ours."""
    path = args.model
    os.stat(path)  # reports a missing file as such
    if path.lower().endswith(_PICKLES):
        if not args.unpickle:
            raise ValueError(
                f"{path} is a pickle: loading it runs whatever code it holds. If you trust where "
                "it comes from, say --unpickle"
            )
        import joblib  # comes with scikit-learn, and reads plain pickles too

        return joblib.load(path)
    if path.lower().endswith(".fvq"):
        import fastvq

        return fastvq.load(path)
    return path


def _add_unpickle(command):
    command.add_argument(
        "--unpickle", action="store_true", help="load a pickle, and run the code that it holds"
    )


# ---- export ------------------------------------------------------------------------------


def _add_export(add):
    command = add(
        "export",
        _export,
        "a model's file -> C, or ONNX",
        "Write a model for what cannot run fastvq. C: a header of C99 that needs libm alone and "
        "keeps weights in their few bits, for dense layers and decision trees; its constants are "
        "also written to a .npz file beside it. ONNX: needs the package onnx.",
        "fastvq export model.fvq --to c -o model.h",
    )
    command.add_argument("model", metavar="MODEL.fvq", help="the model")
    command.add_argument(
        "--to", choices=["c", "onnx"], help="by default as the output is named: .h or .onnx"
    )
    command.add_argument("-o", "--output", required=True, metavar="OUT", help="the file")


def _export(args):
    import fastvq

    from ._files import as_output

    kinds = {".h": "c", ".onnx": "onnx"}
    to = args.to or kinds.get(os.path.splitext(args.output)[1].lower())
    if to is None:
        raise ValueError(f"{args.output}: end it in {' or '.join(kinds)}, or say --to")
    as_output(args.output, [args.model])
    model = fastvq.load(args.model)
    if not isinstance(model, fastvq.CompressedModel):
        raise ValueError(f"{args.model}: holds a {type(model).__name__}, not a model")
    (model.to_c if to == "c" else model.to_onnx)(args.output)
    print(f"{args.output}: {os.path.getsize(args.output):,} bytes, {to}")


# ---- check -------------------------------------------------------------------------------


def _add_check(add):
    command = add(
        "check",
        _check,
        "which operators of a model are missing",
        "Say before any work which nodes of a model cannot be taken over, and why. Of a file of "
        "fastvq: which operators have compiled kernels here. Without a model: print the table of "
        "supported operators. The exit code is 2 if a node cannot be taken over.",
        "fastvq check model.onnx",
    )
    command.add_argument("model", nargs="?", metavar="MODEL", help="as `fastvq compress` takes it")
    _add_unpickle(command)


def _check(args):
    if args.model is None:
        print("\n".join(_supported_lines()))
        return
    model = _loaded(args)
    if isinstance(model, str):
        from .compress.importers import onnx

        missing = [str(node) for node in onnx.missing(model)]
        print("\n".join([*missing, *([""] if missing else []), *_supported_lines()]))
        if missing:
            raise ValueError(f"{args.model}: {len(missing)} nodes cannot be taken over: see above")
        print(f"\n{args.model}: all of its nodes are supported")
    elif hasattr(model, "graph"):
        print("\n".join(_operator_lines(model.graph)))
    else:
        import fastvq

        fastvq.compress(model)
        print(f"{args.model}: {type(model).__name__} is supported")


def _supported_lines():
    """The operators that there are, and those of ONNX that become them."""
    from .runtime.ops import operators

    yield from _wrapped("operators of fastvq", sorted(operators()))
    try:
        from .compress.importers import onnx
    except ImportError as error:
        yield f"operators of ONNX: {error}"
        return
    for domain, names in onnx.supported().items():
        yield from _wrapped(f"operators of {domain}", names)


def _wrapped(title, names):
    import textwrap

    indent = "  "
    yield f"{title}:"
    yield from textwrap.wrap(", ".join(names), 96, initial_indent=indent, subsequent_indent=indent)


def _operator_lines(graph):
    """How often each operator stands in a graph, and whether it has a kernel."""
    from collections import Counter

    from .runtime.registry import lowering_of

    counts = Counter(node.operator for node in graph.nodes)
    width = max(map(len, counts), default=0)
    for operator, count in sorted(counts.items()):
        how = "compiled" if lowering_of(operator) else "NumPy"
        yield f"{operator:{width}}  {count:>5}  {how}"


# ---- run ---------------------------------------------------------------------------------


def _add_run(add):
    command = add(
        "run",
        _run,
        "a model's file and inputs -> outputs",
        "Run a model that `fastvq compress` or save wrote. Inputs are .npy files, in the model's "
        "order or as NAME=FILE; for a model that prepares text, a .txt file with a text a line, "
        "and for one that prepares pictures, picture files (needs Pillow). Prints the outputs, or "
        "writes them to a .npy file (.npz if there are several). Needs NumPy alone.",
        "fastvq run model.fvq X.npy -o Y.npy",
    )
    command.add_argument("model", metavar="MODEL.fvq", help="the model")
    command.add_argument("inputs", nargs="+", metavar="X.npy", help="inputs; NAME=FILE by name")
    command.add_argument("-o", "--output", metavar="Y.npy", help="write here, print nothing")
    command.add_argument(
        "--method",
        choices=["predict", "predict_proba", "decision_function", "score_samples", "transform"],
        help="instead of all outputs",
    )
    command.add_argument("--profile", action="store_true", help="tell where the time goes")
    command.add_argument("--threads", type=int, metavar="N", help="default: as `fastvq info` says")


def _run(args):
    import fastvq

    from ._files import as_output

    paths = [text.rpartition("=")[2] for text in args.inputs]
    if args.output:
        as_output(args.output, [args.model, *paths])
    model = fastvq.load(args.model)
    if not isinstance(model, fastvq.CompressedModel):
        raise ValueError(f"{args.model}: holds a {type(model).__name__}, not a model")
    arrays, named = _inputs(args.inputs)
    began = time.perf_counter()
    if args.method:
        if named or len(arrays) != 1:
            raise ValueError(f"--method {args.method} takes one input")
        try:
            found = getattr(model, args.method)(arrays[0], n_threads=args.threads)
        except AttributeError as error:
            raise ValueError(f"{args.model}: {error}") from None
        outputs = {args.method: found}
        if isinstance(found, (list, tuple)):
            outputs = {f"{args.method}.{i}": each for i, each in enumerate(found)}
    else:
        found = model.run(model._inputs(arrays, named), n_threads=args.threads)
        outputs = dict(zip(model.output_names, found, strict=True))
    seconds = time.perf_counter() - began
    if args.output:
        _write(args.output, outputs)
    else:
        print("\n".join(_output_lines(outputs)))
    if args.profile:
        print(model.profile(*arrays, n_threads=args.threads, **named))
    since = _seconds_since_start()
    after = "" if since is None else f", {1e3 * since:.0f} ms after the process began"
    print(f"{args.model}: answered in {1e3 * seconds:.3g} ms{after}", file=sys.stderr)


def _inputs(texts):
    """Inputs in order, and by name, of the arguments of the command."""
    arrays, named, pictures = [], {}, []
    for text in texts:
        name, _, path = text.rpartition("=")
        value = _input(path)
        if name:
            named[name] = value
        elif path.endswith((".npy", ".txt")):
            arrays.append(value)
        else:
            pictures.append(value)
    return [*arrays, *([pictures] if pictures else [])], named


def _input(path):
    from ._files import open_npy

    if path.endswith(".txt"):
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    if path.endswith(".npy"):
        return open_npy(path, range(33))
    from . import images

    return images.read_picture(path)


def _write(path, outputs):
    import numpy as np

    from ._files import replacing

    arrays = {
        name: array.astype(str) if array.dtype == object else array
        for name, array in outputs.items()
    }
    with replacing(path) as file:
        if path.endswith(".npz"):
            np.savez(file, **arrays)
        elif len(arrays) == 1:
            np.save(file, *arrays.values(), allow_pickle=False)
        else:
            raise ValueError(f"{path}: the model has {len(arrays)} outputs: give a name in .npz")


def _output_lines(outputs):
    import numpy as np

    for name, array in outputs.items():
        yield f"{name}: {' x '.join(map(str, array.shape)) or 'one'} {array.dtype}"
        rows = array[:_SHOWN] if array.ndim else array
        yield np.array2string(rows, threshold=400, precision=6)
        if array.ndim and len(array) > _SHOWN:
            yield f"... and {len(array) - _SHOWN:,} more"


def _seconds_since_start():
    """Seconds since this process began, to a hundredth; None where the system does not tell."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None


# ---- inspect -----------------------------------------------------------------------------


def model_lines(path):
    """What `fastvq inspect` says of a model beyond what it says of any file."""
    from .runtime import CompressedModel

    model = CompressedModel.load(path)
    yield repr(model)
    for name, value in model.metadata.items():
        yield f"{name}: {_briefly(value)}"
    yield "operators:"
    yield from (f"  {line}" for line in _operator_lines(model.graph))
    yield "constants:"
    yield from (f"  {line}" for line in repr(model.report()).splitlines())


def _briefly(value):
    """A value of the metadata as one short line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_briefly(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"{len(value):,} items"
    text = str(value.tolist() if hasattr(value, "tolist") else value)
    return text if len(text) <= 80 else f"{text[:76]} ..."
