"""Pictures in every form that a program has them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foldserve.service.artifact.pictures import PictureInput, decode
from foldserve.service.client.errors import BadInput
from foldserve.service.client.pictures import is_picture, picture
from foldserve.service.client.requests import several


def photo(kind="JPEG", mode="RGB", **how):
    file = io.BytesIO()
    random = np.random.default_rng(1)
    Image.fromarray(random.integers(0, 256, (6, 9, 3), np.uint8)).convert(mode).save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "media_type"), [("JPEG", "image/jpeg"), ("PNG", "image/png")])
def test_file_is_sent_as_it_is_however_it_is_given(tmp_path, kind, media_type):
    body = photo(kind)
    path = tmp_path / "photo"
    path.write_bytes(body)
    with path.open("rb") as file:
        for given in (path, str(path), body, bytearray(body), file, io.BytesIO(body)):
            assert is_picture(given)
            assert picture(given) == (body, media_type)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_picture_of_pillow_is_the_same_to_the_server_as_its_file(mode):
    given = Image.open(io.BytesIO(photo("PNG"))).convert(mode if mode not in ("I;16", "F") else "L")
    given = given.convert(mode) if mode in ("I;16", "F") else given
    assert is_picture(given)
    body, media_type = picture(given)
    assert media_type == "image/png"
    made = decode(body, PictureInput("x", size=(6, 9)))
    expected = np.asarray(given.convert("RGB"))
    if mode not in ("LA", "RGBA", "I;16"):  # alpha and 16 bits are the server's to settle
        np.testing.assert_array_equal(made, expected)


def test_picture_of_pillow_is_turned_as_its_file_is():
    turned = Image.Exif()
    turned[0x0112] = 6
    body = photo("JPEG", exif=turned, quality=95)
    image = PictureInput("x", size=(9, 6))
    sent = picture(Image.open(io.BytesIO(body))).body
    np.testing.assert_array_equal(decode(sent, image), decode(body, image))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GIF89a", "is a GIF picture; expected a JPEG or PNG"),
        (b"RIFF....WEBP", "is a WebP picture"),
        (b"\x93NUMPY", "begins with b'\\x93NUMPY'; expected a JPEG or PNG: convert it, or give an array"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_picture_is_refused_for_what_it_is(tmp_path, content, says):
    (tmp_path / "x").write_bytes(content)
    for given in (content, tmp_path / "x"):
        with pytest.raises(BadInput) as caught:
            picture(given)
        assert says in str(caught.value)
    with pytest.raises(BadInput, match=r"file '.*nobody' cannot be read: No such file"):
        picture(str(tmp_path / "nobody"))
    with pytest.raises(BadInput, match="cannot be read: Is a directory"):
        picture(tmp_path)
    with pytest.raises(BadInput, match=r'open it with open\(path, "rb"\)'):
        picture(io.StringIO("x"))


def test_several_pictures_are_a_list_or_a_tuple_of_them():
    assert several(["a.jpg", Path("b.png")])
    assert several((b"x",))
    assert several([1, 2]) is several([]) is several("a.jpg") is several(np.zeros(3)) is None
    assert not is_picture(np.zeros(3))
