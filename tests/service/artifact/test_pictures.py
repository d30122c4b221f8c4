"""artifact/pictures.py: one decoded picture for everybody, as torchvision makes it; no body harms the decoder."""

import io
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foldserve.service.artifact.pictures import MOST_PIXELS, PictureInput, decode, decode_all, pixels
from foldserve.service.errors import BadPicture

RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 256, (30, 47, 3), dtype=np.uint8)


def png(array: np.ndarray, **how: Any) -> bytes:
    return saved(Image.fromarray(array), "PNG", **how)


def saved(picture: Image.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def test_picture_without_a_size_comes_as_it_is_in_either_layout():
    hwc = decode(png(PHOTO), PictureInput("x"))
    assert (hwc.dtype, hwc.flags.c_contiguous) == (np.uint8, True)
    assert np.array_equal(hwc, PHOTO)
    assert hwc.tobytes() == PHOTO.tobytes()  # what Pillow gives, byte for byte
    chw = decode(png(PHOTO), PictureInput("x", layout="CHW"))
    assert chw.flags.c_contiguous
    assert np.array_equal(chw, PHOTO.transpose(2, 0, 1))


@pytest.mark.parametrize("shape", [(30, 47), (47, 30), (40, 40), (31, 100), (300, 33)])
@pytest.mark.parametrize(("resize_to", "size"), [(32, 28), (28, 28), (None, 28)])
def test_crop_is_torchvisions_resize_and_centre_crop(shape, resize_to, size):
    """torchvision 0.20, transforms/functional.py: _compute_resized_output_size and center_crop, on Pillow pictures."""
    picture = Image.fromarray(RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8))
    to = resize_to or size
    width, height = picture.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = to, int(to * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    top, left = round((new[1] - size) / 2.0), round((new[0] - size) / 2.0)
    expected = picture.resize(new, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    image = PictureInput("x", size=(size, size), resize_to=resize_to)
    assert np.array_equal(pixels(saved(picture, "PNG"), image), np.asarray(expected))


@pytest.mark.parametrize("shape", [(30, 47), (47, 30), (5, 90), (90, 5), (20, 20), (7, 13)])
@pytest.mark.parametrize("size", [(20, 20), (12, 31), (31, 12)])
@pytest.mark.parametrize("resize", ["crop", "stretch", "pad"])
def test_every_shape_becomes_the_size_that_is_declared(shape, size, resize):
    grey = np.full((*shape, 3), 200, np.uint8)
    array = pixels(png(grey), PictureInput("x", size=size, resize=resize, fill=9))
    assert array.shape == (*size, 3)
    if resize == "pad":
        # As much of the picture as its shape allows, to a pixel, in the middle of the fill.
        scale = min(size[0] / shape[0], size[1] / shape[1])
        inside = (array == 200).all(axis=2)
        for axis in (0, 1):
            count = int(inside.any(axis=1 - axis).sum())
            assert abs(count - max(1, shape[axis] * scale)) <= 1
            first = int(np.argmax(inside.any(axis=1 - axis)))
            assert abs(first - (size[axis] - count) / 2) <= 1
        assert (array[~inside] == 9).all()
    else:
        assert (array == 200).all()


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_interpolation_is_pillows_of_that_name(interpolation):
    image = PictureInput("x", size=(11, 13), resize="stretch", interpolation=interpolation)
    expected = Image.fromarray(PHOTO).resize((13, 11), Image.Resampling[interpolation.upper()])
    assert np.array_equal(pixels(png(PHOTO), image), np.asarray(expected))


def test_every_mode_of_a_png_and_a_jpeg_becomes_rgb_or_grey():
    rgb = Image.fromarray(PHOTO)
    flat = np.full((4, 5), 77, np.uint8)
    for picture in (
        rgb,
        rgb.convert("RGBA"),
        rgb.quantize(64),
        rgb.convert("1"),
        rgb.convert("L"),
        rgb.convert("LA"),
    ):
        assert decode(saved(picture, "PNG"), PictureInput("x")).shape == (30, 47, 3)
        assert decode(saved(picture, "PNG"), PictureInput("x", colour="grey")).shape == (30, 47, 1)
    assert decode(saved(rgb.convert("CMYK"), "JPEG"), PictureInput("x")).shape == (30, 47, 3)
    assert (decode(png(flat), PictureInput("x")) == 77).all()
    luma = decode(png(PHOTO), PictureInput("x", colour="grey", layout="CHW"))
    assert luma.shape == (1, 30, 47)
    assert np.abs(luma[0] - PHOTO @ np.array([0.299, 0.587, 0.114])).max() <= 1  # ITU-R 601-2, rounded


def test_sixteen_bits_become_eight_and_are_not_clipped():
    deep = (np.arange(20, dtype=np.uint16) * 3000).reshape(4, 5)
    array = decode(png(deep), PictureInput("x"))
    assert np.array_equal(array[:, :, 0], (deep >> 8).astype(np.uint8))
    assert np.array_equal(array[:, :, 0], array[:, :, 2])


def test_picture_of_a_phone_is_turned_as_its_exif_data_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    body = saved(Image.fromarray(PHOTO), "PNG", exif=exif)
    assert np.array_equal(decode(body, PictureInput("x")), np.rot90(PHOTO, -1))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is empty"),
        (b"hello", "the body is not a JPEG or PNG picture"),
        (saved(Image.fromarray(PHOTO), "GIF"), "the body is not a JPEG or PNG picture"),
        (saved(Image.fromarray(PHOTO), "TIFF"), "the body is not a JPEG or PNG picture"),
        (saved(Image.fromarray(PHOTO), "JPEG")[:400], "cannot be decoded"),
        (png(PHOTO)[:600], "cannot be decoded"),
    ],
)
def test_body_that_is_no_whole_picture_is_refused(body, says):
    with pytest.raises(BadPicture, match=says):
        decode(body, PictureInput("x", size=(8, 8)))


def claiming(width: int, height: int) -> bytes:
    """A PNG whose head claims that size, and that has hardly any data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return len(content).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [7_072, 9_500, 13_000, 20_000, 60_000])
def test_small_file_that_claims_a_huge_picture_is_refused_before_memory_is_taken(side):
    assert side * side > MOST_PIXELS
    with pytest.raises(BadPicture, match="at most 50,000,000"):
        decode(claiming(side, side), PictureInput("x", size=(8, 8)))


def test_thin_picture_that_would_grow_huge_is_refused():
    line = np.zeros((1, 60_000, 3), np.uint8)
    with pytest.raises(BadPicture, match="at most 50,000,000"):
        decode(png(line), PictureInput("x", size=(224, 224)))
    assert decode(png(line), PictureInput("x", size=(224, 224), resize="stretch")).shape == (224, 224, 3)


def test_small_file_with_scans_without_end_is_refused_before_it_is_decoded():
    whole = saved(Image.new("RGB", (1000, 1000)), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    assert decode(whole[:-2] + last * 500 + whole[-2:], PictureInput("x", size=(8, 8))).shape == (8, 8, 3)
    with pytest.raises(
        BadPicture, match=r"1000 x 1000 pixels in 2\d{3} scans, which take too long to decode"
    ):
        decode(whole[:-2] + last * 2000 + whole[-2:], PictureInput("x", size=(8, 8)))


def parts_without_end() -> Iterator[tuple[str, bytes]]:
    """Files that are right but for millions of empty parts, by the kind of these."""
    whole, jpeg = png(PHOTO), saved(Image.fromarray(PHOTO), "JPEG")
    for kind in (b"abcd", b"tEXt", b"IDAT"):
        part = bytes(4) + kind + zlib.crc32(kind).to_bytes(4, "big")
        yield "PNG", whole[:33] + part * 300_000 + whole[33:]
    for part in (b"\xff\xfe\0\2", b"\xff\xe1\0\2", b"\xff", b"\xff\xd0"):
        yield "JPEG", jpeg[:2] + part * 300_000 + jpeg[2:]


@pytest.mark.parametrize(("kind", "body"), [*parts_without_end()])
def test_file_of_parts_without_end_is_refused_in_bounded_time(kind, body):
    began_s = time.thread_time()
    with pytest.raises(BadPicture, match="too many parts"):
        decode(body, PictureInput("x", size=(8, 8)), (kind,))
    assert time.thread_time() - began_s < 3  # it would be 60 for the largest body


def test_animated_png_is_refused_and_the_second_picture_of_a_camera_is_passed_over():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    with pytest.raises(BadPicture, match="the PNG is animated; expected one picture"):
        decode(saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), PictureInput("x"))
    camera = decode(saved(frames[0], "MPO", save_all=True, append_images=frames[1:]), PictureInput("x"))
    assert camera[0, 0].tolist() == decode(saved(frames[0], "JPEG"), PictureInput("x"))[0, 0].tolist()


@pytest.mark.parametrize(("width", "height"), [(0, 8), (8, 0), (0, 0)])
def test_picture_without_pixels_is_refused(width, height):
    with pytest.raises(BadPicture, match=r"may be damaged|is not a JPEG or PNG"):
        decode(claiming(width, height), PictureInput("x", size=(8, 8)))


def test_what_stands_around_a_picture_does_not_change_it():
    """An EXIF block as long as there can be, and another file behind the last byte, as in a polyglot."""
    plain = saved(Image.fromarray(PHOTO), "JPEG")
    long = saved(Image.fromarray(PHOTO), "JPEG", exif=b"Exif\0\0" + bytes(65_000))
    expected = decode(plain, PictureInput("x"))
    for body in (long, plain + b"PK\x03\x04" + plain, png(expected) + b"<script>"):
        assert np.array_equal(decode(body, PictureInput("x")), expected)


def test_format_that_is_not_expected_is_told_for_what_it_is():
    with pytest.raises(BadPicture, match="is a PNG picture, and the request says JPEG"):
        decode(png(PHOTO), PictureInput("x"), ("JPEG",))


def test_pictures_that_come_together_are_bounded_together():
    image = PictureInput("x", size=(4_500, 4_500), resize="stretch", interpolation="nearest")
    with pytest.raises(
        BadPicture, match="picture 2: the pictures before it and it have more than 50,000,000"
    ):
        decode_all([png(PHOTO)] * 3, image)
    with pytest.raises(BadPicture, match="picture 1: the body is not a JPEG or PNG"):
        decode_all([png(PHOTO), b"x"], PictureInput("x"))
    rows = decode_all([png(PHOTO), saved(Image.fromarray(PHOTO), "JPEG")], PictureInput("x"))
    assert np.array_equal(rows[0], PHOTO)


def test_what_pillow_warns_of_is_not_printed(recwarn):
    """It quotes the file, which is a stranger's."""
    picture = Image.fromarray(PHOTO).convert("P")
    picture.info["transparency"] = bytes(256)
    decode(saved(picture, "PNG", transparency=bytes(256)), PictureInput("x", colour="grey"))
    with pytest.raises(BadPicture):
        decode(claiming(9_500, 9_500), PictureInput("x"))  # Pillow warns of it before it refuses more
    assert not recwarn.list


def test_damaged_pictures_end_in_an_error_of_ours_or_in_a_picture():
    random = np.random.default_rng(1)
    refused = 0
    for whole in (saved(Image.fromarray(PHOTO), "JPEG"), png(PHOTO)):
        for _ in range(150):
            damaged = np.frombuffer(whole, np.uint8).copy()
            damaged[random.integers(0, min(len(damaged), 700), 4)] = random.integers(0, 256, 4)
            try:
                assert decode(damaged.tobytes(), PictureInput("x", size=(8, 8))).shape == (8, 8, 3)
            except BadPicture:
                refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": 224}, "size 224; expected height and width"),
        ({"size": (0, 4)}, r"size \(0, 4\)"),
        ({"resize": "squash"}, "resize 'squash'; expected one of crop, stretch, pad"),
        ({"interpolation": "cubic"}, "interpolation 'cubic'; expected one of nearest, "),
        ({"colour": "BGR"}, "colour 'BGR'; expected one of RGB, grey"),
        ({"layout": "NHWC"}, "layout 'NHWC'; expected one of HWC, CHW"),
        ({"fill": 256}, "fill 256; expected a byte"),
        ({"resize_to": 100}, "resize_to 100; expected pixels of the shorter side, 224 or more"),
        (
            {"resize_to": 256, "resize": "pad"},
            "resize_to 256; expected it only with a size and resize 'crop'",
        ),
        ({"resize_to": 256, "size": None}, "resize_to 256; expected it only with a size"),
    ],
)
def test_declaration_that_cannot_be_is_refused(wrong, says):
    good = PictureInput("x", size=(224, 200))
    with pytest.raises(ValueError, match=says):
        replace(good, **wrong)


def test_declaration_comes_back_from_the_manifest():
    image = PictureInput("pictures", (224, 200), "crop", 256, "bicubic", 7, "grey", "CHW")
    written = json.loads(json.dumps({**image.to_manifest(), "inside": {"mean": 1.0}}))
    assert PictureInput.from_manifest(written) == image
    with pytest.raises(ValueError, match=r"image lacks a key: .*'input'"):
        PictureInput.from_manifest({"size": None})


def test_pictures_are_decoded_without_torch_and_pillow_is_not_imported_before():
    code = (
        "import sys\nfrom foldserve.service.artifact.pictures import PictureInput, decode\n"
        "print([n for n in ('PIL', 'torch', 'foldserve.models') if n in sys.modules])\n"
        f"decode({png(PHOTO)!r}, PictureInput('x'))\n"
        "print([n for n in ('torch', 'foldserve.models') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n[]\n"
