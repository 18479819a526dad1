"""Which files are images."""

import struct
import zlib

import pytest
from PIL import Image

from avalanche_peftcl.errors import DataError
from avalanche_peftcl.export.predict import find_images
from avalanche_peftcl.models.backbones.images import FORMATS, MAX_PIXELS, read_image

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 9 9
(ran) (w) file closefile
%%EOF
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_read(tmp_path, kind):
    file = tmp_path / "a.png"  # whatever the name says
    Image.new("RGB", (4, 3), (200, 100, 0)).save(file, format=kind)
    image = read_image(file)
    assert (image.mode, image.size) == ("RGB", (4, 3))


def test_every_ending_that_counts_as_an_image_has_its_format(tmp_path):
    from torchvision.datasets.folder import IMG_EXTENSIONS

    for ending in IMG_EXTENSIONS:
        Image.new("L", (4, 3)).save(tmp_path / f"a{ending}")
    assert [read_image(file).size for file in find_images([tmp_path])] == [(4, 3)] * 9


def test_postscript_named_png_starts_no_interpreter(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, which is a programming language."""
    from PIL import EpsImagePlugin

    def started(*args, **kwargs):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    file = tmp_path / "a.png"
    file.write_bytes(EPS)
    with Image.open(file) as image:  # Pillow alone takes it for an image
        assert image.format == "EPS"
    with pytest.raises(DataError) as caught:
        read_image(file)
    assert str(caught.value) == (
        f"{file} cannot be decoded as an image: it is none of JPEG, PNG, WEBP, BMP, TIFF, GIF, "
        "PPM; convert it or take it out"
    )


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "SGI"])
def test_other_formats_are_refused(tmp_path, kind):
    file = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(file, format=kind)
    with pytest.raises(DataError, match="it is none of JPEG, PNG"):
        read_image(file)


@pytest.mark.parametrize("side", [12_000, 50_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_of_many_pixels_is_refused_undecoded(tmp_path, side):
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    file = tmp_path / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"no data"))
    assert side**2 > MAX_PIXELS
    with pytest.raises(DataError) as caught:
        read_image(file)
    assert str(caught.value) == (
        f"{file} has more than 134,217,728 pixels; make it smaller or take it out"
    )
