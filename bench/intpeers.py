"""onnxruntime's models of 8-bit integers, made by its own tools: static and dynamic."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from bench import judging, sessions

#: its static kinds: calibration methods. Weights are u8, each channel with its zero point: on a CPU
#: without VNNI onnxruntime adds pairs of u8 x s8 in 16 bits and saturates, of u8 x u8 it does not.
#: Its entropy, with as many bins as steps, finds the ranges of MinMax
STATIC = {f"onnxruntime static, {method}": method for method in ("MinMax", "Entropy", "Percentile")}


def models_of(case, calibration, sizes, quick=False):
    """(name, call) of each kind, of a network of `exported`.

    Parameters
    ----------
    calibration : ndarray
    sizes : dict
        Gets the share of the float file that each takes, by name.
    quick : bool
        With one kind of the static ones alone.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        path, prepared, out = (Path(folder) / f"{n}.onnx" for n in ("float", "prepared", "small"))
        path.write_bytes(exported(case))
        with silent():
            quant_pre_process(str(path), str(prepared))
        for who, method in [*STATIC.items()][: 1 if quick else None]:
            static(prepared, out, method, calibration)
            sizes[who] = out.stat().st_size / path.stat().st_size
            judging.say(f"{who}: calibrated")
            yield who, sessions.call_of(out.read_bytes())
        dynamic(prepared, out)
        who = "onnxruntime dynamic"
        sizes[who] = out.stat().st_size / path.stat().st_size
        yield who, sessions.call_of(out.read_bytes())


def static(path, out, method, calibration):
    """Write the static model of a file of ONNX."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rows = iter(range(0, len(calibration), 8))

        def get_next(self):
            start = next(self.rows, None)
            return None if start is None else {"x0": calibration[start : start + 8]}

    with silent():
        quantize_static(
            str(path), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8,
            calibrate_method=getattr(CalibrationMethod, method),
        )  # fmt: skip


def dynamic(path, out):
    """Write the dynamic model of a file of ONNX."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with silent():
        quantize_dynamic(str(path), str(out), per_channel=True, weight_type=QuantType.QUInt8)


@cache
def exported(case) -> bytes:
    """A network of the demos as ONNX: "mobilenet" or "minilm"."""
    from fastvq.demo.minilm import load_minilm
    from fastvq.demo.mobilenet import load_mobilenet

    if case == "mobilenet":
        picture = np.zeros((2, 3, 224, 224), np.float32)
        return sessions.torch_onnx(load_mobilenet(), (picture,))
    words = np.ones((2, 8), np.int64)
    return sessions.torch_onnx(load_minilm(), (words, words), ("N", "T"))


@contextlib.contextmanager
def silent():
    """No logging of onnxruntime's tools, which warn of what is meant."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
