"""Scalers, encoders, selection, missing values: what comes before a predictor."""

from __future__ import annotations

import numpy as np
from sklearn import preprocessing as pre
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.utils import check_array

from fastvq.compress.importers.sklearn._parts import (
    Columns,
    UnsupportedEstimator,
    name_of,
    transformer,
    undoing,
)

# ---- scalers -------------------------------------------------------------------------------------


@transformer(pre.StandardScaler)
def standard_scaler(b, est, columns):
    centre = est.mean_ if est.with_mean else None
    return columns.affine(centre, 1 / est.scale_ if est.with_std else None)


@transformer(pre.MinMaxScaler)
def min_max_scaler(b, est, columns):
    low, high = est.feature_range
    scaled = columns.affine(est.data_min_, est.scale_, low)
    return _clipped(b, scaled, low, high) if est.clip else scaled


@transformer(pre.MaxAbsScaler)
def max_abs_scaler(b, est, columns):
    scaled = columns.affine(scale=1 / est.scale_)
    return _clipped(b, scaled, -1.0, 1.0) if getattr(est, "clip", False) else scaled


@undoing(pre.StandardScaler, pre.MinMaxScaler, pre.MaxAbsScaler, pre.RobustScaler)
def unscaled(b, est, columns):
    """These are affine, so that two values of each column tell all."""
    if getattr(est, "clip", False):
        low, high = getattr(est, "feature_range", (-1.0, 1.0))
        columns = _clipped(b, columns, low, high)
    (shift,) = est.inverse_transform(np.zeros((1, columns.n)))
    (moved,) = est.inverse_transform(np.ones((1, columns.n)))
    return columns.affine(scale=moved - shift, shift=shift)


def _clipped(b, columns, low, high):
    value = b.add("Unary", b.plain(columns), function="clip", alpha=float(low), beta=float(high))
    return Columns(value, columns.n)


@transformer(pre.RobustScaler)
def robust_scaler(b, est, columns):
    centre = est.center_ if est.with_centering else None
    return columns.affine(centre, 1 / est.scale_ if est.with_scaling else None)


@transformer(pre.Normalizer)
def normalizer(b, est, columns):
    x = b.plain(columns)
    if est.norm == "max":
        length = b.reduce("max", b.unary("abs", x), [1])
    else:
        length = b.reduce(est.norm, x, [1])
    none = b.as_real(b.binary("equal", length, b.real(0.0)))
    return Columns(b.binary("divide", x, b.binary("add", length, none)), columns.n)


@transformer(TfidfTransformer)
def term_weights(b, est, columns):
    """Of counts of terms, whoever counted them."""
    x = b.plain(columns)
    if est.sublinear_tf:
        grown = b.binary("add", b.unary("log", x), b.real(1.0))
        x = b.add("Where", b.binary("equal", x, b.real(0.0)), x, grown)
    weighted = Columns(x, columns.n).affine(scale=est.idf_ if est.use_idf else None)
    return weighted if est.norm is None else normalizer(b, pre.Normalizer(est.norm), weighted)


@transformer(pre.Binarizer)
def binarizer(b, est, columns):
    above = b.binary("greater", b.plain(columns), b.real(est.threshold))
    return Columns(b.as_real(above), columns.n)


_NAMED = {
    **{f: f.__name__ for f in (np.exp, np.log, np.sqrt, np.negative, np.reciprocal, np.sign)},
    **{f: f.__name__ for f in (np.sin, np.cos, np.tan, np.sinh, np.cosh, np.tanh)},
    **{f: f.__name__ for f in (np.floor, np.ceil)},
    **{getattr(np, f"arc{name}"): f"a{name}" for name in ("sin", "cos", "tan")},
    **{getattr(np, f"arc{name}"): f"a{name}" for name in ("sinh", "cosh", "tanh")},
    **{np.abs: "abs", np.fabs: "abs", np.rint: "round"},
}
# Functions as (added before, function, factor behind it, added behind it).
_AROUND = {
    np.log1p: (1.0, "log", 1.0, 0.0),
    np.log2: (0.0, "log", 1 / np.log(2), 0.0),
    np.log10: (0.0, "log", 1 / np.log(10), 0.0),
    np.expm1: (0.0, "exp", 1.0, -1.0),
}


@transformer(pre.FunctionTransformer)
def function_transformer(b, est, columns):
    return _function(b, columns, est.func, est.kw_args)


@undoing(pre.FunctionTransformer)
def function_undone(b, est, columns):
    return _function(b, columns, est.inverse_func, est.inv_kw_args)


def _function(b, columns, function, arguments):
    if function is None or getattr(function, "func", None) is check_array:
        return columns
    if function is np.square and not arguments:
        x = b.plain(columns)
        return Columns(b.binary("multiply", x, x), columns.n)
    if (function not in _NAMED and function not in _AROUND) or arguments:
        known = ", ".join(f"np.{f.__name__}" for f in [*_NAMED, *_AROUND, np.square])
        raise UnsupportedEstimator(f"FunctionTransformer of {function}; known are {known}")
    before, name, factor, behind = _AROUND.get(function) or (0.0, _NAMED[function], 1.0, 0.0)
    value = b.unary(name, b.plain(columns.affine(shift=before) if before else columns))
    return Columns(value, columns.n).affine(scale=factor, shift=behind)


@transformer(pre.PowerTransformer)
def power_transformer(b, est, columns):
    x = b.plain(columns)
    if est.method == "box-cox":
        y = _box_cox(b, x, est.lambdas_)
    else:
        up = _box_cox(b, b.binary("add", b.unary("relu", x), b.real(1.0)), est.lambdas_)
        below = b.unary("relu", b.unary("negative", x))
        down = _box_cox(b, b.binary("add", below, b.real(1.0)), 2 - est.lambdas_)
        y = b.binary("subtract", up, down)  # one of the two is (1^p - 1) / p = 0
    columns = Columns(y, columns.n)
    return standard_scaler(b, est._scaler, columns) if est.standardize else columns


def _box_cox(b, x, powers):
    """(x^p - 1) / p for each column, log x where p is 0."""
    logarithmic = np.abs(powers) < 1e-6
    safe = np.where(logarithmic, 1.0, powers)
    y = Columns(b.binary("power", x, b.real(safe, "powers")), len(powers))
    y = b.plain(y.affine(1.0, 1 / safe))
    if not logarithmic.any():
        return y
    return b.add("Where", b.constant(logarithmic, "logarithmic"), b.unary("log", x), y)


@transformer(pre.PolynomialFeatures)
def polynomial_features(b, est, columns):
    """Products degree by degree: each is a product of one feature less, times that feature."""
    x, n = b.plain(columns), columns.n
    wanted = [tuple(np.repeat(np.arange(n), powers)) for powers in est.powers_]
    needed = {product[:length] for product in wanted for length in range(1, len(product) + 1)}
    place, parts, before, start, count = {}, [], x, 0, n
    for degree in range(1, max(map(len, wanted), default=0) + 1):
        products = sorted(p for p in needed if len(p) == degree)
        last = b.pick(x, [p[-1] for p in products], n)
        if degree > 1:
            first = [place[p[:-1]] - start for p in products]
            last = b.binary("multiply", b.pick(before, first, count), last)
        start, count = len(place), len(products)
        place.update((p, start + i) for i, p in enumerate(products))
        parts.append(last)
        before = last
    if () in wanted:
        place[()] = len(place)
        parts.append(b.matrix(x, np.zeros((1, n)), [1.0]))
    everything = b.concat(parts, axis=1)
    return Columns(b.pick(everything, [place[p] for p in wanted], len(place)), len(wanted))


# ---- selection and missing values ----------------------------------------------------------------


@transformer(SelectorMixin)
def selected(b, est, columns):
    """Any selector of features."""
    chosen = est.get_support(indices=True)
    return Columns(b.pick(b.plain(columns), chosen, columns.n), len(chosen))


@transformer(SimpleImputer)
def simple_imputer(b, est, columns):
    try:
        statistics = est.statistics_.astype(np.float64)
    except ValueError:
        raise UnsupportedEstimator("SimpleImputer of what are not numbers") from None
    x = b.plain(columns)
    missing = _is_missing(b, x, est.missing_values)
    filled = b.add("Where", missing, b.real(np.nan_to_num(statistics), "statistics"), x)
    kept = np.flatnonzero(~np.isnan(statistics))
    if est.keep_empty_features:
        kept = np.arange(columns.n)
    filled = b.pick(filled, kept, columns.n)
    if not est.add_indicator:
        return Columns(filled, len(kept))
    marks = b.pick(b.as_real(missing), est.indicator_.features_, columns.n)
    together = b.concat([filled, marks], axis=1)
    return Columns(together, len(kept) + len(est.indicator_.features_))


@transformer(MissingIndicator)
def missing_indicator(b, est, columns):
    missing = b.as_real(_is_missing(b, b.plain(columns), est.missing_values))
    return Columns(b.pick(missing, est.features_, columns.n), len(est.features_))


def _is_missing(b, x, marker):
    if isinstance(marker, (int, float)) and np.isnan(marker):
        return b.unary("isnan", x)
    if not isinstance(marker, (int, float, np.number)):
        raise UnsupportedEstimator(f"missing values that are {marker!r}, not a number")
    return b.binary("equal", x, b.real(marker))


# ---- encoders of numbers -------------------------------------------------------------------------


@transformer(pre.OneHotEncoder)
def one_hot_encoder(b, est, columns):
    _check_categories(est)
    dropped = [None] * columns.n if est.drop_idx_ is None else est.drop_idx_
    kept = [
        [c for i, c in enumerate(categories) if i != drop]
        for categories, drop in zip(est.categories_, dropped, strict=True)
    ]
    features = np.repeat(np.arange(columns.n), [len(categories) for categories in kept])
    hits = _hits(b, columns, features, [c for categories in kept for c in categories])
    return Columns(hits, len(features))


@transformer(pre.OrdinalEncoder)
def ordinal_encoder(b, est, columns):
    """Each column is one of the hits times its number; what hits nothing is the unknown value."""
    _check_categories(est)
    sizes = [len(categories) for categories in est.categories_]
    features = np.repeat(np.arange(columns.n), sizes)
    every = np.concatenate(est.categories_).astype(np.float64)
    numbers = np.concatenate([np.arange(size) for size in sizes]).astype(np.float64)
    hits = _hits(b, columns, features, every)
    owner = np.arange(columns.n)[:, None] == features
    encoded = np.where(np.isnan(every), 0.0, numbers)  # missing ones follow
    y = b.matrix(hits, np.where(owner, encoded, 0.0))
    found = b.binary("greater", b.matrix(hits, owner), b.real(0.5))
    unknown = est.unknown_value if est.unknown_value is not None else np.nan
    y = b.add("Where", found, y, b.real(unknown))
    missing = np.isnan(every)
    if missing.any():
        value = np.full(columns.n, float(est.encoded_missing_value))
        has_missing = np.isin(np.arange(columns.n), features[missing])
        asked = b.unary("isnan", b.plain(columns))
        asked = b.binary("and", asked, b.constant(has_missing, "has_missing"))
        y = b.add("Where", asked, b.real(value), y)
    return Columns(y, columns.n)


@transformer(pre.TargetEncoder)
def target_encoder(b, est, columns):
    """What the target is, on average, where the feature has the category; of others, anywhere."""
    _check_categories(est)
    several = est.target_type_ == "multiclass"
    n_targets = len(est.classes_) if several else 1
    sizes = [len(categories) for categories in est.categories_]
    features = np.repeat(np.arange(columns.n), sizes)
    hits = _hits(b, columns, features, np.concatenate(est.categories_).astype(np.float64))
    # encodings_ goes through features, and within each through classes.
    means = np.repeat(np.reshape(est.target_mean_, (1, -1)), columns.n, axis=0).ravel()
    weight = np.zeros((columns.n * n_targets, len(features)))
    for row, (encoding, mean) in enumerate(zip(est.encodings_, means, strict=True)):
        weight[row, features == row // n_targets] = encoding - mean
    return Columns(b.matrix(hits, weight, means), len(weight))


def _check_categories(est):
    if any(np.asarray(c).dtype.kind not in "fiub" for c in est.categories_):
        raise UnsupportedEstimator(f"{name_of(est)} of categories that are not numbers")
    if getattr(est, "_infrequent_enabled", False):
        raise UnsupportedEstimator(f"{name_of(est)} with infrequent categories")


def _hits(b, columns, features, categories):
    """1 where the feature has the category, else 0: (N, number of categories)."""
    categories = np.asarray(categories, np.float64)
    value = b.pick(b.plain(columns), features, columns.n)
    hits = b.binary("equal", value, b.real(categories, "categories"))
    missing = np.isnan(categories)
    if missing.any():
        asked = b.binary("and", b.unary("isnan", value), b.constant(missing, "missing"))
        hits = b.binary("or", hits, asked)
    return b.as_real(hits)


@transformer(pre.KBinsDiscretizer)
def k_bins(b, est, columns):
    """The bin is the number of inner edges at or below the value."""
    inner = [np.asarray(edges, np.float64)[1:-1] for edges in est.bin_edges_]
    features = np.repeat(np.arange(columns.n), [len(edges) for edges in inner])
    value = b.pick(b.plain(columns), features, columns.n)
    # x >= e of float32 x: x >= the smallest float32 not below e.
    edges = np.concatenate(inner)
    rounded = edges.astype(np.float32)
    rounded = np.where(rounded < edges, np.nextafter(rounded, np.float32(np.inf)), rounded)
    above = b.as_real(b.binary("greater_equal", value, b.real(rounded, "edges")))
    bins = b.matrix(above, np.arange(columns.n)[:, None] == features)
    if est.encode == "ordinal":
        return Columns(bins, columns.n)
    return one_hot_encoder(b, est._encoder, Columns(bins, columns.n))
