"""Pictures as rows for a quantizer, and back.

A picture is a uint8 array (height, width, channels): 1 channel is grey, 3 are RGB, 4 are RGBA.
Its rows are its pixels, left to right and top to bottom, or its square blocks of pixels, each
flattened. With k codewords a pixel costs log2(k) bits, a block of b x b pixels log2(k) / b^2
bits a pixel, besides the codebook (Gersho & Gray, *Vector Quantization and Signal Compression*,
1992, chapter 9).

Array work needs numpy only; reading and writing files needs Pillow (``fastvq[image]``).
"""

import math
import warnings

import numpy as np

__all__ = [
    "from_rows",
    "psnr",
    "read_picture",
    "require_pillow",
    "round_codebook",
    "to_rows",
    "write_indexed",
    "write_picture",
]

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for a number of channels


def to_rows(pixels, block=1):
    """Cut a picture into square blocks, one a row.

    Parameters
    ----------
    pixels : ndarray of shape (height, width, channels)
    block : int, default=1
        Side of a block in pixels. A picture that it does not divide is first extended to the
        right and downwards by repeating its last column and row.

    Returns
    -------
    rows : ndarray of shape (n_blocks, block * block * channels)
        Blocks left to right, then downwards. For ``block=1`` this is a view of the pixels
        wherever memory order allows.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.images import from_rows, to_rows
    >>> picture = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    >>> to_rows(picture).shape, to_rows(picture, block=4).shape
    ((30, 3), (4, 48))
    >>> bool((from_rows(to_rows(picture, block=4), picture.shape, block=4) == picture).all())
    True
    """
    height, width, channels = pixels.shape
    down, across = -(-height // block), -(-width // block)
    missing = (down * block - height, across * block - width)
    if any(missing):
        pixels = np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    blocks = pixels.reshape(down, block, across, block, channels).swapaxes(1, 2)
    return blocks.reshape(down * across, block * block * channels)


def from_rows(rows, shape, block=1):
    """Put the rows of :func:`to_rows` back together as a picture of ``shape``."""
    height, width, channels = shape
    down, across = -(-height // block), -(-width // block)
    blocks = rows.reshape(down, across, block, block, channels).swapaxes(1, 2)
    return blocks.reshape(down * block, across * block, channels)[:height, :width]


def round_codebook(codebook):
    """Round codewords to whole channel values 0-255, uint8, as a picture stores them."""
    return np.clip(np.rint(codebook), 0, 255).astype(np.uint8)


def psnr(original, copy, peak=255):
    """Peak signal-to-noise ratio in dB, ``10 log10(peak^2 / mean squared error)``.

    Infinite where the two are equal. For photographs, 30 dB shows its losses at a second
    glance, 40 dB hardly ever.

    Examples
    --------
    >>> import numpy as np
    >>> from fastvq.images import psnr
    >>> black = np.zeros((2, 2, 1), np.uint8)
    >>> round(psnr(black, black + 1), 2)
    48.13
    """
    error = np.subtract(original, copy, dtype=np.float32)
    mean_square = float(np.mean(np.square(error), dtype=np.float64))
    return 10 * math.log10(peak**2 / mean_square) if mean_square else math.inf


def read_picture(path):
    """Read any still picture that Pillow reads.

    Parameters
    ----------
    path : path or binary file

    Returns
    -------
    pixels : uint8 ndarray of shape (height, width, channels)
        1 channel for grey, 3 for RGB, 4 where there is transparency (the colour of a wholly
        transparent pixel, which nobody sees, is set to 0). Turned upright as its EXIF
        orientation says. Palettes, CMYK and the like become RGB; 16-bit grey is reduced to 8
        bits with a warning; of an animation the first frame is taken, with a warning.

    Raises
    ------
    ValueError
        Not a picture, a damaged one, one too large to be true, or one whose values have no
        fixed range (32-bit integer and floating-point grey).
    ImportError
        Pillow is not installed.
    """
    image, depth16 = _decode(path)
    if depth16:
        warnings.warn(f"{path}: 16-bit grey reduced to 8 bits", stacklevel=2)
        grey = np.asarray(image).astype(np.float32) / 257  # 65535 -> 255
        return round_codebook(grey)[:, :, None]
    if image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "floating-point"
        raise ValueError(f"{path}: {kind} pixels have no fixed range; want 8 or 16 bits a channel")
    # Alpha is the last band, "A", or "a" where colours are multiplied by it (LAB has another a).
    see_through = image.getbands()[-1] in "Aa" or "transparency" in image.info
    mode = "RGBA" if see_through else "L" if image.mode in ("1", "L") else "RGB"
    pixels = np.array(image.convert(mode))
    if see_through:
        pixels[pixels[:, :, 3] == 0] = 0
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def write_picture(file, pixels):
    """Write a picture as a PNG with all its colours: grey, RGB or RGBA."""
    PIL = require_pillow()
    pixels = np.ascontiguousarray(pixels)
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    PIL.Image.fromarray(flat).save(file, format="PNG")


def write_indexed(file, codes, palette):
    """Write codes and their colours as an indexed PNG.

    Equal colours are stored once, and codes take 1, 2, 4 or 8 bits, whichever holds them.

    Parameters
    ----------
    file : path or binary file
    codes : integer ndarray of shape (height, width)
    palette : uint8 ndarray of shape (at most 256, 1, 3 or 4)
        The colour of each code: grey, RGB or RGBA.
    """
    if len(palette) > 256:
        raise ValueError(f"palette has {len(palette)} colours; an indexed PNG holds at most 256")
    PIL = require_pillow()
    colours, renumbered = np.unique(palette, axis=0, return_inverse=True)
    indices = renumbered.reshape(-1).astype(np.uint8)[codes]
    if colours.shape[1] == 1:
        colours = np.repeat(colours, 3, axis=1)
    image = PIL.Image.fromarray(indices)
    image.putpalette(colours.tobytes(), _MODES[colours.shape[1]])
    image.save(file, format="PNG")


def _decode(path):
    """The picture as Pillow decodes it, upright, and whether it is 16-bit grey."""
    PIL = require_pillow()
    try:
        with PIL.Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                warnings.warn(f"{path}: {image.n_frames} frames; taking the first", stacklevel=3)
            image.load()
            return PIL.ImageOps.exif_transpose(image), _is_16_bit_grey(image)
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{path}: not a picture that Pillow can read") from None
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from None
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # decoders report a broken file in many ways, OSError among them
        if getattr(error, "errno", None) is not None:  # the file system's, not a decoder's
            raise
        raise ValueError(f"{path}: damaged picture ({error})") from None


def _is_16_bit_grey(image):
    # Older Pillow opens a 16-bit PNG, and every one a 16-bit PGM, in the 32-bit mode "I".
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def require_pillow():
    """Pillow, or an ImportError that says how to install it."""
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise ImportError(
            'pictures need Pillow, which is not installed: pip install "fastvq[image]"'
        ) from None
    return PIL
