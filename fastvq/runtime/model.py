"""A model that runs: a graph with its weights, and plans for the shapes it has met."""

from __future__ import annotations

import os
from collections.abc import Mapping
from threading import Lock

import numpy as np

from fastvq import _threads
from fastvq.container import FileFormatError
from fastvq.runtime import file, measure, preprocess
from fastvq.runtime.fuse import fused
from fastvq.runtime.graph import DTYPES, Graph, Value
from fastvq.runtime.layout import settled
from fastvq.runtime.plan import Plan
from fastvq.runtime.recognize import recognized
from fastvq.runtime.tables import Table

__all__ = ["CompressedModel"]

_KEPT_PLANS = 16


class CompressedModel:
    """A model with its weights, callable on arrays, from several threads at once.

    :func:`fastvq.compress` makes one of a trained model, :func:`fastvq.load` of a file. It needs
    NumPy and nothing else. Outputs of a row do not depend on the rows beside it or on the number
    of threads. NaN and infinite values pass through as IEEE 754 says; what becomes of them where
    layers are integers, :class:`fastvq.compress.ModelQuantizer` tells.

    Parameters
    ----------
    graph : Graph
    metadata : dict, optional
        What is known beside the graph; all of it travels in the file. Keys that have a meaning:

        - "task": "classification", "regression", ... ;
        - "classes": labels, or a list of such for several outputs: what `predict` gives of a class;
        - "feature_names": the names of the columns of the only input;
        - "methods": name of a method (predict, predict_proba, decision_function, score_samples,
          transform) to the name of the output that it gives, or to a list of them;
        - "preprocess": what makes the inputs of pictures or text
          (:mod:`fastvq.runtime.preprocess`).
    n_threads : int, optional
        As everywhere in fastvq; None: the setting in force at the call.

    Attributes
    ----------
    graph, metadata, n_threads
    nbytes : int
        The size of its file: weights, graph and all.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.runtime import CompressedModel, Graph, Node, Value
    >>> from fastvq.runtime.encoding import Raw
    >>> weight = Raw(np.array([[1, 2], [3, 4], [5, 6]], np.float32))
    >>> model = CompressedModel(
    ...     Graph(
    ...         [Node("Dense", ("x", "weight"), ("y",))],
    ...         [Value("x", "float32", ("N", 2))],
    ...         [Value("y", "float32", ("N", 3))],
    ...         {"weight": weight},
    ...     )
    ... )
    >>> model
    CompressedModel(x: float32 (N, 2) -> y: float32 (N, 3); 1 nodes, 6 values)
    >>> model([[1, 1]])
    array([[ 3.,  7., 11.]], dtype=float32)
    >>> model.save("model.fvq")
    >>> import fastvq
    >>> fastvq.load("model.fvq")(x=[[1, 0]])
    array([[1., 3., 5.]], dtype=float32)
    """

    def __init__(self, graph: Graph, metadata: Mapping | None = None, *, n_threads=None):
        self.graph = graph
        self.metadata = dict(metadata or {})
        self.n_threads = n_threads
        self.latencies: dict = {}  # of a model just made of a float one: by rows, of both
        preprocess.check(self.metadata.get("preprocess"))
        self._check_methods()
        self._start()

    # ---- running -----------------------------------------------------------------------------

    def __call__(self, *arrays, n_threads=None, **named):
        """Outputs for inputs given in order or by name.

        Parameters
        ----------
        *arrays, **named : array-like
            The inputs, of their shapes; numbers that fit are converted. Where the model has a
            preprocessing, instead of all of them: pictures (uint8) or text, one or several.
        n_threads : int, optional

        Returns
        -------
        output : ndarray, or a tuple of them where the model has several outputs

        Raises
        ------
        TypeError
            For an input too many or too few, or values that the input's dtype cannot hold.
        ValueError
            For a shape that does not fit.
        """
        found = self._run(arrays, named, n_threads)
        return found[0] if len(found) == 1 else tuple(found)

    def run(self, inputs: Mapping, outputs=None, *, n_threads=None) -> list[np.ndarray]:
        """Outputs in order for inputs by name; of `outputs`, if given, and no more is computed."""
        arrays = self._checked(inputs)
        return self.plan([a.shape for a in arrays], n_threads, outputs).run(arrays)

    def plan(self, shapes, n_threads=None, outputs=None) -> Plan:
        """The plan for inputs of these shapes, made where it is not kept."""
        threads = _threads.effective(self.n_threads if n_threads is None else n_threads)
        wanted = self._output_names if outputs is None else tuple(outputs)
        key = (*map(tuple, shapes), threads, wanted)
        return self._plans.get(key) or self._new_plan(key, shapes, threads, wanted)

    def _new_plan(self, key, shapes, threads, wanted):
        """The plan for `key`, which takes the place of the oldest where too many are kept."""
        with self._lock:
            if key not in self._plans:  # another thread may have made it by now
                _check_shapes(self.graph.inputs, shapes)
                by_name = dict(zip(self.input_names, shapes, strict=True))
                if len(self._plans) >= _KEPT_PLANS:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = Plan(self._giving(wanted), by_name, self._packed, threads)
            return self._plans[key]

    # ---- methods by name -----------------------------------------------------------------------

    def predict(self, X, *, n_threads=None):
        """Labels where the model knows its classes, else what its metadata calls the prediction.

        Classes are read off their numbers, or off scores, one a class, by the largest.
        """
        found = self._method("predict", X, n_threads)
        classes = self.metadata.get("classes")
        if classes is None:
            return found
        if not _are_lists(classes):
            return _labels(found, classes)
        columns = found if isinstance(found, tuple) else found.T
        return np.stack([_labels(c, of) for c, of in zip(columns, classes, strict=True)], axis=1)

    def predict_proba(self, X, *, n_threads=None):
        """Probabilities of the classes, (n, n_classes), or a list of such for several outputs."""
        found = self._method("predict_proba", X, n_threads)
        return list(found) if isinstance(found, tuple) else found

    def decision_function(self, X, *, n_threads=None):
        """Scores: of the classes, or of the second against the first of two."""
        return self._method("decision_function", X, n_threads)

    def score_samples(self, X, *, n_threads=None):
        """How usual rows are: log-likelihoods, or a measure of their own of what finds outliers."""
        return self._method("score_samples", X, n_threads)

    def transform(self, X, *, n_threads=None):
        """What the model makes of the rows of X, such as embeddings."""
        return self._method("transform", X, n_threads)

    # ---- what it is ------------------------------------------------------------------------

    @property
    def inputs(self) -> tuple[Value, ...]:
        """Names, dtypes and shapes of the inputs."""
        return self.graph.inputs

    @property
    def outputs(self) -> tuple[Value, ...]:
        """Names, dtypes and shapes of the outputs."""
        return self.graph.outputs

    @property
    def input_names(self) -> list[str]:
        return [value.name for value in self.graph.inputs]

    @property
    def output_names(self) -> list[str]:
        return [value.name for value in self.graph.outputs]

    @property
    def nbytes(self) -> int:
        """Bytes of the file that `save` writes."""
        return file.nbytes(self.graph, self.metadata)

    def report(self) -> Table:
        """What each constant costs: layer, shape, scheme, bits a value, bytes; and totals.

        Of a model that was quantized also what its tensors were before and how much noise rounding
        put in, which layers stayed float and why, and score and latency before and after.
        """
        return measure.report(self)

    def profile(self, *arrays, n_threads=None, seconds=0.3, **named) -> Table:
        """Where the time goes: medians over as many runs as fit into `seconds`, at least 3.

        Returns
        -------
        profile : Table
            A row for each call: layer, operator, kernel ("numpy" where none is compiled for it),
            microseconds, share of the whole, bytes of weights. Printed, it is a table.
        """
        return measure.profile(self, self._inputs(arrays, named), n_threads, seconds)

    def compare(self, *arrays, reference, n_threads=None, **named) -> Table:
        """How near the outputs are to those of a reference.

        Parameters
        ----------
        *arrays, **named : the inputs, as in a call
        reference : array, sequence of arrays, or callable
            The outputs to compare with, or what gives them for the inputs, such as another model.

        Returns
        -------
        comparison : Table
            A row for each output: largest difference, the same in shares of the largest value of
            the reference, signal to noise (dB), and the share of rows on which the largest score,
            or the label, is the same.
        """
        outputs = self._run(arrays, named, n_threads)
        if callable(reference):
            reference = reference(*arrays, **named)
        if not isinstance(reference, (tuple, list)) or len(outputs) == 1 != len(reference):
            reference = [reference]
        return measure.compare(outputs, self.output_names, reference)

    def __repr__(self):
        sides = [", ".join(map(_form, values)) for values in (self.inputs, self.outputs)]
        values = sum(int(np.prod(e.shape, dtype=object)) for e in self.graph.constants.values())
        about = f"{len(self.graph.nodes)} nodes, {values:,} values"
        return f"CompressedModel({' -> '.join(sides)}; {about})"

    # ---- keeping -----------------------------------------------------------------------------

    def save(self, path) -> None:
        """Write the model to a file, all of it or nothing; :func:`fastvq.load` reads it.

        Raises
        ------
        TypeError
            For metadata that a file cannot hold.
        OSError
            Where the file cannot be written.
        """
        file.save(path, self.graph, self.metadata)

    @classmethod
    def load(cls, path) -> CompressedModel:
        """The model of a file; see :func:`fastvq.load`."""
        graph, metadata = file.load(path)
        try:
            return cls(graph, metadata)
        except (ValueError, TypeError) as error:
            raise FileFormatError(f"{path}: holds no model that could run: {error}") from error

    def to_onnx(self, path=None):
        """The model as ONNX, of standard operators alone; needs the package onnx.

        Parameters
        ----------
        path : str or path, optional
            Where to write it.

        Returns
        -------
        model : onnx.ModelProto
        """
        from fastvq.compress.exporters import onnx

        model = onnx.to_onnx(self.graph, self.metadata)
        if path is not None:
            onnx.save(model, os.fspath(path))
        return model

    def to_c(self, path=None, *, name=None):
        """The model as a header of C, for devices without Python: dense layers and trees.

        It needs libm alone, keeps weights in the form in which they are stored, and computes one
        row a call; how it is used stands at its top.

        Parameters
        ----------
        path : str or path, optional
            Where to write it: ``model.h``. The constants are also written as ``model.npz``.
        name : str, optional
            What its names begin with; by default the file's, or "model".

        Returns
        -------
        header : str

        Raises
        ------
        ValueError
            For a node that is not written in C; the error names it.

        Examples
        --------
        >>> from sklearn.linear_model import Ridge
        >>> import fastvq
        >>> model = fastvq.compress(Ridge().fit([[0.0, 1], [1, 1], [2, 0]], [0.0, 1, 2]))
        >>> [line for line in model.to_c(name="line").splitlines() if line.startswith("void")]
        ['void line_run(const float *x, float *y);', 'void line_run(const float *x, float *y)']
        """
        from fastvq.compress.exporters import c

        if name is None:
            name = "model" if path is None else os.path.splitext(os.path.basename(path))[0]
        source = c.to_c(self.graph, self.metadata, name)
        if path is not None:
            c.save(source, os.fspath(path))
        return source.header

    def __getstate__(self):
        return {"graph": self.graph, "metadata": self.metadata, "n_threads": self.n_threads}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self.latencies = {}
        self._start()

    # ---- below -------------------------------------------------------------------------------

    def _start(self):
        # What runs; `graph` stays as it was given, for files.
        self._running = fused(recognized(settled(self.graph)))
        self._dtypes = tuple(DTYPES[value.dtype] for value in self.graph.inputs)
        self._output_names = tuple(self.output_names)
        self._packed: dict = {}
        self._plans: dict = {}
        self._lock = Lock()

    def _run(self, arrays, named, n_threads, outputs=None):
        """Outputs for what a caller gave; at once where nothing has to be done to it."""
        if named or not self._are_ready(arrays):
            return self.run(self._inputs(arrays, named), outputs, n_threads=n_threads)
        return self.plan([a.shape for a in arrays], n_threads, outputs).run(arrays)

    def _are_ready(self, arrays):
        """Whether a plan takes these as they are. Their shapes are checked where one is made."""
        if len(arrays) != len(self._dtypes) or self.metadata.get("preprocess") is not None:
            return False
        for array, dtype in zip(arrays, self._dtypes, strict=True):
            if type(array) is not np.ndarray or array.dtype != dtype:
                return False
            if not array.flags.c_contiguous:
                return False
        return True

    def _giving(self, names):
        """The graph with these outputs alone."""
        if names == self._output_names:
            return self._running
        outputs = {value.name: value for value in self.graph.outputs}
        if unknown := [name for name in names if name not in outputs]:
            raise ValueError(f"the model has no output {', '.join(unknown)}, only {[*outputs]}")
        graph = self._running
        return Graph(graph.nodes, graph.inputs, [outputs[n] for n in names], graph.constants)

    def _check_methods(self):
        methods = self.metadata.get("methods", {})
        if not isinstance(methods, Mapping):
            raise TypeError(f"methods must be a mapping to names of outputs, got {methods!r:.80}")
        for method, outputs in methods.items():
            if not isinstance(outputs, (str, list, tuple)):
                raise TypeError(f"{method} is to give {outputs!r:.80}, which is no name")
            for name in _several(outputs):
                if name not in self.output_names:
                    raise ValueError(f"{method} is to give {name!r}, which is no output")

    def _method(self, name, X, n_threads):
        """The outputs of a method: an array, or a tuple where it has several."""
        methods = self.metadata.get("methods", {})
        if name not in methods:
            known = ", ".join(methods) or "none: call the model itself"
            raise AttributeError(f"this model has no {name}; its methods: {known}")
        outputs = methods[name]
        found = self._run((X,), {}, n_threads, _several(outputs))
        return found[0] if isinstance(outputs, str) else tuple(found)

    def _inputs(self, arrays, named):
        """The inputs by name, of what a caller gave in order and by name."""
        description = self.metadata.get("preprocess")
        if len(arrays) == 1 and not named and preprocess.accepts(description, arrays[0]):
            return preprocess.prepare(description, arrays[0])
        names = self.input_names
        if len(arrays) > len(names):
            raise TypeError(
                f"the model takes {len(names)} inputs ({', '.join(names)}), got {len(arrays)}"
            )
        given = dict(zip(names, arrays, strict=False))
        if twice := set(given) & set(named):
            raise TypeError(f"input {', '.join(sorted(twice))} is given twice")
        return given | named

    def _checked(self, inputs):
        """Arrays in the graph's order, of its dtypes."""
        names = self.input_names
        if missing := [name for name in names if name not in inputs]:
            raise TypeError(f"input {', '.join(missing)} is missing")
        if extra := [name for name in inputs if name not in names]:
            raise TypeError(f"the model has no input {', '.join(extra)}, only {', '.join(names)}")
        if len(names) == 1 and hasattr(inputs[names[0]], "columns"):
            self._check_columns(inputs[names[0]].columns)
        return [_as_input(inputs[value.name], value) for value in self.graph.inputs]

    def _check_columns(self, columns):
        """The columns of a table have to be those of the fit, in their order."""
        names = self.metadata.get("feature_names")
        if names is None or list(map(str, columns)) == list(map(str, names)):
            return
        raise ValueError(
            f"the columns must be {', '.join(map(str, names))}, in this order; "
            f"got {', '.join(map(str, columns))}"
        )


def _as_input(array, value):
    array = _as_array(array, value)
    dtype = DTYPES[value.dtype]
    if not np.can_cast(array.dtype, dtype, "same_kind") and array.dtype != np.bool_:
        raise TypeError(f"input {value.name!r} must be {dtype}, got {array.dtype}")
    return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _check_shapes(values, shapes):
    """A ValueError where the inputs do not have these dimensions, or not one size by one name."""
    sizes: dict[str, int] = {}
    for value, shape in zip(values, shapes, strict=True):
        if len(shape) != len(value.shape):
            raise ValueError(f"input {value.name!r} must have shape {_shape(value)}, got {shape}")
        for wanted, size in zip(value.shape, shape, strict=True):
            bound = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
            if bound != size:
                named = f" with {wanted} = {bound}" if isinstance(wanted, str) else ""
                raise ValueError(
                    f"input {value.name!r} must have shape {_shape(value)}{named}, got {shape}"
                )


def _as_array(values, value):
    """An array of numbers; Python's whole numbers become what they have to, if they fit."""
    if hasattr(values, "toarray") and hasattr(values, "nnz"):
        raise TypeError(f"input {value.name!r} is sparse; give its .toarray()")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"input {value.name!r} is not an array: {error}") from None
    if array.dtype == object:
        try:
            return array.astype(np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"input {value.name!r} holds values that are no numbers") from None
    if array.dtype.kind not in "biuf":
        raise TypeError(f"input {value.name!r} must be {value.dtype}, got {array.dtype}")
    return array


def _are_lists(classes):
    """Whether these are classes of several outputs, a list of each."""
    return bool(len(classes)) and isinstance(classes[0], (list, tuple, np.ndarray))


def _labels(found, classes):
    """Labels of class numbers, or of scores of one column a class."""
    classes = np.asarray(classes)
    if found.dtype.kind == "f":
        if found.shape[-1:] != classes.shape:
            return found
        found = found.argmax(axis=-1)
    return classes[found]


def _several(names):
    return [names] if isinstance(names, str) else list(names)


def _shape(value):
    dimensions = ", ".join(map(str, value.shape))
    return f"({dimensions},)" if len(value.shape) == 1 else f"({dimensions})"


def _form(value):
    return f"{value.name}: {value.dtype} {_shape(value)}"
