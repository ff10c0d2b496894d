"""Estimators of scikit-learn that predict with a compressed model of the one they fitted."""

from __future__ import annotations

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, RegressorMixin, clone
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from fastvq.compress.quantizer import ModelQuantizer

__all__ = ["CompressedClassifier", "CompressedRegressor"]


def _has(method):
    """Whether the compressed model, or before a fit the estimator, has a method."""

    def check(self):
        fitted = getattr(self, "compressed_", None)
        if fitted is not None:
            return method in fitted.metadata.get("methods", {})
        return hasattr(self.estimator, method)

    return check


class _Compressed(MetaEstimatorMixin, BaseEstimator):
    def __init__(self, estimator, quantizer=None):
        self.estimator = estimator
        self.quantizer = quantizer

    def set_params(self, **params):
        """Set parameters; those of the default quantizer too, as ``quantizer__calibration``."""
        nested = any(name.startswith("quantizer__") for name in params)
        if nested and self.quantizer is None and params.get("quantizer") is None:
            params["quantizer"] = ModelQuantizer()
        return super().set_params(**params)

    def fit(self, X, y, **fit_params):
        """Fit the estimator, and compress it with X and y as its examples.

        Parameters
        ----------
        X : array-like of shape (n, n_features)
        y : array-like of shape (n,) or (n, n_outputs)
        **fit_params
            For the estimator's own `fit`, such as sample_weight.

        Returns
        -------
        self
        """
        X, y = self._checked(X, y)
        self.estimator_ = clone(self.estimator).fit(X, y, **fit_params)
        if hasattr(self.estimator_, "classes_"):
            self.classes_ = self.estimator_.classes_
        quantizer = ModelQuantizer() if self.quantizer is None else clone(self.quantizer)
        self.compressed_ = None
        self.quantizer_ = quantizer.fit(self.estimator_, X, y)
        self.compressed_ = quantizer.transform(self.estimator_)
        return self

    def _checked(self, X, y):
        # Names of columns are kept in feature_names_in_; the estimator is fitted without.
        X, y = validate_data(
            self, X, y, multi_output=True, dtype="numeric", ensure_all_finite=self._finite()
        )
        if isinstance(self, ClassifierMixin):
            from sklearn.utils.multiclass import check_classification_targets

            check_classification_targets(y)
        elif y.dtype == object:
            y = y.astype(np.float64)
        return X, y

    def _finite(self):
        from sklearn.utils import get_tags

        return "allow-nan" if get_tags(self.estimator).input_tags.allow_nan else True

    def _give(self, method, X):
        check_is_fitted(self, "compressed_")
        X = validate_data(self, X, dtype="numeric", reset=False, ensure_all_finite=self._finite())
        return getattr(self.compressed_, method)(X)

    def predict(self, X):
        """What the compressed model predicts for each row."""
        return self._give("predict", X)

    def __sklearn_tags__(self):
        from sklearn.utils import get_tags

        tags = super().__sklearn_tags__()
        inner = get_tags(self.estimator)
        tags.input_tags.allow_nan = inner.input_tags.allow_nan
        tags.input_tags.sparse = False
        tags.target_tags.multi_output = inner.target_tags.multi_output
        tags.target_tags.single_output = inner.target_tags.single_output
        if tags.classifier_tags is not None and inner.classifier_tags is not None:
            tags.classifier_tags.multi_class = inner.classifier_tags.multi_class
        tags.non_deterministic = inner.non_deterministic
        return tags


class CompressedClassifier(ClassifierMixin, _Compressed):
    """A classifier that predicts with a compressed model of itself.

    Parameters
    ----------
    estimator : classifier
        Of those that :func:`fastvq.compress` takes. It is cloned, and fitted by `fit`.
    quantizer : ModelQuantizer, optional
        How it is compressed; None: ``ModelQuantizer()``. Its parameters can be searched over:
        ``GridSearchCV(model, {"quantizer__calibration": ["minmax", "mse"]})``.

    Attributes
    ----------
    estimator_ : classifier
        As fitted, with float weights.
    compressed_ : CompressedModel
        What predicts.
    quantizer_ : ModelQuantizer
        As fitted, with what became of each layer.
    classes_ : ndarray
    n_features_in_ : int

    Examples
    --------
    >>> from fastvq.compress import CompressedClassifier
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> CompressedClassifier(LogisticRegression(max_iter=500)).fit(X, y).predict(X[:2])
    array([0, 0])
    """

    @available_if(_has("predict_proba"))
    def predict_proba(self, X):
        """Probabilities of the classes, (n, n_classes)."""
        return self._give("predict_proba", X)

    @available_if(_has("decision_function"))
    def decision_function(self, X):
        """Scores of the classes, or of the second against the first of two."""
        return self._give("decision_function", X)


class CompressedRegressor(RegressorMixin, _Compressed):
    """A regressor that predicts with a compressed model of itself.

    Parameters
    ----------
    estimator : regressor
        Of those that :func:`fastvq.compress` takes. It is cloned, and fitted by `fit`.
    quantizer : ModelQuantizer, optional
        How it is compressed; None: ``ModelQuantizer()``.

    Attributes
    ----------
    estimator_ : regressor
        As fitted, with float weights.
    compressed_ : CompressedModel
        What predicts.
    quantizer_ : ModelQuantizer
    n_features_in_ : int

    Examples
    --------
    >>> from fastvq.compress import CompressedRegressor
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> X, y = load_diabetes(return_X_y=True)
    >>> CompressedRegressor(Ridge()).fit(X, y).predict(X[:2]).shape
    (2,)
    """

    def predict(self, X):
        """What the compressed model predicts for each row, as float64: it computes in float32."""
        return np.asarray(super().predict(X), np.float64)
