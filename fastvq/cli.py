"""The ``fastvq`` command.

Each subcommand is a pair of functions: ``_add_<name>`` describes its arguments, ``_<name>`` runs
it and imports what it needs, so that ``fastvq --help`` loads nothing.

Exit codes: 0 done, 1 failed (full disk, missing extra, out of memory), 2 bad input, 130
interrupted. Errors are one line on stderr; ``--debug`` or FASTVQ_DEBUG=1 adds the traceback.
"""

import argparse
import contextlib
import os
import sys
import time

from . import __version__

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
        description="Vector quantization: fit codebooks, turn vectors into codes and back.",
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
    _add_image(add)
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
        "photographs and digits, beside scikit-learn, in seconds",
        "Reduce scikit-learn's two photographs to palettes and to block codebooks beside "
        "scikit-learn's KMeans, write the pictures, and classify the 8x8 digits from their codes. "
        'Needs Pillow: pip install "fastvq[image]".',
        "fastvq demo --output-dir fastvq-demo",
    )
    command.add_argument(
        "--output-dir", default="fastvq-demo", metavar="DIR", help="pictures go here (%(default)s)"
    )
    _add_seed(command)
    _add_threads(command)


def _demo(args):
    from . import demo

    demo.run(args.output_dir, n_threads=args.threads, random_state=args.seed)


# ---- fit, encode, decode -----------------------------------------------------------------


def _add_fit(add):
    command = add(
        "fit",
        _fit,
        "vectors in a .npy file -> codebook",
        "Fit a codebook to the rows of a 2-D .npy file. The file is memory-mapped and may be "
        "larger than memory.",
        "fastvq fit X.npy -o codebook.npy --codewords 256",
    )
    command.add_argument("input", metavar="X.npy", help="vectors, one a row")
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="codebook, .npy")
    command.add_argument(
        "--codewords", type=_positive, default=256, metavar="K", help="size of it (%(default)s)"
    )
    command.add_argument(
        "--algorithm",
        default="auto",
        choices=["auto", "lloyd", "minibatch", "growing"],
        help="auto (default) gives the codebook of lloyd, by the fastest way",
    )
    command.add_argument(
        "--init",
        default="auto",
        metavar="HOW",
        help="auto (default), k-means++, k-means||, random, or a .npy file of K rows",
    )
    command.add_argument(
        "--max-iter", type=_positive, default=100, metavar="N", help="iterations (%(default)s)"
    )
    command.add_argument(
        "--tol",
        type=float,
        default=1e-4,
        help="stop when inertia falls by less than this share (%(default)s)",
    )
    command.add_argument(
        "--max-samples", type=_positive, metavar="N", help="fit on N random rows (default: all)"
    )
    _add_metric(command)
    _add_seed(command)
    _add_threads(command)
    command.add_argument("--verbose", action="store_true", help="show progress")


def _fit(args):
    from . import VectorQuantizer
    from ._files import open_npy, replacing, write_npy

    X = open_npy(args.input)
    inputs, init = [args.input], args.init
    if init.endswith(".npy"):
        inputs.append(init)
        init = _read_codebook(init)
    quantizer = VectorQuantizer(
        args.codewords,
        init=init,
        algorithm=args.algorithm,
        max_samples=args.max_samples,
        max_iter=args.max_iter,
        tol=args.tol,
        metric=args.metric,
        random_state=args.seed,
        n_threads=args.threads,
        verbose=int(args.verbose),
    )
    with replacing(args.output, inputs) as file:  # before the fit: a bad output fails at once
        start = time.perf_counter()
        codebook = quantizer.fit(X).codebook_
        seconds = time.perf_counter() - start
        write_npy(file, codebook.shape, codebook.dtype, [codebook])
    print(f"{args.input}: {_describe(X)}")
    print(
        f"{args.output}: {len(codebook):,} codewords, {_size(args.output)}, "
        f"inertia {quantizer.inertia_:.6g} after {quantizer.n_iter_} iterations, {seconds:.2f} s"
    )


def _add_encode(add):
    command = add(
        "encode",
        _encode,
        "vectors and a codebook -> codes",
        "Write the code (index of the nearest codeword) of each row of a 2-D .npy file, as the "
        "smallest unsigned type that holds it, shape (n, 1). Input and output may be larger than "
        "memory.",
        "fastvq encode X.npy --codebook codebook.npy -o codes.npy",
    )
    command.add_argument("input", metavar="X.npy", help="vectors, one a row")
    _add_codebook(command)
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="codes, .npy")
    _add_metric(command)
    _add_threads(command)


def _encode(args):
    import numpy as np

    from . import kernels
    from ._files import open_npy, replacing, slices, write_npy
    from ._validation import as_rows

    X = open_npy(args.input)
    as_rows(X[:1], args.input)  # its first row tells whether it holds numbers
    codebook = _read_codebook(args.codebook)
    if X.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"{args.input} has {X.shape[1]} features, {args.codebook} has {codebook.shape[1]}"
        )
    prepared = kernels.prepare(codebook)
    if args.metric == "euclidean":
        assign, prepared = kernels.assign, kernels.widened(prepared)
    else:
        assign = _assign_directions
    dtype = np.min_scalar_type(len(codebook) - 1)

    def encoded(span):
        codes = np.empty(span.stop - span.start, dtype)
        try:
            return assign(as_rows(X[span]), prepared, codes=codes, n_threads=args.threads)
        except ValueError as error:
            where = f"{args.input}, counting from row {span.start}"
            raise ValueError(f"{where}: {error}") from None

    with replacing(args.output, [args.input, args.codebook]) as file:
        start = time.perf_counter()
        parts = map(encoded, slices(len(X), X[:1].nbytes))
        write_npy(file, (len(X), 1), dtype, parts)
        seconds = time.perf_counter() - start
    print(f"{args.input}: {_describe(X)}, {_size(args.input)}")
    print(f"{args.output}: {dtype} codes, {_size(args.output)}, {seconds:.2f} s")


def _assign_directions(X, prepared, *, codes, n_threads):
    """`kernels.assign` for rows divided by their lengths."""
    from .vq._rows import UnitRows  # loads scikit-learn

    rows = UnitRows(X, dtype=prepared.dtype, n_threads=n_threads)
    return rows.assign(prepared, codes)


def _add_decode(add):
    command = add(
        "decode",
        _decode,
        "codes and a codebook -> vectors",
        "Write the codeword that each code of a .npy file of integers, of shape (n,) or (n, 1), "
        "names. Input and output may be larger than memory.",
        "fastvq decode codes.npy --codebook codebook.npy -o Y.npy",
    )
    command.add_argument("input", metavar="codes.npy", help="codes, as `fastvq encode` writes them")
    _add_codebook(command)
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="vectors, .npy")


def _decode(args):
    from ._files import open_npy, replacing, slices, write_npy
    from ._validation import as_codes

    codes = open_npy(args.input, ndim=(1, 2))
    codebook = _read_codebook(args.codebook)

    def decoded(rows):
        name = f"{args.input}, rows {rows.start} to {rows.stop - 1}: codes"
        return codebook[as_codes(codes[rows], len(codebook), name=name)[:, 0]]

    shape = (len(codes), codebook.shape[1])
    parts = map(decoded, slices(len(codes), codebook[0].nbytes))
    with replacing(args.output, [args.input, args.codebook]) as file:
        write_npy(file, shape, codebook.dtype, parts)
    print(f"{args.output}: {shape[0]:,} x {shape[1]:,} {codebook.dtype}, {_size(args.output)}")


def _read_codebook(path):
    """A codebook file, checked, in memory: float64 where the file is, else float32."""
    import numpy as np

    from ._files import open_npy
    from ._validation import as_codebook, as_rows

    rows = as_rows(open_npy(path), path)
    dtype = np.float64 if rows.dtype == np.float64 else np.float32
    return as_codebook(rows, *rows.shape, dtype, path)


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


def _add_metric(command):
    command.add_argument(
        "--metric",
        default="euclidean",
        choices=["euclidean", "cosine"],
        help="how vectors are compared; the same for fit and encode (%(default)s)",
    )


def _add_seed(command):
    command.add_argument(
        "--seed", type=int, default=0, metavar="S", help="the same seed, the same result (0)"
    )


def _add_threads(command):
    command.add_argument("--threads", type=int, metavar="N", help="default: as `fastvq info` says")


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
    return f"{' x '.join(f'{n:,}' for n in array.shape)} {array.dtype}"


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


if __name__ == "__main__":
    sys.exit(main())
