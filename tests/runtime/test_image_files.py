"""Image files: every pixel value arrives, or the file is refused by name."""

import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from v2i_runtime.image_files import (
    ImageFileError,
    image_size,
    jpeg_thumbnail,
    natural_key,
    open_image,
    read_image,
)

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
PNG_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels


def test_natural_order_reads_numbers():
    names = ["a10.jpg", "b1.jpg", "a9.jpg", "a9²2.jpg"]
    assert sorted(names, key=natural_key) == ["a9.jpg", "a9²2.jpg", "a10.jpg", "b1.jpg"]


def png_of_16_bits(path: Path, channels: int) -> None:
    """A PNG that uses 10 of its 16 bits; Pillow writes none with several channels."""
    values = RNG.integers(0, 1024, (12, 20, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 20, 12, 16, PNG_COLOR_TYPES[channels], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
            for tag, data in chunks
        )
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits_is_refused_whatever_its_channels(tmp_path, channels):
    png_of_16_bits(tmp_path / "deep.png", channels)
    for read in (read_image, image_size):
        with pytest.raises(ImageFileError, match=r"deep\.png: has more than 8 bits .*16 bits"):
            read(tmp_path / "deep.png")


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        (PIXELS.astype(np.uint16) * 4, {"photometric": "rgb"}, "has more than 8 bits a channel"),
        (PIXELS.astype(np.float32), {"photometric": "rgb"}, "has floating-point pixel values"),
        (PIXELS[..., 0] / np.float32(255), {}, "has floating-point pixel values"),
        (np.stack([PIXELS, PIXELS]), {"photometric": "rgb"}, "holds 2 images"),
        (np.dstack([PIXELS] * 2), {"photometric": "minisblack", "planarconfig": "contig"}, "is a"),
    ],
)
def test_tiff_with_values_that_would_be_lost_is_refused(tmp_path, values, options, reason):
    tifffile.imwrite(tmp_path / "frame.tif", values, **options)
    for read in (read_image, image_size):
        with pytest.raises(ImageFileError, match=rf"frame\.tif: {reason}"):
            read(tmp_path / "frame.tif")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animations_and_pages_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(tmp_path / f"two.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageFileError, match="holds 2 images, of which only the first"):
        read_image(tmp_path / f"two.{suffix}")


def test_preview_page_of_a_tiff_is_no_second_image(tmp_path):
    with tifffile.TiffWriter(tmp_path / "frame.tif") as tiff:
        tiff.write(PIXELS, photometric="rgb")
        tiff.write(PIXELS[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "frame.tif"), PIXELS)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_that_calls_its_three_channels_grey_is_read_in_color(tmp_path, planar):
    path = tmp_path / "frame.tif"
    values = PIXELS if planar == "contig" else PIXELS.transpose(2, 0, 1)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig=planar)
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(path)
    assert np.array_equal(read_image(path), PIXELS)
    assert image_size(path) == (20, 12)


def test_such_a_tiff_is_turned_upright(tmp_path):
    path = tmp_path / "frame.tif"
    options = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(path, PIXELS, extratags=[(274, "H", 1, 6, True)], **options)
    assert np.array_equal(read_image(path), np.rot90(PIXELS, -1))
    assert image_size(path) == (12, 20)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_is_read(tmp_path, compression):
    Image.fromarray(PIXELS).save(tmp_path / "frame.tif", compression=compression)
    assert np.array_equal(read_image(tmp_path / "frame.tif"), PIXELS)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_has_the_pixels_that_pillow_reads(tmp_path, mode, orientation):
    path = tmp_path / "frame.jpg"
    smooth = cv2.resize(PIXELS, (80, 48), interpolation=cv2.INTER_CUBIC)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(smooth).convert(mode).save(path, quality=90, exif=exif)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = read_image(path)
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert image_size(path) == pixels.shape[1::-1]


def test_jpeg_with_a_preview_behind_it_is_one_image(tmp_path):
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "frame.jpg", "MPO", save_all=True, append_images=[image.resize((8, 8))])
    assert read_image(tmp_path / "frame.jpg").shape == (12, 20, 3)


def test_portable_pixmaps_are_read_by_their_depth(tmp_path):
    assert cv2.imwrite(str(tmp_path / "deep.ppm"), PIXELS.astype(np.uint16) * 100)
    assert cv2.imwrite(str(tmp_path / "plain.ppm"), PIXELS[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "plain.ppm"), PIXELS)
    with pytest.raises(ImageFileError, match="has more than 8 bits"):
        read_image(tmp_path / "deep.ppm")


def test_formats_of_unknown_depth_are_refused(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "frame.tga")
    with pytest.raises(ImageFileError, match=r"is a TGA file, whose depth is not known; convert"):
        read_image(tmp_path / "frame.tga")


def test_reasons_are_told_apart_from_paths_and_remedies(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    reasons = {}
    for name in ("gone.jpg", "text.jpg", "."):
        with pytest.raises(ImageFileError) as caught:
            image_size(tmp_path / name)
        reasons[name] = caught.value.reason
        assert str(caught.value).startswith(f"{tmp_path / name}: {caught.value.reason}; ")
    assert reasons["gone.jpg"] == "no such file"
    assert reasons["text.jpg"].startswith("cannot be read as an image, it is of no known format")
    assert reasons["."] == "cannot be read (Is a directory)"


def test_an_error_survives_the_way_from_another_process(tmp_path):
    with pytest.raises(ImageFileError) as caught:
        read_image(tmp_path / "gone.jpg")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.reason) == (str(caught.value), "no such file")


def test_one_channel_may_be_deep_where_that_is_asked_for(tmp_path):
    png_of_16_bits(tmp_path / "grey.png", 1)
    png_of_16_bits(tmp_path / "color.png", 3)
    assert np.asarray(open_image(tmp_path / "grey.png", deep_grey=True)).max() > 255
    with pytest.raises(ImageFileError, match="has more than 8 bits"):
        open_image(tmp_path / "color.png", deep_grey=True)


def test_thumbnail_is_small_and_has_the_colors_of_the_image():
    pixels = np.full((30, 80, 3), (200, 40, 20), dtype=np.uint8)
    data = np.frombuffer(jpeg_thumbnail(pixels, max_width=40, quality=90), np.uint8)
    small = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert small.shape == (15, 40, 3)
    assert np.abs(small.astype(int) - (200, 40, 20)).max() <= 3
    data = np.frombuffer(jpeg_thumbnail(pixels, max_width=80, quality=90), np.uint8)
    assert cv2.imdecode(data, cv2.IMREAD_COLOR_RGB).shape == pixels.shape
