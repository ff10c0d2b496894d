"""What comes before a model, and travels in its file: pictures and text as the model's inputs.

A preprocessing is described by plain values, ``{"kind": ..., ...}``, in the model's metadata under
"preprocess"; `describe_picture` and `describe_wordpiece` make such descriptions. `prepare` carries
one out. NumPy and the standard library are all that it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from fastvq.runtime.wordpiece import WordPiece

__all__ = [
    "KINDS",
    "accepts",
    "check",
    "describe_picture",
    "describe_wordpiece",
    "kinds_of",
    "prepare",
    "resize",
]

# Of ImageNet's pictures, in shares of 255, as nearly all models for it use them.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST_SIDE = 1 << 16


def describe_picture(
    input="x",
    *,
    resize=256,
    crop=224,
    scale=1 / 255,
    mean=_MEAN,
    std=_STD,
    channels_first=False,
    dtype="float32",
) -> dict:
    """A description: resize, cut out the centre, scale and normalise.

    Parameters
    ----------
    input : str
        The model's input that the picture becomes.
    resize : int, (height, width) or None
        The length of the shorter side, or both sides.
    crop : int, (height, width) or None
        What is cut out of the centre.
    scale : float
    mean, std : float, or one per channel
        (pixel · scale − mean) / std
    channels_first : bool
        Whether the model reads (N, C, H, W); else (N, H, W, C).
    dtype : "float32", or "uint8" for a model that scales by itself: then only the size changes
    """
    return check(
        {
            "kind": "picture",
            "input": input,
            "resize": resize if resize is None or isinstance(resize, int) else list(resize),
            "crop": crop if crop is None or isinstance(crop, int) else list(crop),
            "scale": float(scale),
            "mean": np.atleast_1d(mean).astype(float).tolist(),
            "std": np.atleast_1d(std).astype(float).tolist(),
            "channels_first": bool(channels_first),
            "dtype": dtype,
        }
    )


def describe_wordpiece(
    vocabulary,
    *,
    ids="input_ids",
    mask="attention_mask",
    types="token_type_ids",
    lower=True,
    strip_accents=None,
    split_chinese=True,
    max_length=512,
    unknown="[UNK]",
    first="[CLS]",
    last="[SEP]",
    padding="[PAD]",
    special=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
) -> dict:
    """A description of BERT's tokenizer; see :class:`fastvq.runtime.wordpiece.WordPiece`.

    Parameters
    ----------
    vocabulary : sequence of str
        The tokens, in the order of their numbers.
    ids, mask, types : str or None
        The model's inputs that get the tokens' numbers, 1 where there is a token, and zeros.
    lower, strip_accents, split_chinese, max_length, unknown, first, last, padding, special
        As the tokenizer takes them.
    """
    return check(
        {
            "kind": "wordpiece",
            "inputs": {"ids": ids, "mask": mask, "types": types},
            "vocabulary": list(vocabulary),
            "lower": bool(lower),
            "strip_accents": bool(lower if strip_accents is None else strip_accents),
            "split_chinese": bool(split_chinese),
            "max_length": int(max_length),
            "unknown": unknown,
            "first": first,
            "last": last,
            "padding": padding,
            "special": list(special),
        }
    )


def kinds_of(description) -> list[str]:
    """The kinds that a description needs."""
    return [] if description is None else [description["kind"]]


def check(description):
    """The description, if it is one of those that can be carried out; else a ValueError."""
    if description is None:
        return None
    if not isinstance(description, Mapping) or description.get("kind") not in KINDS:
        raise ValueError(f"a preprocessing of none of the kinds {', '.join(KINDS)}")
    KINDS[description["kind"]].check(description)
    return description


def accepts(description, value) -> bool:
    """Whether this is raw: a picture or text, not yet what the model reads."""
    return description is not None and KINDS[description["kind"]].accepts(description, value)


def prepare(description, value) -> dict[str, np.ndarray]:
    """The model's inputs, by name, for raw pictures or text."""
    return KINDS[description["kind"]].prepare(description, value)


# ---- pictures -------------------------------------------------------------------------------


class _Picture:
    """uint8 pictures (H, W, 3), or grey (H, W), of any size; alone, in a list, or in one array."""

    @staticmethod
    def check(description):
        for name in ("resize", "crop"):
            _sides(description[name], name)
        if not isinstance(description["input"], str) or description["dtype"] not in (
            "float32",
            "uint8",
        ):
            raise ValueError("a picture becomes one named input, float32 or uint8")
        numbers = [description["scale"], *description["mean"], *description["std"]]
        if not all(isinstance(n, (int, float)) for n in numbers) or 0 in description["std"]:
            raise ValueError("a picture needs numbers as scale, mean and std, and none of std is 0")

    @staticmethod
    def accepts(description, value):
        if isinstance(value, (list, tuple)):
            return bool(value) and all(_is_picture(item) for item in value)
        raw = description["resize"] is not None or description["dtype"] != "uint8"
        return raw and (_is_picture(value) or _is_picture(value, 4))

    @staticmethod
    def prepare(description, value):
        pictures = [value] if _is_picture(value) else list(value)
        batch = np.stack([_normalised(description, _three(picture)) for picture in pictures])
        batch = batch.transpose(0, 3, 1, 2) if description["channels_first"] else batch
        return {description["input"]: np.ascontiguousarray(batch)}


def _is_picture(value, ndim=3):
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or 0 in value.shape:
        return False
    return (value.ndim == ndim and value.shape[-1] == 3) or (value.ndim == 2 and ndim == 3)


def _three(picture):
    return np.repeat(picture[:, :, None], 3, axis=2) if picture.ndim == 2 else picture


def _normalised(description, picture):
    if (wanted := description["resize"]) is not None:
        picture = resize(picture, *_scaled(wanted, *picture.shape[:2]))
    if (wanted := _sides(description["crop"], "crop")) is not None:
        picture = _centre(picture, *wanted)
    if description["dtype"] == "uint8":
        return picture
    mean, std = (np.float32(description[name]) for name in ("mean", "std"))
    return (picture * np.float32(description["scale"]) - mean) / std


def _sides(wanted, name):
    """(height, width) of a number, a pair of them, or None."""
    if wanted is None:
        return None
    pair = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted)
    if len(pair) != 2 or not all(type(n) is int and 0 < n <= _LARGEST_SIDE for n in pair):
        raise ValueError(f"{name} must be a size or two, from 1 to {_LARGEST_SIDE}, got {wanted}")
    return pair


def _scaled(wanted, height, width):
    """Height and width after resizing: with one number, the shorter side gets that length."""
    if not isinstance(wanted, int):
        return tuple(wanted)
    longer = int(wanted * max(height, width) / min(height, width))
    return (wanted, longer) if height <= width else (longer, wanted)


def _centre(picture, height, width):
    """The middle of a picture; where that is smaller, black is added around."""
    missing = [max(0, n - have) for n, have in zip((height, width), picture.shape, strict=False)]
    if any(missing):
        picture = np.pad(picture, [*((n // 2, n - n // 2) for n in missing), (0, 0)])
    top, left = (
        round((have - n) / 2) for have, n in zip(picture.shape, (height, width), strict=False)
    )
    return picture[top : top + height, left : left + width]


def resize(picture, height, width):
    """Resize by the triangle filter, as wide as a new pixel is ("bilinear with antialias").

    Pixel by pixel what Pillow computes: first along rows, then along columns, in integers with 22
    bits of fraction, rounded to uint8 after each. (From version 13 on, Pillow begins with columns
    where that is less work, and may differ by one there.)

    Parameters
    ----------
    picture : ndarray of shape (H, W, C), uint8
    height, width : int

    Returns
    -------
    picture : ndarray of shape (height, width, C), uint8
    """
    for axis, size in ((1, width), (0, height)):
        if picture.shape[axis] != size:
            picture = _resize_axis(picture, axis, size)
    return picture


_FRACTION = 22  # bits: 255 · 2²² leaves room for the sign in an int32


def _resize_axis(picture, axis, size):
    places, weights = _triangle(picture.shape[axis], size)
    shape = [*picture.shape]
    shape[axis] = size
    total = np.full(shape, 1 << (_FRACTION - 1), np.int32)
    column = [1, 1, 1]
    column[axis] = size
    for j in range(weights.shape[1]):
        total += weights[:, j].reshape(column) * picture.take(places[:, j], axis).astype(np.int32)
    return np.clip(total >> _FRACTION, 0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _triangle(old, new):
    """Which old pixels make each new one, and their shares: two arrays (new, most)."""
    scale = old / new
    width = max(scale, 1.0)
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - width + 0.5).astype(int), 0)
    last = np.minimum((centre + width + 0.5).astype(int), old)
    places = first[:, None] + np.arange((last - first).max())
    shares = np.maximum(1 - abs((places - centre[:, None] + 0.5) / width), 0)
    shares[places >= last[:, None]] = 0
    shares /= shares.sum(axis=1, keepdims=True)
    weights = (0.5 + shares * (1 << _FRACTION)).astype(np.int32)
    return np.minimum(places, old - 1), weights


# ---- text -----------------------------------------------------------------------------------


class _Text:
    """A text, or a sequence of them."""

    @staticmethod
    def check(description):
        inputs = description["inputs"]
        if set(inputs) != {"ids", "mask", "types"} or not inputs["ids"]:
            raise ValueError("text becomes the inputs ids, and mask and types or None")
        _tokenizer(description)

    @staticmethod
    def accepts(description, value):
        if isinstance(value, str):
            return True
        if isinstance(value, np.ndarray):
            return value.dtype.kind in "UO" and value.ndim == 1
        return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)

    @staticmethod
    def prepare(description, value):
        texts = [value] if isinstance(value, str) else [str(text) for text in value]
        ids, mask = _tokenizer(description).batch(texts)
        names = description["inputs"]
        made = {"ids": ids, "mask": mask, "types": np.zeros_like(ids)}
        return {names[role]: array for role, array in made.items() if names[role]}


_tokenizers: dict[int, tuple[Mapping, WordPiece]] = {}


def _tokenizer(description):
    """The tokenizer of a description, kept as long as the description is the same object."""
    kept = _tokenizers.get(id(description))
    if kept is None or kept[0] is not description:
        options = {k: v for k, v in description.items() if k not in ("kind", "inputs")}
        while len(_tokenizers) >= 8:
            _tokenizers.pop(next(iter(_tokenizers)), None)
        kept = _tokenizers[id(description)] = description, WordPiece(**options)
    return kept[1]


KINDS = {"picture": _Picture, "wordpiece": _Text}
