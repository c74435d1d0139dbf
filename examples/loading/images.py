"""Decodes and resizes images of unknown origin, within bounds."""

import math
import pathlib

import numpy as np
from PIL import Image
from PIL import ImageOps

# What Pillow may be asked to decode, by the endings that name it.
SUFFIXES = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".ppm": "PPM",
    ".webp": "WEBP",
}
MAX_PIXELS = 100_000_000
# To be raised when the same file becomes other pixels.
VERSION = 2

_Box = tuple[float, float, float, float]


class ImageError(ValueError):
    """A file holds no image that can be used."""


def read(path: pathlib.Path, size: int, channels: int) -> np.ndarray:
    """Reads an image file, turned upright, cut to a square and resized.

    Args:
        path: The file.
        size: Height and width of the result, in pixels. What is cut off is
            on both sides of the longer edge.
        channels: 3 for RGB, 1 for gray.

    Returns:
        `uint8` array of shape `(size, size, channels)`.

    Raises:
        ImageError: If the file cannot be read or decoded, or is larger than
            `MAX_PIXELS`.
    """
    try:
        # The content decides about the format, not the ending.
        with Image.open(path, formats=sorted(set(SUFFIXES.values()))) as image:
            _check_size(image.size)
            # Lets JPEG leave out what would be lost in resizing.
            image.draft(None, (2 * size, 2 * size))
            return _finish(ImageOps.exif_transpose(image), size, channels)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds.
        raise ImageError(_reason(error, path)) from None


def check(path: pathlib.Path) -> None:
    """Checks that a file begins as an image does, without decoding it.

    Args:
        path: The file.

    Raises:
        ImageError: If `read` would refuse it for what is said at its begin.
    """
    try:
        with Image.open(path, formats=sorted(set(SUFFIXES.values()))) as image:
            _check_size(image.size)
            _check_mode(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds.
        raise ImageError(_reason(error, path)) from None


def resize(
    array: np.ndarray, size: int, channels: int, box: _Box | None = None
) -> np.ndarray:
    """Cuts a decoded image to a square, and resizes it.

    Args:
        array: `uint8` array of shape `(height, width)` or
            `(height, width, 1 or 3)`.
        size: Height and width of the result, in pixels.
        channels: 3 for RGB, 1 for gray.
        box: What to cut out in place of the middle square: `(top, left,
            bottom, right)` in fractions of the height and width. It becomes
            a square by scaling both edges.

    Returns:
        `uint8` array of shape `(size, size, channels)`.

    Raises:
        ImageError: If the array is no image, or the box is empty.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] != 3)
        or 0 in array.shape
    ):
        raise ImageError(f"an array of shape {array.shape}, {array.dtype}")
    _check_size(array.shape[:2])
    return _finish(Image.fromarray(array), size, channels, box)


def _check_size(size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"{size[0]} x {size[1]} pixels, of at most {MAX_PIXELS:,}"
        )


def _check_mode(image: Image.Image) -> None:
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK"):
        raise ImageError(f"pixels of the kind {image.mode!r}, not 8 bits")


def _reason(error: Exception, path: pathlib.Path) -> str:
    return str(error).replace(str(path), "it") or type(error).__name__


def _finish(
    image: Image.Image, size: int, channels: int, box: _Box | None = None
) -> np.ndarray:
    _check_mode(image)
    image = image.convert("RGB" if channels == 3 else "L")
    # Cut out first: in resizing, pixels beyond the edge would count.
    image = image.crop(_middle(image) if box is None else _corners(image, box))
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(size, size, channels)


def _middle(image: Image.Image) -> tuple[int, int, int, int]:
    """Returns the corners of the square that Keras' `Resizing` cuts out."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return left, top, left + side, top + side


def _corners(image: Image.Image, box: _Box) -> tuple[int, int, int, int]:
    top, left, bottom, right = np.clip(np.asarray(box, float), 0.0, 1.0)
    corners = (
        math.floor(left * image.width),
        math.floor(top * image.height),
        math.ceil(right * image.width),
        math.ceil(bottom * image.height),
    )
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        raise ImageError(f"an empty box {box}")
    return corners
