import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from osler import formats
from osler.case import Source
from osler.image import NoGeometry
from osler.problem import Problem

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def read(path: Path):
    return formats.read(Source(path))


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("a.png", GREY8),
        ("a.png", GREY16),
        ("a.png", RGB),
        ("a.tif", GREY8),
        ("a.tif", GREY16),
        ("a.tif", RGB),
        ("a.tif", RNG.normal(size=(5, 7)).astype(np.float32)),
        ("a.bmp", GREY8),
        ("a.bmp", RGB),
    ],
)
def test_all_bits_are_kept(tmp_path, name, pixels):
    Pillow.fromarray(pixels).save(tmp_path / name, dpi=(300, 300))
    image = read(tmp_path / name)
    back = image.array[0, :, 0]
    assert image.array.dtype == pixels.dtype and image.notes == ()
    assert (back[0] == pixels).all() if pixels.ndim == 2 else (np.moveaxis(back, 0, -1) == pixels).all()
    assert image.geometry == NoGeometry()


def png16(pixels: np.ndarray) -> bytes:
    """A PNG of 16-bit colour, written by hand (ISO/IEC 15948)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff16(pixels: np.ndarray, order: str) -> bytes:
    """A TIFF 6.0 of 16-bit colour, written by hand."""
    end, (height, width, _) = {"II": "<", "MM": ">"}[order], pixels.shape
    data = pixels.astype(end + "u2").tobytes()
    bits = 8 + len(data)
    long, short = 4, 3
    tags = [(256, long, width), (257, long, height), (258, short, bits), (259, short, 1), (262, short, 2)]
    tags += [(273, long, 8), (277, short, 3), (278, long, height), (279, long, len(data))]
    made = order.encode() + struct.pack(end + "HI", 42, bits + 6) + data + struct.pack(end + "HHH", 16, 16, 16)
    made += struct.pack(end + "H", len(tags))
    for tag, kind, value in tags:
        packed = struct.pack(end + "HH", value, 0) if kind == short and tag != 258 else struct.pack(end + "I", value)
        made += struct.pack(end + "HHI", tag, kind, 3 if tag == 258 else 1) + packed
    return made + struct.pack(end + "I", 0)


def test_16_bit_colour_keeps_its_low_byte(tmp_path):
    pixels = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    opaque = np.concatenate([pixels, np.full((5, 7, 1), 65535, np.uint16)], -1)
    for made in (png16(pixels), png16(opaque), tiff16(pixels, "II"), tiff16(pixels, "MM")):
        path = tmp_path / "a.img"
        path.write_bytes(made)
        image = read_raster(path)
        assert image.array.dtype == np.uint16 and (np.moveaxis(image.array[0, :, 0], 0, -1) == pixels).all()


def read_raster(path: Path):
    from osler.formats import raster

    assert raster.matches(path)
    return raster.read(Source(path))


def test_jpeg_grey_and_colour(tmp_path):
    for pixels, channels in [(GREY8, 1), (RGB, 3)]:
        Pillow.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
        assert read(tmp_path / "a.jpg").array.shape == (1, channels, 1, 5, 7)


def test_a_palette_becomes_the_colours_it_stands_for(tmp_path):
    palette = Pillow.fromarray((RGB // 128) * 255).quantize(8)
    palette.save(tmp_path / "a.png")
    assert (np.moveaxis(read(tmp_path / "a.png").array[0, :, 0], 0, -1) == np.asarray(palette.convert("RGB"))).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_dropped_where_opaque_and_refused_elsewhere(tmp_path, mode):
    picture = Pillow.fromarray(RGB).convert(mode)
    picture.save(tmp_path / "a.png")
    image = read(tmp_path / "a.png")
    assert image.channels == len(mode) - 1 and any("alpha" in note for note in image.notes)
    picture.putalpha(Pillow.fromarray(GREY8))
    picture.save(tmp_path / "b.png")
    with pytest.raises(Problem, match=r"b\.png: the picture is partly transparent"):
        read(tmp_path / "b.png")


def test_cmyk_is_refused(tmp_path):
    Pillow.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(Problem, match="CMYK"):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize("code", range(1, 9))
def test_exif_orientation_is_applied_as_pillow_does(tmp_path, code):
    from PIL import ImageOps

    exif = Pillow.Exif()
    exif[274] = code
    Pillow.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    with Pillow.open(tmp_path / "a.png") as picture:
        wanted = np.asarray(ImageOps.exif_transpose(picture))
    image = read(tmp_path / "a.png")
    assert (np.moveaxis(image.array[0, :, 0], 0, -1) == wanted).all()
    assert bool(image.notes) == (code != 1)


def test_pages_of_a_tiff_are_slices(tmp_path):
    pages = [Pillow.fromarray(GREY16 // (1 + page)) for page in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    image = read(tmp_path / "a.tif")
    assert image.array.shape == (1, 1, 3, 5, 7) and any("3 pages" in note for note in image.notes)
    assert (image.array[0, 0, 2] == GREY16 // 3).all()
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[Pillow.fromarray(GREY16[:3])])
    with pytest.raises(Problem, match="pages differ"):
        read(tmp_path / "b.tif")


def test_white_is_zero_is_inverted(tmp_path):
    Pillow.fromarray(GREY16).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Pillow.open(tmp_path / "a.tif") as picture:
        assert picture.tag_v2[262] == 0
        stored = np.asarray(picture)
    assert (read(tmp_path / "a.tif").array[0, 0, 0] == 65535 - stored).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_broken_and_empty_pictures_are_named(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Pillow.fromarray(RNG.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(Problem, match="broken or cut short"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(Problem, match="empty"):
        read(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Pillow.fromarray(GREY8).save(tmp_path / "a.png")
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(Problem, match="bomb"):
        read(tmp_path / "a.png")


def test_unknown_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(Problem, match="unknown format"):
        read(tmp_path / "a.txt")
    with pytest.raises(Problem, match="no such file"):
        read(tmp_path / "b.png")
    with pytest.raises(Problem, match="folder without DICOM"):
        read(tmp_path)


# --- folders of frames --------------------------------------------------------------------------------------


def frames(folder, count=12, name="frame{}.png"):
    folder.mkdir()
    for k in range(count):
        Pillow.fromarray(np.full((5, 7), 10 * k, np.uint8)).save(folder / name.format(k))
    return folder


def test_a_folder_of_pictures_is_a_loop_in_natural_order(tmp_path):
    """By text, frame10 would come before frame2."""
    image = read(frames(tmp_path / "loop"))
    assert image.array.shape == (12, 1, 1, 5, 7) and image.times == () and image.notes == ()
    assert image.array[:, 0, 0, 0, 0].tolist() == [10 * k for k in range(12)]
    some = formats.read(Source(tmp_path / "loop"), 3)
    assert some.array[:, 0, 0, 0, 0].tolist() == [0, 60, 110] and some.numbers == (0, 6, 11) and some.length == 12


def test_files_that_are_not_asked_for_are_not_opened(tmp_path):
    folder = frames(tmp_path / "loop")
    (folder / "frame5.png").write_bytes(b"broken")
    assert formats.read(Source(folder), 2).frames == 2
    with pytest.raises(Problem, match=r"frame5\.png"):
        read(folder)


def test_what_lies_beside_the_frames_is_said(tmp_path):
    folder = frames(tmp_path / "loop", 3)
    (folder / "notes.txt").write_text("x")
    (folder / ".DS_Store").write_text("x")
    assert read(folder).notes == ("1 files beside the pictures of the loop were left out.",)


def test_frames_that_differ_are_refused(tmp_path):
    folder = frames(tmp_path / "loop", 3)
    Pillow.fromarray(np.zeros((6, 7), np.uint8)).save(folder / "frame1.png")
    with pytest.raises(Problem, match=r"frame1\.png.*differs from the first"):
        read(folder)


def test_a_folder_without_pictures_is_no_loop(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Problem, match="without DICOM files or pictures"):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_text("no picture")
    with pytest.raises(Problem, match="without DICOM files or pictures"):
        read(tmp_path / "empty")
