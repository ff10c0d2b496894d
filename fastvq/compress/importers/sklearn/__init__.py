"""Fitted estimators of scikit-learn as graphs, natively.

`from_sklearn` walks an estimator and what it is made of, and writes down what predict,
predict_proba, decision_function and transform compute. Data are float32 in the graph where
scikit-learn has float64; constants are worked out in float64, scalers go into the layer that
follows, and thresholds of trees are rounded so that every float32 row takes the same way. Labels
come out as numbers of classes; the classes themselves travel in the metadata.
"""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from fastvq.compress.importers.sklearn import (  # noqa: F401 - they enter their importers
    _compose,
    _curves,
    _gaussian,
    _linear,
    _neighbours,
    _outliers,
    _projections,
    _scaling,
    _several,
    _trees,
)
from fastvq.compress.importers.sklearn._parts import (
    PREDICTORS,
    TRANSFORMERS,
    Columns,
    EstimatorBuilder,
    Prediction,
    UnsupportedEstimator,
    importer_of,
    name_of,
    predict,
    transform,
)
from fastvq.runtime.graph import Graph, Value
from fastvq.runtime.ops import Form, operators

__all__ = ["UnsupportedEstimator", "from_sklearn", "missing", "supported"]

_ROWS = 3  # any number that no model has reason to know


def from_sklearn(estimator) -> tuple[Graph, dict]:
    """A fitted estimator as a graph of one input, `x` (N, n_features) float32.

    Parameters
    ----------
    estimator : scikit-learn estimator
        A classifier, regressor, transformer, or pipeline; `supported` lists them.

    Returns
    -------
    graph : Graph
        A classifier has outputs "label" (N,) int64, a place in its classes, and where it has them
        "probabilities" (N, n_classes) and "decision"; a regressor "y"; a transformer "y". Several
        outputs of predict_proba are "probabilities_0", "probabilities_1", ...
    metadata : dict
        "task" ("classifier", "regressor", "transformer" or ""), "classes" (a list, or a list of
        lists for several outputs; None), "feature_names", and "methods": which output, or list
        of outputs, is that of "predict", "predict_proba", "decision_function", "score_samples",
        "transform". What tells outliers is a classifier of -1 and 1.

    Raises
    ------
    UnsupportedEstimator
        Names the estimator, or its setting, and what is supported.
    sklearn.exceptions.NotFittedError

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import Ridge
    >>> from fastvq.compress.importers.sklearn import from_sklearn
    >>> from fastvq.runtime import CompressedModel
    >>> X = np.arange(8.0).reshape(4, 2)
    >>> graph, metadata = from_sklearn(Ridge().fit(X, X.sum(axis=1)))
    >>> metadata["methods"]
    {'predict': 'y'}
    >>> CompressedModel(graph)(X).shape
    (4,)
    """
    if not isinstance(estimator, BaseEstimator):
        raise TypeError(f"wanted an estimator of scikit-learn, got {type(estimator).__name__}")
    check_is_fitted(estimator)
    if unknown := missing(estimator):
        raise UnsupportedEstimator(
            f"{', '.join(unknown)} cannot be imported; what can: {', '.join(supported())}"
        )
    n_features = _n_features(estimator)
    b = EstimatorBuilder()
    b.reserve(["x", *_OUTPUTS.values()])
    prediction = _prediction(b, estimator, Columns("x", n_features))
    methods, values = _named(prediction)
    outputs = _outputs(b, values, n_features)
    graph = b.graph([Value("x", "float32", ("N", n_features))], outputs)
    names = getattr(estimator, "feature_names_in_", None)
    metadata = {
        "task": prediction.task,
        "classes": _plain_classes(prediction.classes),
        "feature_names": None if names is None else [str(name) for name in names],
        "methods": methods,
    }
    return graph, metadata


def missing(estimator) -> list[str]:
    """Names of the estimators within this one that cannot be imported, itself included."""
    found = [] if _is_known(estimator) else [name_of(estimator)]
    for part in _parts_of(estimator):
        found += [name for name in missing(part) if name not in found]
    return found


def supported() -> list[str]:
    """Names of all estimators that can be imported; a SelectorMixin is any selector of features."""
    names = {cls.__name__ for cls in [*PREDICTORS, *TRANSFORMERS]}
    return sorted(name for name in names if not name.startswith("_"))


# ---- walking ------------------------------------------------------------------------------------


def _is_known(estimator):
    return any(importer_of(table, estimator) for table in (PREDICTORS, TRANSFORMERS))


def _parts_of(estimator):
    """The estimators that one runs through when it predicts."""
    if hasattr(estimator, "best_estimator_"):
        return [estimator.best_estimator_]
    if hasattr(estimator, "steps"):
        found = [step for _, step in estimator.steps]
    elif hasattr(estimator, "transformers_"):
        found = [step for _, step, _ in estimator.transformers_]
    elif hasattr(estimator, "transformer_list"):
        found = [step for _, step in estimator.transformer_list]
    elif hasattr(estimator, "calibrated_classifiers_"):
        found = [each.estimator for each in estimator.calibrated_classifiers_]
    else:
        found = [*np.ravel(np.asarray(getattr(estimator, "estimators_", []), object))]
        found += [getattr(estimator, name, None) for name in _SINGLE_PARTS]
    return [step for step in found if isinstance(step, BaseEstimator)]


def _n_features(estimator):
    try:
        return int(estimator.n_features_in_)
    except AttributeError:
        raise UnsupportedEstimator(
            f"{name_of(estimator)} does not say how many features it was fitted on"
        ) from None


def _prediction(b, estimator, columns):
    """What a model gives: of a pipeline, what its last step gives."""
    last = estimator
    while hasattr(last, "steps") or hasattr(last, "best_estimator_"):
        last = last.best_estimator_ if hasattr(last, "best_estimator_") else last.steps[-1][1]
    if type(last) in PREDICTORS:
        return predict(b, estimator, columns)
    return Prediction("transformer", {"transform": b.plain(transform(b, estimator, columns))})


_SINGLE_PARTS = "final_estimator_", "estimator_", "regressor_"


# ---- outputs ------------------------------------------------------------------------------------

_OUTPUTS = {
    "predict": "label",
    "predict_proba": "probabilities",
    "decision_function": "decision",
    "score_samples": "scores",
    "transform": "y",
}


def _named(prediction):
    """Output names by method, and values by output name."""
    methods, values = {}, {}
    for method, found in prediction.methods.items():
        name = _OUTPUTS[method]
        if method == "predict" and prediction.task == "regressor":
            name = "y"
        if isinstance(found, str):
            methods[method] = name
            values[name] = found
        else:
            methods[method] = [f"{name}_{i}" for i in range(len(found))]
            values.update(zip(methods[method], found, strict=True))
    return methods, values


def _outputs(b, values, n_features):
    """Outputs of the graph, with the shapes that follow from its nodes."""
    forms = {"x": Form((_ROWS, n_features), np.dtype(np.float32))}
    for node in b._nodes:
        inputs = [None if not name else _form(b, forms, name) for name in node.inputs]
        found = operators()[node.operator].forms(inputs, node.attributes)
        forms.update(zip(node.outputs, found, strict=False))
    taken, outputs = set(), []
    for name, value in values.items():
        if value == "x" or value in taken or b.value(value) is not None:
            value = b.unary("identity", value)
            forms[value] = _form(b, forms, b.maker(value).inputs[0])
        taken.add(value)
        b.call(value, name)
        shape = ("N", *_form(b, forms, value).shape[1:])
        outputs.append((Value(name, forms[value].dtype.name, shape), value))
    return outputs


def _form(b, forms, name):
    if name in forms:
        return forms[name]
    array = b.value(name)
    return Form(array.shape, array.dtype, array)


def _plain_classes(classes):
    """Classes as lists of Python's own numbers or strings."""
    if classes is None:
        return None
    if isinstance(classes, list):
        return [np.asarray(c).tolist() for c in classes]
    return np.asarray(classes).tolist()
