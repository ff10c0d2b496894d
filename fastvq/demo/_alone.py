"""A saved model in a process of its own, in which nothing but NumPy can be imported."""

import os
import subprocess
import sys
import tempfile
import time

import numpy as np

__all__ = ["run_alone", "seconds_per_call"]

_PROGRAM = """
import sys
for name in ("sklearn", "scipy", "torch", "onnx", "onnxruntime", "pandas"):
    sys.modules[name] = None
import numpy, fastvq
model = fastvq.load(sys.argv[1])
inputs = numpy.load(sys.argv[2], allow_pickle=False)
method = getattr(model, sys.argv[4])
numpy.save(sys.argv[3], method(*[inputs[name] for name in inputs.files]))
"""


def run_alone(path, *inputs, method="__call__"):
    """The answer of a saved model, and the seconds from the start of its process to its end."""
    with tempfile.TemporaryDirectory() as folder:
        given, answer = (os.path.join(folder, name) for name in ("x.npz", "y.npy"))
        np.savez(given, *inputs)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", _PROGRAM, path, given, answer, method], check=True)
        return np.load(answer), time.perf_counter() - began


def seconds_per_call(function, *arguments, seconds=0.5):
    """Median time of a call, after one that is not counted."""
    function(*arguments)
    times, until = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - began)
    return float(np.median(times))
