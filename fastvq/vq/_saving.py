"""A fitted quantizer as the contents of a file (`fastvq.container`), and back.

A file's kind names the class. Its attributes are ``{"parameters": ..., "fitted": ...}``: what
`get_params` gives, and the attributes that a fit leaves (those that end with an underscore, and
what the class lists in ``_saved``). Numbers, text, None and lists stand there as JSON has them;
what JSON has not, as an object with one key, which `_FORMS` lists. Arrays are the file's tensors.

A file decides nothing about code: its kind is looked up among classes that are loaded already, and
its names may set fitted attributes and parameters of that class, nothing else.
"""

import math

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fastvq import container
from fastvq._validation import as_count
from fastvq.container import FileFormatError
from fastvq.vq._base import BaseQuantizer, packed_size
from fastvq.vq._curve import RateCurve

__all__ = ["kinds", "load", "save"]

_BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (
        np.random.MT19937,
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.Philox,
        np.random.SFC64,
    )
}
# Where in their buffers generators are. NumPy believes any number, and reads memory there.
_MOST_POSITION = {"pos": 624, "buffer_pos": 4}


def save(quantizer, path):
    """See `BaseQuantizer.save`."""
    check_is_fitted(quantizer)
    tensors = {}
    parameters = {
        name: _packed_parameter(name, value, tensors)
        for name, value in quantizer.get_params(deep=False).items()
    }
    fitted = {
        name: _packed(value, name, tensors)
        for name, value in vars(quantizer).items()
        if _is_fitted_name(type(quantizer), name)
    }
    attributes = {"parameters": parameters, "fitted": fitted}
    container.write(path, _kind(type(quantizer)), tensors, attributes)


def load(path):
    """The quantizer that `save` wrote; see :func:`fastvq.load`."""
    contents = container.read(path)
    kind, known = contents.kind, kinds()
    if kind not in known:
        raise FileFormatError(
            f"{path}: holds a {kind!r}, which is none of {', '.join(known)}. If it is a class of "
            "yours, import its module before loading"
        )
    try:
        quantizer = _rebuilt(known[kind], contents)
        _try_out(quantizer)
    except MemoryError:
        raise
    except Exception as error:  # hostile attributes may trip over anything
        raise FileFormatError(f"{path}: holds no {kind} that works: {error}") from error
    return quantizer


def kinds():
    """The classes that files may hold, by the names that they have there."""
    import fastvq.vq  # noqa: F401  # loads all of fastvq's own

    found, classes = {}, [BaseQuantizer]
    for cls in classes:
        below = cls.__subclasses__()
        classes += below
        found.update((_kind(each), each) for each in below)
    return found


def _kind(cls):
    """fastvq's own go by their names, others by their module too."""
    ours = cls.__module__.partition(".")[0] == "fastvq"
    return cls.__name__ if ours else f"{cls.__module__}.{cls.__qualname__}"


def _is_fitted_name(cls, name):
    public = name.isidentifier() and name.endswith("_") and not name.startswith("_")
    return name in cls._saved or (public and not hasattr(cls, name))


def _rebuilt(cls, contents):
    """An estimator of this class with these parameters and fitted attributes."""
    parameters, fitted = (
        {name: _unpacked(value, contents.tensors) for name, value in part.items()}
        for part in (contents.attributes["parameters"], contents.attributes["fitted"])
    )
    unknown = parameters.keys() - set(cls._get_param_names())
    unknown |= {name for name in fitted if not _is_fitted_name(cls, name)}
    if unknown:
        raise ValueError(f"it knows no {', '.join(sorted(unknown))} (a later version wrote it?)")
    quantizer = cls(**parameters)
    version = quantizer.__getstate__()["_fastvq_version"]  # a file's own version has been checked
    quantizer.__setstate__({**vars(quantizer), **fitted, "_fastvq_version": version})
    return quantizer


def _try_out(quantizer):
    """Whether its parts fit together: decode the code of zeros, and encode what that gives."""
    check_is_fitted(quantizer)
    n_features = as_count(quantizer.n_features_in_, "n_features_in_")
    names = getattr(quantizer, "feature_names_in_", None)
    if names is not None and names.shape != (n_features,):
        raise ValueError(f"{len(names)} feature_names_in_ for {n_features} features")
    bits = quantizer._code_bits
    if quantizer.code_size_ != packed_size(bits):
        raise ValueError(f"code_size_ of {quantizer.code_size_} for codes of {sum(bits)} bits")
    rows = quantizer.inverse_transform(np.zeros((1, len(bits)), np.uint8))
    quantizer._encode(rows, quantizer._new_codes(1))


# ---- values --------------------------------------------------------------------------------


def _packed_parameter(name, value, tensors):
    try:
        return _packed(value, f"parameters.{name}", tensors)
    except TypeError as error:
        raise ValueError(
            f"{name}={value!r:.60} cannot be saved ({error}). Replace it before saving, as with "
            f"set_params({name}=...): what was fitted does not change with it"
        ) from None


def _packed(value, name, tensors):
    """A value as JSON has it, or as an object with one key; its arrays go to `tensors`."""
    if value is None or type(value) in (bool, int):
        return value
    if isinstance(value, str):
        return str(value)
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, dict) and all(type(key) is str for key in value):
        form = "curve" if isinstance(value, RateCurve) else "dict"
        return {form: {k: _packed(v, f"{name}.{k}", tensors) for k, v in value.items()}}
    if isinstance(value, np.random.RandomState):
        state = value.get_state(legacy=False)
        return {"RandomState": _packed(state, name, tensors)}
    if isinstance(value, np.random.Generator):
        return {"Generator": _packed(value.bit_generator.state, name, tensors)}
    if hasattr(value, "__array__"):
        return _packed_array(value, name, tensors)
    raise TypeError(f"files hold numbers, text and arrays, no {type(value).__name__}")


def _packed_array(value, name, tensors):
    array = np.asarray(value)
    if array.dtype.kind in "OU" and array.ndim == 1 and all(isinstance(s, str) for s in array):
        return {"strings": array.tolist()}
    if array.dtype.kind not in "biuf":
        raise TypeError(f"files hold numbers, text and arrays of numbers, no {array.dtype}")
    tensors[name] = array
    return {"scalar" if isinstance(value, np.generic) else "array": name}


def _unpacked(value, tensors):
    """What `_packed` made this of."""
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if isinstance(value, dict):
        ((form, inner),) = value.items()
        return _FORMS[form](inner, tensors)
    return value


def _unpacked_float(text, tensors):
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text]


def _unpacked_dict(items, tensors):
    return {key: _unpacked(item, tensors) for key, item in items.items()}


def _unpacked_random_state(value, tensors):
    state = _unpacked(value, tensors)
    random_state = np.random.RandomState(_bit_generator(state))
    random_state.set_state(state)
    return random_state


def _unpacked_generator(value, tensors):
    state = _unpacked(value, tensors)
    bits = _bit_generator(state)
    bits.state = state
    return np.random.Generator(bits)


def _bit_generator(state):
    """A new bit generator that may be given this state."""
    for name, number in (*state.items(), *state["state"].items()):
        if name in _MOST_POSITION and not 0 <= number <= _MOST_POSITION[name]:
            raise ValueError(f"a random_state has no position {number}")
    return _BIT_GENERATORS[state["bit_generator"]]()


_FORMS = {
    "array": lambda name, tensors: tensors[name],
    "scalar": lambda name, tensors: tensors[name][()],
    "float": _unpacked_float,
    "tuple": lambda items, tensors: tuple(_unpacked(items, tensors)),
    "dict": _unpacked_dict,
    "curve": lambda items, tensors: RateCurve(_unpacked_dict(items, tensors)),
    "strings": lambda items, tensors: np.array(items, dtype=object),
    "RandomState": _unpacked_random_state,
    "Generator": _unpacked_generator,
}
