import importlib.util
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from osler import data, formats, identity
from osler.case import Source
from osler.formats import video
from osler.image import Image, NoGeometry, evenly
from osler.problem import Problem
from osler.recipe import ImagePlan

av = pytest.importorskip("av", reason="PyAV is an optional extra")
RNG = np.random.default_rng(0)


def loop(frames=12, channels=1, height=48, width=64) -> np.ndarray:
    """Smooth frames that differ from each other, as a codec likes them."""
    y, x = np.mgrid[:height, :width]
    made = [
        [127 + 100 * np.sin(x / 9 + k / 3 + c) * np.cos(y / 11 - k / 5 + 2 * c) for c in range(channels)]
        for k in range(frames)
    ]
    return np.rint(made).astype(np.uint8)[:, :, None]


def read(path: Path, moments: int | None = None) -> Image:
    return formats.read(Source(path), moments)


def encode(path, frames, *, codec="libx264", pix_fmt="yuv420p", options=None, rate=25, **stream_kwargs):
    """With PyAV alone, as anybody would write one; frames ``(n, h, w)`` grey or ``(n, h, w, 3)``."""
    with av.open(str(path), "w", options=stream_kwargs.pop("container", {})) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.options = options or {}
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="gray" if pixels.ndim == 2 else "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_stored_without_loss_is_read_as_it_was(tmp_path, channels):
    array = loop(channels=channels)
    video.write(Image(array), tmp_path / "a.avi")
    image = read(tmp_path / "a.avi")
    assert image.array.dtype == np.uint8 and isinstance(image.geometry, NoGeometry) and not image.modality
    assert (image.array == array).all()
    assert image.times == pytest.approx([0.04 * k for k in range(12)])
    assert image.length == 12 and image.numbers == ()


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.m4v"])
def test_compressed_frames_are_near_to_what_was_stored(tmp_path, name):
    array = loop()
    video.write(Image(array, times=tuple(k / 30 for k in range(12))), tmp_path / name)
    image = read(tmp_path / name)
    assert image.array.shape == array.shape
    # The range of luma is brought back to 0 to 255: else values would be off by up to 16.
    assert np.abs(image.array.astype(int) - array).mean() < 1.5
    assert image.times == pytest.approx([k / 30 for k in range(12)], abs=0.001)


def test_uneven_times_are_kept(tmp_path):
    times = (0.0, 0.04, 0.2, 0.21, 1.5)
    video.write(Image(loop(5), times=times), tmp_path / "a.mp4")
    assert read(tmp_path / "a.mp4").times == pytest.approx(times, abs=0.001)
    with pytest.raises(Problem, match="even in time"):
        video.write(Image(loop(5), times=times), tmp_path / "a.avi")


def test_only_8_bit_flat_frames_are_written(tmp_path):
    with pytest.raises(Problem, match="8 bits"):
        video.write(Image(loop().astype(np.uint16)), tmp_path / "a.mp4")


def test_the_range_of_luma_is_that_of_the_standard(tmp_path):
    """BT.601: 16 is black, 235 white; in the full range 0 and 255 are."""
    levels = np.repeat(np.arange(0, 256, 16, dtype=np.uint8), 4)
    frames = np.broadcast_to(levels, (3, 64, 64))
    encode(tmp_path / "narrow.avi", frames, codec="ffv1", pix_fmt="yuv420p")
    assert np.abs(read(tmp_path / "narrow.avi").array[0, 0, 0, 0].astype(int) - levels).max() <= 1
    encode(tmp_path / "full.avi", frames, codec="ffv1", pix_fmt="gray")
    assert (read(tmp_path / "full.avi").array[0, 0, 0, 0] == levels).all()


def test_noise_of_a_codec_is_no_colour_and_a_mark_in_a_corner_is_none(tmp_path):
    grey = loop(6)[:, 0, 0]
    noisy = np.clip(np.repeat(grey[..., None], 3, -1) + RNG.integers(-6, 7, (6, 48, 64, 3)), 0, 255).astype(np.uint8)
    encode(tmp_path / "noisy.mp4", noisy, options={"crf": "35"})
    assert read(tmp_path / "noisy.mp4").channels == 1
    marked = np.repeat(grey[..., None], 3, -1)
    marked[:, :2, :4] = (255, 200, 0)
    encode(tmp_path / "marked.mp4", marked, options={"crf": "5"})
    assert read(tmp_path / "marked.mp4").channels == 1


def test_colour_that_comes_late_is_seen_whatever_moments_are_read(tmp_path):
    """As colour Doppler that is switched on: a patch of red and blue in the fourth frame of five."""
    frames = np.repeat(loop(5)[:, 0, 0, ..., None], 3, -1)
    frames[3, 10:30, 10:30], frames[3, 10:30, 30:50] = (220, 20, 20), (20, 20, 220)
    encode(tmp_path / "a.mp4", frames, options={"crf": "5"})
    image, two = read(tmp_path / "a.mp4"), read(tmp_path / "a.mp4", 2)
    assert image.channels == two.channels == 3
    assert np.abs(image.array[3, :, 0, 20, 20].astype(int) - (220, 20, 20)).max() < 25
    assert (two.array == image.array[[0, 4]]).all()


@pytest.mark.parametrize("target", ["other.mp4", "list.mp4"])
def test_what_holds_a_list_of_other_files_opens_none_of_them(tmp_path, target):
    """FFmpeg knows files by their first bytes: one of these names its neighbour, the other itself."""
    video.write(Image(loop()), tmp_path / "other.mp4")
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {target}\n")
    with pytest.raises(Problem, match="no MP4, MOV or AVI"):
        read(tmp_path / "list.mp4")


@pytest.mark.parametrize("moments", [1, 2, 5, 12, 40])
@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_some_moments_are_those_of_all(tmp_path, name, moments):
    video.write(Image(loop()), tmp_path / name)
    whole, some = read(tmp_path / name), read(tmp_path / name, moments)
    chosen = evenly(12, moments) if moments < 12 else np.arange(12)
    assert (some.array == whole.array[chosen]).all() and some.times == tuple(whole.times[k] for k in chosen)
    assert some.length == 12 and some.numbers == (tuple(chosen) if moments < 12 else ())
    plan = ImagePlan(size=(1, 32, 32), frames=moments)
    assert (data.prepare(some, plan) == data.prepare(whole, plan)).all()
    assert identity.pixels(some, moments) == identity.pixels(whole, moments)
    assert np.array_equal(data.times_of(some, plan), data.times_of(whole, plan))


def test_one_frame_can_be_chosen(tmp_path):
    video.write(Image(loop()), tmp_path / "a.avi")
    one = formats.read(Source(tmp_path / "a.avi", frame=7), moments=3)
    assert (one.array == loop()[7:8]).all()
    with pytest.raises(Problem, match="no frame 12"):
        formats.read(Source(tmp_path / "a.avi", frame=12))


def test_a_video_on_its_side_is_turned(tmp_path):
    """The matrix of the track header (ISO/IEC 14496-12 8.3.2) says how it is shown: here 90 degrees clockwise."""
    path = encode(tmp_path / "a.mp4", loop(4)[:, 0, 0])
    content = bytearray(path.read_bytes())
    # After version, flags, times and layer; in version 0 the matrix begins 40 bytes into the box's content.
    at = content.index(b"tkhd") + 4 + 40
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30], ">i4")
    upright = read(path).array
    content[at : at + 36] = matrix.tobytes()
    path.write_bytes(content)
    image = read(path)
    assert image.size == (1, 64, 48) and "turned" in image.notes[0]
    assert (image.array == np.rot90(upright, -1, (3, 4))).all()


# --- what cannot be read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, {"movflags": "faststart"}], ids=["index last", "index first"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_truncated_mp4_is_refused(tmp_path, flags, share):
    frames = RNG.integers(0, 256, (40, 48, 64), dtype=np.uint8)
    path = encode(tmp_path / "a.mp4", frames, container=flags)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for moments in (None, 3):
        with pytest.raises(Problem, match="cut short"):
            read(path, moments)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_avi_is_refused(tmp_path, share):
    video.write(Image(RNG.integers(0, 256, (40, 1, 1, 48, 64), dtype=np.uint8)), tmp_path / "a.avi")
    path = tmp_path / "a.avi"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(Problem, match="cut short"):
        read(path)


def test_bytes_that_are_damaged_inside_are_refused(tmp_path):
    path = encode(tmp_path / "a.mp4", RNG.integers(0, 256, (20, 48, 64), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 4
    middle = at + (content.index(b"moov") - at) // 2
    content[middle : middle + 4000] = RNG.integers(0, 256, 4000, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    with pytest.raises(Problem, match="broken"):
        read(path)


def test_an_empty_video_is_refused(tmp_path):
    (tmp_path / "zero.mp4").touch()
    with pytest.raises(Problem, match="0 bytes"):
        read(tmp_path / "zero.mp4")
    with av.open(str(tmp_path / "none.avi"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "gray"
        container.start_encoding()
    with pytest.raises(Problem, match="holds no frame"):
        read(tmp_path / "none.avi")


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 8000, Fraction(1, 8000), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(Problem, match="no video"):
        read(tmp_path / "a.mp4")


def test_anything_else_under_the_name_of_a_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(RNG.integers(0, 256, 5000, dtype=np.uint8).tobytes())
    with pytest.raises(Problem, match=r"broken.*a\.mp4|a\.mp4.*broken"):
        read(tmp_path / "a.mp4")


def test_frames_that_are_too_many_are_refused_unless_some_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_MOST_PIXELS", 6 * 48 * 64)
    video.write(Image(loop()), tmp_path / "a.avi")
    with pytest.raises(Problem, match="too many"):
        read(tmp_path / "a.avi")
    assert read(tmp_path / "a.avi", 6).frames == 6


def test_without_the_extra_it_is_said_what_to_install(tmp_path, monkeypatch):
    video.write(Image(loop(2)), tmp_path / "a.avi")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(Problem, match=r"osler\[video\]"):
        read(tmp_path / "a.avi")


def test_a_video_is_known_by_its_bytes_and_a_picture_in_its_container_is_none(tmp_path):
    video.write(Image(loop(3)), tmp_path / "a.avi")
    (tmp_path / "a.avi").rename(tmp_path / "loop")
    assert read(tmp_path / "loop").frames == 3
    (tmp_path / "photo").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    assert formats.find(tmp_path / "photo") is None
    assert importlib.util.find_spec("av")


@pytest.mark.real_data
def test_ultrasound_loops_are_grey_and_have_their_times(real_data):
    image = read(real_data / "covid_blues" / "lus_videos" / "patient_11_L1.mp4")
    assert image.array.shape == (61, 1, 1, 350, 350)
    assert image.times == pytest.approx([k / 25 for k in range(61)])
