"""`ModelQuantizer`: a trained model in, one of 8-bit integers or of few bits out."""

from __future__ import annotations

from sklearn.utils.validation import check_is_fitted

from fastvq._schemes import INTEGERS
from fastvq.compress import stats
from fastvq.compress._importing import imported
from fastvq.compress.examples import mask_of
from fastvq.compress.few_bits import Quantizer, WeightQuantizer
from fastvq.compress.integers import Fitting
from fastvq.compress.scores import latencies, scores, told, weight_bytes

__all__ = ["ModelQuantizer"]


class ModelQuantizer(Quantizer):
    """Makes models of 8-bit integers, or with weights of few bits, of trained ones.

    `fit` decides, on examples, which layers become integers and in which steps; `transform` makes
    the model, of the one that was fitted or of one that differs from it in its weights alone.

    Parameters
    ----------
    scheme : {"int8", "int4", "codebook", "product", "sign", "auto"}, or a mapping
        "int8": layers of integers, as most of what follows tells. Others write weights alone in few
        bits, as :class:`WeightQuantizer` does, which has more to say of them and of its parameters
        here: `bits`, `group`, `symmetric`, `per`, `stages`, `outliers`, `coder`, `score`.
    activations : {"dynamic", "static", "float"}
        "dynamic": every dense layer and convolution finds the steps of its input as it runs, for
        each row (picture); what it gives is float32. Needs no examples. "static": steps come from
        examples, and what flows between layers is int8, sums, pooling and activations included.
        Of few bits "dynamic", for dense layers, or "float".
    calibration : {"minmax", "moving", "percentile", "mse", "entropy"}
        How static steps are chosen: see :meth:`fastvq.compress.stats.Statistics.range`.
    granularity : {"channel", "tensor"}
        What has a scale of its own among weights: each output channel, or all together.
    steps : {"channel", "tensor"}
        What has steps of its own among values, where they are static: each channel, wherever none
        but layers need to know (it costs no time), or all of a value together.
    skips : {"int16", "int8"}
        In what form values are added to each other, where they are static.
    compensate : bool
        Round the weights of a layer so that what is still to be rounded makes up for errors so far,
        by the second moments of its inputs (`compensation.compensated`; needs examples).
    size_budget : int, optional
        Bytes of the file; if it cannot be kept, `fit` says what can.
    max_drop : float, optional
        How much of the score may be lost: of accuracy, or R², on X and y; without y, of the
        agreement with the float model. The layers that hurt most then stay float. None: only those
        stay float whose own error is gross (below 12 dB). Of ensembles of trees, thresholds and
        leaves then take as few bits as change no more of the answers than that (None: a
        thousandth).
    bias_correction : bool
        Take back in biases what rounded weights shift means by (needs examples).
    equalize : bool
        Even out channels between pairs of layers first (`passes.equalised`).
    smoothing : float or None
        How much of the spread of channels moves from what layer norms give into the weights behind
        them (`passes.smoothed`; needs examples); None: nothing.
    keep : sequence of str
        Patterns of names of layers that stay float (as in a shell: ``*``, ``?``).
    max_samples : int or None
        The most rows of X that are used, evenly spread over it; None: all.
    n_threads : int, optional

    Attributes
    ----------
    layers_ : list of dict
        What became of each layer, and why: "layer", "operator", "scheme" ("int8", "float32" or,
        where integers are slower or have no kernel, "int8 weights"), "reason", "SQNR dB" (of its
        own output, the rest of the model being float).
    ranges_ : dict
        "static": the statistics of each value that has steps, by name.
    scores_ : dict
        "score", "before", "after"; without y, agreement and SQNR with the float model.
    latencies_ : dict
        Microseconds of a call before and after, by rows.
    nbytes_ : (int, int)
        Bytes of the float32 weights and of the file.

    Notes
    -----
    Weights are rounded to 255 steps of their channel: to the nearest, or where there are examples
    so that errors make up for each other. Integer layers give the same integers on any machine, in
    any batch and at any number of threads. A fit costs some runs of the float model over X, k²
    memory and k³ time for the k inputs of each layer, and one run of each layer on a sample; where
    activations are static also runs of what follows each layer, on at most 16 rows.

    Integers have no NaN. Where activations are dynamic, a row (picture) with NaN or infinity in
    what a layer reads gets NaN from it, as it does from floats, and all finite rows get finite
    answers where the float model does. Where they are static, values are cut off at the ends of
    the range that examples had, infinity too, and NaN counts as 0: ask rows that may be NaN for it
    before.

    Biases are corrected where the shift of a mean is certain, so that all rows do not pay for one
    value far out among the examples. Layers whose values are compared for equality stay float.

    What it is worth, MobileNetV2 on 64 crops of photographs that it had not seen, SQNR of logits
    and agreement of classes: static with steps of tensors and 8-bit sums 15.4 dB, 0.81; with steps
    of channels and 16-bit sums 20.6 dB, 0.84; with compensation too 21.0 dB, 0.89.

    Bias correction after Nagel et al., "Data-free quantization through weight equalization and bias
    correction", ICCV 2019; compensation after Frantar et al., "GPTQ", ICLR 2023; the arithmetic is
    that of Jacob et al., "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference", CVPR 2018.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neural_network import MLPClassifier
    >>> from fastvq.compress import ModelQuantizer
    >>> X, y = load_digits(return_X_y=True)
    >>> model = MLPClassifier((64, 64), max_iter=30, random_state=0).fit(X, y)  # doctest: +SKIP
    >>> quantizer = ModelQuantizer(activations="static").fit(model, X, y)  # doctest: +SKIP
    >>> small = quantizer.transform(model)  # doctest: +SKIP
    >>> bool(small.predict(X[:5]).shape == (5,))  # doctest: +SKIP
    True
    """

    def __init__(
        self,
        scheme="int8",
        *,
        bits=None,
        group=None,
        symmetric=True,
        per="tensor",
        stages=1,
        outliers=0.0,
        coder="raw",
        activations="dynamic",
        calibration="mse",
        granularity="channel",
        steps="channel",
        skips="int16",
        compensate=True,
        size_budget=None,
        max_drop=None,
        score=None,
        bias_correction=True,
        equalize=False,
        smoothing=0.5,
        keep=(),
        max_samples=4096,
        n_threads=None,
    ):
        self.scheme = scheme
        self.bits = bits
        self.group = group
        self.symmetric = symmetric
        self.per = per
        self.stages = stages
        self.outliers = outliers
        self.coder = coder
        self.activations = activations
        self.calibration = calibration
        self.granularity = granularity
        self.steps = steps
        self.skips = skips
        self.compensate = compensate
        self.size_budget = size_budget
        self.max_drop = max_drop
        self.score = score
        self.bias_correction = bias_correction
        self.equalize = equalize
        self.smoothing = smoothing
        self.keep = keep
        self.max_samples = max_samples
        self.n_threads = n_threads

    # ---- the three methods ---------------------------------------------------------------------

    def fit(self, model, X=None, y=None):
        """Decide what becomes of each layer, and find the ranges of values.

        Parameters
        ----------
        model : what :func:`fastvq.compress` takes
        X : array-like, or tuple of them for several inputs, optional
            Examples of the inputs, unlike those that the model will be judged by.
        y : array-like, optional
            What the examples are: classes or numbers.

        Raises
        ------
        ValueError
            For a parameter that is none of its values; for examples without rows, or that make the
            model compute NaN or infinity; where "static" has no X; where the budget cannot be kept.
        """
        vars(self).pop("next_kilobyte_", None)  # of an earlier fit
        if self.scheme not in INTEGERS:
            return self._fit_weights(model, X, y)
        self._check_parameters(X)
        whole, arrays, y = self._examined(model, X, y)
        graph, metadata = whole.graph, whole.metadata
        fitting = Fitting(self, graph, arrays, mask_of(metadata, graph))
        fitting.decide()
        small = fitting.model(metadata)
        if arrays is not None and self.max_drop is not None:
            small = fitting.within(self.max_drop, metadata, whole, y)
        found, times = {}, {}
        if arrays is not None:
            found = scores(whole, small, arrays, y, self.score)
            times = latencies(whole, small, arrays)
        before = weight_bytes(graph)
        size, budget = told(small, found, before, times).nbytes, self.size_budget
        if budget is not None and size > budget:
            raise ValueError(f"the model takes {size:,} bytes at int8, not {budget:,}")
        self._fitting = fitting
        self.layers_ = fitting.layers()
        self.ranges_ = fitting.ranges
        self.nbytes_, self.scores_, self.latencies_ = (before, size), found, times
        return self

    def _fit_weights(self, model, X, y):
        """As a quantizer of weights alone does it."""
        names = WeightQuantizer().get_params()
        fitting = WeightQuantizer(**{name: getattr(self, name) for name in names})
        self._fitting = fitting.fit(model, X, y)
        self.ranges_: dict = {}
        for name in ("layers_", "nbytes_", "scores_", "latencies_", "next_kilobyte_"):
            if hasattr(fitting, name):
                setattr(self, name, getattr(fitting, name))
        return self

    def transform(self, model):
        """The small model of this one, which has the layers of the one that was fitted.

        Returns
        -------
        compressed : CompressedModel
        """
        check_is_fitted(self, "layers_")
        if isinstance(self._fitting, WeightQuantizer):
            return self._fitting.transform(model)
        graph, metadata = imported(model, self._fitting.first_rows())
        compressed = self._fitting.for_graph(graph).model(metadata)
        return told(compressed, self.scores_, self.nbytes_[0], self.latencies_)

    def plot(self, ax=None, n_points=6):
        """Of scheme="auto": :meth:`WeightQuantizer.plot`."""
        check_is_fitted(self, "layers_")
        if not isinstance(self._fitting, WeightQuantizer):
            raise ValueError("a frontier is that of scheme='auto': others have one size")
        return self._fitting.plot(ax, n_points)

    # ---- below -------------------------------------------------------------------------------

    def _restored(self, compressed):
        if isinstance(self._fitting, WeightQuantizer):
            return self._fitting.inverse_transform(compressed)
        return self._fitting.restored(compressed)

    def _check_parameters(self, X):
        allowed = {
            "activations": ("dynamic", "static"),
            "calibration": stats.CALIBRATIONS,
            "granularity": ("channel", "tensor"),
            "steps": ("channel", "tensor"),
            "skips": ("int16", "int8"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}"
                )
        if self.activations == "static" and X is None:
            raise ValueError("activations='static' finds ranges on examples: give X")
        if self.max_drop is not None and X is None:
            raise ValueError("max_drop is measured on examples: give X")
        if self.smoothing is not None and not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must be from 0 to 1, or None, got {self.smoothing!r}")
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples must be positive, got {self.max_samples!r}")
