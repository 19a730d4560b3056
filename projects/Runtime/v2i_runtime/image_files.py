"""Image files -> pixels, without silent loss of pixel values.

    image_names     image files of a folder, in natural order
    read_image      file -> RGB array of 8 bits a channel
    image_size      width and height from the header alone, with the same checks
    open_image      file -> upright Pillow image in its own mode, for masks
    jpeg_thumbnail  RGB array -> small JPEG for a report

Image libraries silently truncate deeper files to 8 bits and read the first of several images; here
both are errors. Decoders, measured on one core with OpenCV 4.11 and 5.0, Pillow 13:

    JPEG    OpenCV: the same pixels as Pillow's in 0.4 to 0.9 of the time, least for large
            images; also rejects truncated files
    TIFF    Pillow; tifffile for what Pillow cannot open, such as the released CVC-ClinicDB: three
            samples per pixel declared as grey, which OpenCV reads as grey
    others  Pillow, for palettes, alpha and CMYK. OpenCV reads PNG in 0.85 of the time, but
            Pillow must decode a PNG to get its orientation.

EXIF orientation is applied, as by Detectron2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import tifffile
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

cv2.setNumThreads(0)  # its threads do not survive a fork, and a frame is too small for several

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
EXIF_ORIENTATION = 274
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# MPO is a JPEG with previews or a gain map after its end: one image for every JPEG reader.
JPEG_FORMATS = ("JPEG", "MPO")
EIGHT_BIT_FORMATS = (*JPEG_FORMATS, "BMP", "GIF", "WEBP")  # Pillow gives the depth of no other


class ImageFileError(ValueError):
    """An unusable file; ``reason`` is the message without path and remedy.

    Its only argument is the text, so that it can be unpickled: see `file_error`.
    """

    reason = ""


def file_error(path: str | Path, reason: str, remedy: str) -> ImageFileError:
    """The error for an unusable file."""
    error = ImageFileError(f"{path}: {reason}; {remedy}")
    error.reason = reason
    return error


def image_names(folder: Path) -> list[str]:
    """Names of the image files in a folder, in natural order (``image9`` before ``image10``)."""
    names = (n for n in os.listdir(folder) if n.lower().endswith(IMAGE_SUFFIXES) and n[0] != ".")
    return sorted(names, key=natural_key)


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key with runs of digits as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def read_image(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read an image file as RGB, upright; grey, palette, CMYK and alpha images are converted.

    Raises ImageFileError, a ValueError that names the file, if it is missing, not an image,
    damaged, deeper than 8 bits per channel, or holds several images.
    """
    with _opened(path) as (file, image):
        if (
            image.format in JPEG_FORMATS
            and image.mode in ("L", "RGB")
            and image.getexif().get(EXIF_ORIENTATION, 1) == 1
        ):
            file.seek(0)
            pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR_RGB)
            if pixels is not None:
                return pixels
            # Pillow reads what OpenCV rejects, or gives the reason.
            file.seek(0)
            image = Image.open(file)
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of the upright image.

    Raises ImageFileError as `read_image` does, for faults visible in the header.
    """
    with _opened(path) as (_, image):
        width, height = image.size
        sideways = image.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
        return (height, width) if sideways else (width, height)


def open_image(path: str | Path, *, deep_grey: bool = False) -> Image.Image:
    """The decoded image, upright, in its own mode.

    Raises ImageFileError as `read_image` does; with ``deep_grey`` one channel may have any depth.
    """
    with _opened(path, deep_grey=deep_grey) as (_, image):
        return ImageOps.exif_transpose(image)


def jpeg_thumbnail(pixels: UInt8[np.ndarray, "H W 3"], *, max_width: int, quality: int) -> bytes:
    """JPEG of an RGB image, scaled down to ``max_width`` px if wider.

    OpenCV's area mean takes a third of the time of Pillow's Lanczos filter.
    """
    height, width = pixels.shape[:2]
    if width > max_width:
        size = (max_width, max(1, round(height * max_width / width)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)
    assert encoded
    return data.tobytes()


@contextmanager
def _opened(path: str | Path, *, deep_grey: bool = False) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """The file and its image, header checked; errors in the block become file errors."""
    try:
        with open(path, "rb") as file:
            yield file, _open(path, file, deep_grey)
    except ImageFileError:
        raise
    except FileNotFoundError as error:
        raise file_error(
            path, "no such file", "check its path and that the data is complete"
        ) from error
    # The decoders share no error class; damaged files can raise almost any exception.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            reason = f"cannot be read ({error.strerror})"
        elif isinstance(error, UnidentifiedImageError):
            reason = "cannot be read as an image, it is of no known format, damaged or truncated"
        else:
            reason = f"cannot be read as an image, it is damaged or truncated ({error})"
        raise file_error(
            path, reason, "copy it again, or leave this frame out of the data"
        ) from error


def _open(path: str | Path, file: BinaryIO, deep_grey: bool) -> Image.Image:
    """The image, decoded only if necessary; rejects several images and too much depth."""
    head = file.read(26)
    file.seek(0)
    if head[:4] in TIFF_STARTS:
        return _open_tiff(path, file, deep_grey)
    image = Image.open(file)
    if image.format not in JPEG_FORMATS:
        _check_number(path, getattr(image, "n_frames", 1))
    if image.format == "PNG":
        bits, is_grey = head[24], head[25] == 0  # of IHDR, the first chunk
        _check_depth(path, bits, allowed=deep_grey and is_grey)
    elif image.format not in EIGHT_BIT_FORMATS:
        file.seek(0)
        pixels = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        file.seek(0)
        image = Image.open(file)
        if pixels is None:
            raise file_error(
                path, f"is a {image.format} file, whose depth is not known", "convert it to PNG"
            )
        allowed = deep_grey and pixels.ndim == 2
        _check_depth(path, 8 * pixels.itemsize, pixels.dtype.kind == "f", allowed=allowed)
    return image


def _open_tiff(path: str | Path, file: BinaryIO, deep_grey: bool) -> Image.Image:
    """Read with Pillow if possible, else with tifffile."""
    with tifffile.TiffFile(file) as tiff:
        pages = [
            page
            for page in tiff.pages
            if not (isinstance(page, tifffile.TiffPage) and page.is_reduced)
        ]
        _check_number(path, len(pages))
        page = pages[0]
        assert isinstance(page, tifffile.TiffPage)
        is_float = page.sampleformat == tifffile.SAMPLEFORMAT.IEEEFP
        allowed = deep_grey and page.samplesperpixel == 1
        _check_depth(path, page.bitspersample, is_float, allowed=allowed)
        try:
            file.seek(0)
            return Image.open(file)
        except UnidentifiedImageError:
            pixels = page.asarray()
        colors = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.MINISBLACK)
        if page.samplesperpixel != 3 or page.photometric not in colors:
            raise file_error(
                path,
                f"is a TIFF with {page.samplesperpixel} samples a pixel and photometric "
                f"interpretation {int(page.photometric)}, whose colors are not known",
                "convert it to PNG",
            )
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            pixels = np.moveaxis(pixels, 0, -1)
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.getexif()[EXIF_ORIENTATION] = page.tags.valueof(EXIF_ORIENTATION, 1)
        return image


def _check_number(path: str | Path, number: int) -> None:
    if number > 1:
        raise file_error(
            path,
            f"holds {number} images, of which only the first would be read",
            "write each to a file of its own",
        )


def _check_depth(
    path: str | Path, bits: int, is_float: bool = False, *, allowed: bool = False
) -> None:
    if (bits > 8 or is_float) and not allowed:
        kind = "floating-point pixel values" if is_float else "more than 8 bits a channel"
        raise file_error(
            path, f"has {kind} ({bits} bits)", "scale the range that is used to 0..255, 8 bits"
        )
