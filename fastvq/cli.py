"""The ``fastvq`` command.

Each subcommand is a pair of functions: ``_add_<name>`` describes its arguments, ``_<name>`` runs
it and imports what it needs, so that ``fastvq --help`` loads nothing.

Exit codes: 0 done, 1 failed (full disk, missing extra, out of memory), 2 bad input, 130
interrupted. Errors are one line on stderr; ``--debug`` or FASTVQ_DEBUG=1 adds the traceback.
"""

import argparse
import contextlib
import itertools
import os
import sys
import time

from . import __version__, cli_models, demo

__all__ = ["main"]

BAD_INPUT = (ValueError, TypeError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


def main(argv=None):
    """Run the command line; return its exit code."""
    debug = bool(os.environ.get("FASTVQ_DEBUG"))
    try:
        args = _parser().parse_args(argv)
        debug = debug or args.debug
        with _warnings_as_lines():
            args.run(args)
            sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _fail(130, "interrupted", debug)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except BAD_INPUT as error:
        return _fail(2, f"error: {_one_line(error)}", debug)
    except (OSError, ImportError) as error:
        return _fail(1, f"error: {_one_line(error)}", debug)
    except MemoryError as error:
        return _fail(1, f"error: out of memory: {_one_line(error)}", debug)
    except Exception as error:
        message = f"error: {type(error).__name__}: {_one_line(error)} (--debug shows where)"
        return _fail(1, message, debug)


def _parser():
    parser = argparse.ArgumentParser(
        prog="fastvq",
        description="Vector quantization: fit codebooks, turn vectors into codes and back; and "
        "models in small files, run with NumPy alone.",
        epilog="Try `fastvq demo` first. `fastvq COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"fastvq {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")

    def add(name, run, summary, description, example):
        command = commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=_HelpFormatter,
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.set_defaults(run=run)
        return command

    _add_info(add)
    _add_demo(add)
    _add_fit(add)
    _add_encode(add)
    _add_decode(add)
    _add_inspect(add)
    _add_image(add)
    cli_models.add_commands(add)
    return parser


# ---- info --------------------------------------------------------------------------------


def _add_info(add):
    command = add(
        "info",
        _info,
        "what is installed and what runs here",
        "Print the version, the instruction-set levels of the kernels (built, runnable, active), "
        "compiler, OpenMP and threads in force.",
        "fastvq info --json",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _info(args):
    import json

    import fastvq

    if args.json:
        print(json.dumps(fastvq.show_config(mode="dict"), indent=2))
    else:
        fastvq.show_config()


# ---- demo --------------------------------------------------------------------------------


def _add_demo(add):
    command = add(
        "demo",
        _demo,
        "real jobs on real input, in seconds: photographs, digits, networks",
        "Without a name: reduce scikit-learn's two photographs to palettes and to block codebooks "
        "beside scikit-learn's KMeans, write the pictures, and classify the 8x8 digits from their "
        'codes; needs Pillow: pip install "fastvq[image]". Others: '
        + "; ".join(f"{name}: {text}" for name, text in demo.DEMOS.items() if name != "photographs")
        + ".",
        "fastvq demo digits --output-dir fastvq-demo",
    )
    command.add_argument(
        "what", nargs="?", choices=demo.DEMOS, default="photographs", help="%(default)s by default"
    )
    command.add_argument(
        "--output-dir", default="fastvq-demo", metavar="DIR", help="files go here (%(default)s)"
    )
    _add_seed(command)
    _add_threads(command)


def _demo(args):
    demo.run(args.what, args.output_dir, n_threads=args.threads, random_state=args.seed)


# ---- fit, encode, decode, inspect --------------------------------------------------------

# What `fit --quantizer` takes, and the class that each name stands for.
QUANTIZERS = {
    "vector": "VectorQuantizer",
    "scalar": "ScalarQuantizer",
    "product": "ProductQuantizer",
    "residual": "ResidualQuantizer",
    "additive": "AdditiveQuantizer",
    "binary": "BinaryQuantizer",
}


def _add_fit(add):
    command = add(
        "fit",
        _fit,
        "vectors in a .npy file -> quantizer",
        "Fit a quantizer to the rows of a 2-D .npy file and save it, as fastvq.load reads it. The "
        "input is memory-mapped and may be larger than memory. Options that are not given have the "
        "defaults of the quantizer's class; --set reaches all of its parameters.",
        "fastvq fit X.npy -o vq.fvq --codewords 256",
    )
    command.add_argument("input", metavar="X.npy", help="vectors, one a row")
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="the quantizer")
    command.add_argument(
        "--quantizer", default="vector", choices=list(QUANTIZERS), help="its kind (%(default)s)"
    )
    command.add_argument(
        "--codewords", dest="n_codewords", type=_positive, metavar="K", help="size of a codebook"
    )
    command.add_argument(
        "--algorithm",
        choices=["auto", "lloyd", "minibatch", "growing"],
        help="auto gives the codebook of lloyd, by the fastest way",
    )
    command.add_argument(
        "--init",
        metavar="HOW",
        help="auto, k-means++, k-means||, random, or a .npy file of K rows",
    )
    command.add_argument("--max-iter", type=_positive, metavar="N", help="iterations, at most")
    command.add_argument(
        "--tol", type=float, help="stop when inertia falls by less than this share"
    )
    command.add_argument("--max-samples", type=_positive, metavar="N", help="fit on N random rows")
    command.add_argument(
        "--metric", choices=["euclidean", "cosine"], help="how vectors are compared"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="any parameter of the class; may come often",
    )
    _add_seed(command)
    _add_threads(command)
    command.add_argument("--verbose", action="store_true", help="show progress")


# The parameters that options of `fit` stand for, all under the parameters' own names.
_FIT_OPTIONS = ("n_codewords", "algorithm", "init", "max_iter", "tol", "max_samples", "metric")


def _fit(args):
    import fastvq

    from ._files import as_output, open_npy

    X = open_npy(args.input)
    inputs = [args.input]
    options = {name: getattr(args, name) for name in _FIT_OPTIONS}
    given = {name: value for name, value in options.items() if value is not None}
    if str(args.init).endswith(".npy"):
        inputs.append(args.init)
        given["init"] = open_npy(args.init)
    quantizer = getattr(fastvq, QUANTIZERS[args.quantizer])()
    _set(quantizer, {**given, **dict(args.set)})
    _set_if_known(quantizer, random_state=args.seed, verbose=int(args.verbose))
    _set_if_known(quantizer, n_threads=args.threads)
    as_output(args.output, inputs)  # before the fit: a bad output fails at once
    start = time.perf_counter()
    quantizer.fit(X)
    seconds = time.perf_counter() - start
    _set_if_known(quantizer, n_threads=None, verbose=0)  # of this run, not of the quantizer
    quantizer.save(args.output)
    print(f"{args.input}: {_describe(X)}")
    print(
        f"{args.output}: {type(quantizer).__name__}, {_size(args.output)}, "
        f"code_size {quantizer.code_size_:,}, {_outcome(quantizer)}{seconds:.2f} s"
    )


def _set(quantizer, parameters):
    known = quantizer.get_params(deep=False)
    for name in parameters:
        if name not in known:
            raise ValueError(
                f"{type(quantizer).__name__} has no parameter {name}; it has {', '.join(known)}"
            )
    quantizer.set_params(**parameters)


def _set_if_known(quantizer, **parameters):
    known = quantizer.get_params(deep=False)
    quantizer.set_params(**{name: parameters[name] for name in parameters if name in known})


def _outcome(quantizer):
    fitted = vars(quantizer)
    if not {"inertia_", "n_iter_"} <= fitted.keys():
        return ""
    return f"inertia {fitted['inertia_']:.6g} after {fitted['n_iter_']} iterations, "


def _add_encode(add):
    command = add(
        "encode",
        _encode,
        "vectors and a quantizer -> codes",
        "Write the codes of each row of a 2-D .npy file: integers of shape (n, codes of a row), "
        "packed as bytes, or entropy coded in a file of fastvq. Input and output may be larger "
        "than memory (entropy coded, the output must fit).",
        "fastvq encode X.npy --codebook vq.fvq -o codes.npy",
    )
    command.add_argument("input", metavar="X.npy", help="vectors, one a row")
    _add_codebook(command)
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="codes")
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--packed", action="store_true", help="as few bytes as hold the codes of a row"
    )
    form.add_argument(
        "--entropy", action="store_true", help="about as few bits as the codes' entropy"
    )
    _add_threads(command)


def _encode(args):
    from . import _coded
    from ._files import as_output, open_npy, replacing, slices, write_npy

    X = open_npy(args.input)
    quantizer = _load(args)

    def encoded(span):
        with _telling(f"{args.input}, counting from row {span.start}"):
            codes = quantizer.encode_blocks(X[span])
            return quantizer.pack(codes) if args.packed else codes

    first = encoded(slice(0, 1))  # tells of what shape and dtype the others will be
    inputs = [args.input, args.codebook]
    start = time.perf_counter()
    parts = map(encoded, slices(len(X), X[:1].nbytes))
    if args.entropy:
        as_output(args.output, inputs)
        _coded.write(args.output, parts, n_threads=args.threads)
    else:
        with replacing(args.output, inputs) as file:
            write_npy(file, (len(X), first.shape[1]), first.dtype, parts)
    seconds = time.perf_counter() - start
    print(f"{args.input}: {_describe(X)}, {_size(args.input)}")
    shape = f"{len(X):,} x {first.shape[1]:,} {first.dtype}"
    bits = 8 * os.path.getsize(args.output) / len(X)
    print(f"{args.output}: {shape}, {_size(args.output)}, {bits:.2f} bits a row, {seconds:.2f} s")


def _add_decode(add):
    command = add(
        "decode",
        _decode,
        "codes and a quantizer -> vectors",
        "Write the vectors that codes stand for: those of a .npy file, of shape (n, codes of a "
        "row), or of a file that `fastvq encode --entropy` wrote. Input and output may be larger "
        "than memory.",
        "fastvq decode codes.npy --codebook vq.fvq -o Y.npy",
    )
    command.add_argument("input", metavar="codes", help="codes, as `fastvq encode` writes them")
    _add_codebook(command)
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="vectors, .npy")
    command.add_argument("--packed", action="store_true", help="codes are packed, as by encode")
    _add_threads(command)


def _decode(args):
    from ._files import replacing, write_npy

    quantizer = _load(args)
    n_rows, blocks = _blocks_of_codes(args, quantizer.n_features_in_)

    def decoded(first_row, codes):
        with _telling(f"{args.input}, counting from row {first_row}"):
            block = quantizer.unpack(codes) if args.packed else codes
            return quantizer.inverse_transform(block)

    parts = itertools.starmap(decoded, blocks)
    first = next(parts)  # tells of what dtype the others will be
    shape = (n_rows, first.shape[1])
    with replacing(args.output, [args.input, args.codebook]) as file:
        write_npy(file, shape, first.dtype, itertools.chain([first], parts))
    print(f"{args.output}: {shape[0]:,} x {shape[1]:,} {first.dtype}, {_size(args.output)}")


def _blocks_of_codes(args, n_features):
    """How many rows of codes the input has, and their blocks: (number of the first row, codes)."""
    from . import _coded, container
    from ._files import open_npy, slices

    row_bytes = 8 * n_features
    if _is_container(args.input):
        if args.packed:
            raise ValueError(f"{args.input}: --packed is for .npy files")
        summary = container.inspect(args.input)
        n_rows = summary.attributes.get("n_rows")
        parts = _coded.read(args.input, n_threads=args.threads)
        return n_rows, (
            (first + span.start, codes[span])
            for first, codes in _numbered(parts)
            for span in slices(len(codes), row_bytes)
        )
    codes = open_npy(args.input, ndim=(1, 2))
    spans = slices(len(codes), row_bytes) or [slice(0, 0)]
    return len(codes), ((span.start, codes[span]) for span in spans)


def _numbered(blocks):
    first = 0
    for block in blocks:
        yield first, block
        first += len(block)


def _is_container(path):
    """Whether a file begins as a container does: a length, then JSON."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _load(args):
    """The quantizer of an encode or decode."""
    import fastvq

    quantizer = fastvq.load(args.codebook)
    _set_if_known(quantizer, n_threads=args.threads)
    return quantizer


@contextlib.contextmanager
def _telling(where):
    """Say at the beginning of an error about a block where that is."""
    try:
        yield
    except (ValueError, TypeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {error}") from None


def _add_inspect(add):
    command = add(
        "inspect",
        _inspect,
        "what a saved file holds",
        "Print what a file that fastvq saved holds: its kind, the versions that wrote it, "
        "parameters, fitted values, and the tensors with their dtypes, shapes and bytes; of a "
        "model its inputs, outputs, operators and constants. --verify reads it all and compares "
        "checksums.",
        "fastvq inspect vq.fvq --verify",
    )
    command.add_argument("input", metavar="FILE", help="as `fastvq fit` or `save` writes it")
    command.add_argument("--verify", action="store_true", help="compare every checksum")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _inspect(args):
    import json

    from . import container

    summary = container.inspect(args.input)
    damaged = container.find_damage(args.input) if args.verify else None
    if args.json:
        print(json.dumps(_summary_dict(summary, damaged), indent=2))
    else:
        for line in _summary_lines(args.input, summary, damaged):
            _print_safely(line)
        if summary.kind == "CompressedModel" and not damaged:
            for line in cli_models.model_lines(args.input):
                _print_safely(line)
    if damaged:
        names = ", ".join(map(repr, damaged))
        raise ValueError(f"{args.input}: damaged: checksums do not match in {names}")


def _print_safely(line):
    print(line if line.isprintable() else ascii(line)[1:-1])  # a file may try to draw


def _summary_dict(summary, damaged):
    tensors = {
        name: {"dtype": str(info.dtype), "shape": info.shape, "nbytes": info.nbytes}
        for name, info in summary.tensors.items()
    }
    return {**summary._asdict(), "tensors": tensors, "damaged": damaged}


def _summary_lines(path, summary, damaged):
    yield f"{path}: {summary.kind}, {summary.nbytes:,} bytes"
    yield f"written by fastvq {summary.fastvq_version}, format {summary.format_version}"
    for title, values in summary.attributes.items():
        if isinstance(values, dict):
            yield f"{title}:"
            width = max(map(len, values), default=0)
            for name, value in values.items():
                yield f"  {name:{width}}  {_briefly(value)}"
        else:
            yield f"{title}: {_briefly(values)}"
    yield "tensors:"
    width = max(map(len, summary.tensors), default=0)
    for name, info in summary.tensors.items():
        state = "  DAMAGED" if damaged and name in damaged else ""
        yield f"  {name:{width}}  {_describe(info)}, {info.nbytes:,} bytes{state}"
    if damaged is None:
        yield "checksums: the metadata's is right; --verify compares those of the tensors"
    elif not damaged:
        yield "checksums: all are right"


def _briefly(value):
    """A value as one short line; arrays and the like are told by their form."""
    import json

    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:76]} ..."


# ---- image -------------------------------------------------------------------------------


def _add_image(add):
    command = add(
        "image",
        _image,
        "reduce a picture to a palette or to a codebook of blocks",
        "Reduce a picture to K colours, or with --block B to K square blocks of B x B pixels, and "
        "write it as PNG: indexed for up to 256 colours, in full colour otherwise. "
        'Needs Pillow: pip install "fastvq[image]".',
        "fastvq image photo.jpg photo16.png --codewords 16",
    )
    command.add_argument("input", metavar="IN", help="any picture that Pillow reads")
    command.add_argument("output", metavar="OUT.png", help="the picture from its codes")
    command.add_argument(
        "--codewords", type=_positive, default=256, metavar="K", help="size (%(default)s)"
    )
    command.add_argument(
        "--block", type=_positive, default=1, metavar="B", help="pixels a side (%(default)s)"
    )
    command.add_argument(
        "--max-samples",
        type=_positive,
        default=1 << 18,
        metavar="N",
        help="fit on at most N random pixels or blocks (%(default)s)",
    )
    _add_seed(command)
    _add_threads(command)


def _image(args):
    import math

    import numpy as np

    from . import VectorQuantizer, images
    from ._files import replacing

    if not args.output.lower().endswith(".png"):
        raise ValueError(f"output {args.output}: want a name that ends in .png")
    pixels = images.read_picture(args.input)
    rows = images.to_rows(pixels, args.block)
    quantizer = VectorQuantizer(
        args.codewords,
        max_samples=args.max_samples if args.max_samples < len(rows) else None,
        random_state=args.seed,
        n_threads=args.threads,
    )
    with replacing(args.output, [args.input]) as file:
        start = time.perf_counter()
        codes = quantizer.fit(rows).predict(rows)
        seconds = time.perf_counter() - start
        palette = images.round_codebook(quantizer.codebook_)
        copy = images.from_rows(palette[codes], pixels.shape, args.block)
        if args.block == 1 and len(palette) <= 256:
            images.write_indexed(file, codes.reshape(pixels.shape[:2]), palette)
        else:
            images.write_picture(file, copy)
    height, width, channels = pixels.shape
    kind = {1: "grey", 3: "RGB", 4: "RGBA"}[channels]
    what = "colours" if args.block == 1 else f"blocks of {args.block} x {args.block} pixels"
    different = len(np.unique(palette, axis=0))  # fewer than asked for in a picture of few
    bits = (different - 1).bit_length() / args.block**2
    psnr = images.psnr(pixels, copy)
    quality = f"PSNR {psnr:.2f} dB" if math.isfinite(psnr) else "nothing lost"
    print(f"{args.input}: {width} x {height} {kind}, {_size(args.input)}")
    print(f"{args.output}: {different:,} {what}, {_size(args.output)}")
    print(
        f"codes {bits:.4g} bits a pixel (of {8 * channels}), codebook {palette.nbytes:,} bytes, "
        f"{quality}, {seconds:.2f} s"
    )


# ---- shared arguments and wording --------------------------------------------------------


def _add_codebook(command):
    command.add_argument(
        "--codebook", required=True, metavar="FILE", help="as `fastvq fit` writes it"
    )


def _add_seed(command):
    command.add_argument(
        "--seed", type=int, default=0, metavar="S", help="the same seed, the same result (0)"
    )


def _add_threads(command):
    command.add_argument("--threads", type=int, metavar="N", help="default: as `fastvq info` says")


def _setting(text):
    """NAME=VALUE, the value as JSON has it, or else as text."""
    import json

    name, sign, value = text.partition("=")
    if not (name and sign):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a positive number")
    return number


_positive.__name__ = "whole number"  # argparse: "invalid whole number value: 'x'"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wrap the description, but leave the example below as it is written."""

    def _fill_text(self, text, width, indent):
        if text.startswith("example:"):
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def _describe(array):
    return f"{' x '.join(f'{n:,}' for n in array.shape) or 'one'} {array.dtype}"


def _size(path):
    return f"{os.path.getsize(path):,} bytes"


def _one_line(error):
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def _fail(code, message, debug):
    if debug:
        import traceback

        traceback.print_exc()
    print(f"fastvq: {message}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _warnings_as_lines():
    """Show warnings as one line each, without the line of library code that gave them."""
    import warnings

    def show(message, category, filename, lineno, file=None, line=None):
        print(f"fastvq: warning: {_one_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
