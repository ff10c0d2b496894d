"""The main job on real input, beside scikit-learn, in seconds.

Two photographs become palettes of 16 and 256 colours and a codebook of 4 x 4-pixel blocks; the
8 x 8 digits are classified from one code each. Both come with scikit-learn: nothing is fetched.
"""

import os
import time
from dataclasses import dataclass

import numpy as np
import sklearn
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import fastvq
from fastvq import VectorQuantizer, images
from fastvq._files import replacing

__all__ = ["run"]

SAMPLE = 1 << 15  # rows fitted on: on all pixels KMeans alone would take most of a minute
ITERATIONS = 20  # Lloyd's iterations, for both
DIGIT_CODEWORDS = 256


@dataclass(frozen=True)
class Job:
    """One way to store a photograph: so many codewords, each of so many pixels a side."""

    name: str
    n_codewords: int
    block: int = 1


JOBS = (
    Job("16 colours", 16),
    Job("256 colours", 256),
    Job("256 blocks of 4x4", 256, block=4),
)


def run(output_dir, *, n_threads=None, random_state=0, echo=print):
    """Run the demo: write the pictures to a folder, and tell what came out.

    Parameters
    ----------
    output_dir : path
        Made where it does not exist.
    n_threads : int or None
        For fastvq and scikit-learn alike.
    random_state : int
    echo : callable
        Takes each line of the report.
    """
    photographs = load_photographs()
    os.makedirs(output_dir, exist_ok=True)
    n_threads = fastvq._threads.effective(n_threads)
    level = fastvq.show_config(mode="dict")["level_active"]
    echo(
        f"fastvq {fastvq.__version__} ({level}) beside scikit-learn {sklearn.__version__}, "
        f"{_count(n_threads, 'thread')}"
    )
    with threadpool_limits(n_threads):
        _warm_up(n_threads)
        _report_photographs(photographs, output_dir, n_threads, random_state, echo)
        _report_digits(n_threads, random_state, echo)
    echo("")
    echo(f"pictures, originals beside them: {os.path.abspath(output_dir)}")


def load_photographs():
    """scikit-learn's two photographs, by name: uint8 (427, 640, 3) each."""
    images.require_pillow()  # scikit-learn's own message names no fastvq extra
    bunch = load_sample_images()
    names = [os.path.splitext(os.path.basename(name))[0] for name in bunch.filenames]
    return dict(zip(names, bunch.images, strict=True))


def quantize(estimator, rows, sample):
    """Fit ``estimator`` on ``rows[sample]``, encode all rows: codes, whole codewords, seconds.

    The clock covers ``fit`` and ``predict``: seeding, iterations, and a code for every row.
    """
    start = time.perf_counter()
    codes = estimator.fit(rows[sample]).predict(rows)
    seconds = time.perf_counter() - start
    codebook = getattr(estimator, "codebook_", None)
    if codebook is None:
        codebook = estimator.cluster_centers_
    return codes, images.round_codebook(codebook), seconds


def estimators(n_codewords, n_threads, random_state):
    """The two that are compared, with the same work asked of each."""
    same = {"n_init": 1, "max_iter": ITERATIONS, "tol": 0, "random_state": random_state}
    return VectorQuantizer(n_codewords, n_threads=n_threads, **same), KMeans(n_codewords, **same)


def digit_accuracies(n_threads, random_state):
    """Share of test digits named rightly from all 64 pixels, and from one code each."""
    X, y = load_digits(return_X_y=True)
    X_fit, X_test, y_fit, y_test = train_test_split(X, y, stratify=y, random_state=random_state)
    quantizer = VectorQuantizer(
        DIGIT_CODEWORDS, output="onehot", random_state=random_state, n_threads=n_threads
    )
    pipelines = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        make_pipeline(StandardScaler(), quantizer, LogisticRegression(max_iter=1000)),
    )
    scores = [pipeline.fit(X_fit, y_fit).score(X_test, y_test) for pipeline in pipelines]
    return scores, len(y_fit), len(y_test)


def _report_photographs(photographs, output_dir, n_threads, random_state, echo):
    shape = next(iter(photographs.values())).shape
    echo("")
    echo(f"Two photographs of {shape[1]} x {shape[0]} pixels, each stored as codes and a codebook")
    echo("")
    echo("                               bits a   bytes on        fastvq         KMeans")
    echo("photograph  stored as           pixel       disk    PSNR    time    PSNR    time  ratio")
    for name, picture in photographs.items():
        original = os.path.join(output_dir, f"{name}.png")
        with replacing(original) as file:
            images.write_picture(file, picture)
        echo(f"{name:<12}{'24-bit colour':<18}{24:>8.2f}{os.path.getsize(original):>11,}")
        for job in JOBS:
            echo(_photograph_line(name, picture, job, output_dir, n_threads, random_state))
    echo("")
    echo("bits: codes in whole bits each, and the codebook. disk: the indexed PNG; for blocks,")
    echo("codes and codebook as compressed .npz. PSNR in dB. time in seconds: fit, then a code for")
    echo("every vector; files are not timed. ratio: KMeans' time over fastvq's. Both fit the same")
    echo(f"{SAMPLE:,} random pixels (blocks: all) as float32, each from one greedy k-means++")
    echo(f"seeding of its own, for at most {ITERATIONS} iterations (tol=0).")


def _photograph_line(name, picture, job, output_dir, n_threads, random_state):
    rows = images.to_rows(picture, job.block)
    as_float = rows.astype(np.float32)  # what KMeans is fastest on
    sample = np.sort(np.random.default_rng(random_state).permutation(len(rows))[:SAMPLE])
    ours, theirs = estimators(job.n_codewords, n_threads, random_state)
    codes, codebook, seconds = quantize(ours, as_float, sample)
    their_codes, their_codebook, their_seconds = quantize(theirs, as_float, sample)

    def quality(codes, codebook):
        return images.psnr(picture, images.from_rows(codebook[codes], picture.shape, job.block))

    bits = len(codes) * (job.n_codewords - 1).bit_length() + 8 * codebook.size
    size = _store(name, picture.shape, job, codes, codebook, output_dir)
    return (
        f"{'':<12}{job.name:<18}{bits / (picture.shape[0] * picture.shape[1]):>8.2f}{size:>11,}"
        f"{quality(codes, codebook):>8.2f}{seconds:>8.3f}"
        f"{quality(their_codes, their_codebook):>8.2f}{their_seconds:>8.3f}"
        f"{their_seconds / seconds:>6.1f}x"
    )


def _store(name, shape, job, codes, codebook, output_dir):
    """Write the picture that the codes stand for; return the bytes that storing it takes."""
    path = os.path.join(output_dir, f"{name}-{job.name.replace(' ', '-')}.png")
    with replacing(path) as file:
        if job.block == 1:
            images.write_indexed(file, codes.reshape(shape[:2]), codebook)
        else:
            images.write_picture(file, images.from_rows(codebook[codes], shape, job.block))
    if job.block == 1:
        return os.path.getsize(path)
    path = path.replace(".png", ".npz")
    with replacing(path) as file:
        np.savez_compressed(file, codes=codes.astype(np.uint8), codebook=codebook)
    return os.path.getsize(path)


def _report_digits(n_threads, random_state, echo):
    (plain, coded), n_fit, n_test = digit_accuracies(n_threads, random_state)
    quantizer = f'VectorQuantizer({DIGIT_CODEWORDS}, output="onehot")'
    bits = (DIGIT_CODEWORDS - 1).bit_length()
    echo("")
    echo(f"8 x 8 digits, {n_fit:,} to learn from, {n_test} to test on: test accuracy")
    echo("")
    echo(f"{plain:7.1%}  from 64 numbers      StandardScaler, LogisticRegression")
    echo(f"{coded:7.1%}  from one {bits}-bit code  StandardScaler, {quantizer},")
    echo(f"{'':30}LogisticRegression")


def _warm_up(n_threads):
    """Start threads and load code on both sides, so that no measurement pays for it."""
    rows = np.random.default_rng(0).normal(size=(4096, 3)).astype(np.float32)
    for estimator in estimators(16, n_threads, 0):
        quantize(estimator, rows, slice(None))


def _count(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
