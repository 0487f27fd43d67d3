"""Many cases: pixels in a file are the pixels in memory, rows share their columns, and memory stays small."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from osler import cohort, data, model, store, training
from osler.case import Cells, Entry, Finding, Question, Source
from osler.cohort import Cohort, Training
from osler.formats import medmnist
from osler.problem import Problem
from osler.recipe import ImagePlan

PLAN = ImagePlan(size=(1, 16, 16))
SMALL = {
    "image": {"size": [1, 16, 16]},
    "network": {"options": {"depth": 18, "width": 4}},
    "training": {
        "epochs": 2, "batch": 16, "folds": 0, "members": 1,
        "precision": "float32", "channels_last": False, "threads": 1,
    },
    "inference": {"views": 1},
}  # fmt: skip


def quiet(line: str) -> None:
    """Nothing is printed."""


def pieces(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array), size):
        yield array[start : start + size].astype(np.float32)


def numbers(path: Path, count: int, dtype: type, size: int = 16) -> Path:
    """A folder with a table over ``.npy`` files."""
    random = np.random.default_rng(1)
    path.mkdir()
    rows = ["case,patient,image,label"]
    for i in range(count):
        image = random.integers(0, 255, (size, size)) if dtype is np.uint8 else random.normal(100, 40, (size, size))
        np.save(path / f"{i}.npy", image.astype(dtype))
        rows.append(f"c{i},p{i},{i}.npy,{'no' if i % 2 else 'yes'}")
    (path / "manifest.csv").write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every store is too large for the memory."""
    monkeypatch.setattr(store, "MOST_IN_MEMORY", 0)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("step", [1, 7, 100])
def test_a_file_gives_what_memory_gives(tmp_path, monkeypatch, kind, step):
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (50, 1, 1, 1, 4, 5)).astype(np.float32)
    if kind is np.float32:
        array[30:] += random.normal(size=array[30:].shape).astype(np.float32)  # whole numbers first, then not
    inside = store.gather(pieces(array, step), array.shape[1:], 50, tmp_path / "pixels")
    assert not list(tmp_path.iterdir()) and store.in_memory(inside)
    monkeypatch.setattr(store, "MOST_IN_MEMORY", 0)
    outside = store.gather(pieces(array, step), array.shape[1:], 60, tmp_path / "pixels")
    assert [path.name for path in tmp_path.iterdir()] == [f"pixels.{np.dtype(kind).name}"]
    assert not store.in_memory(outside) and inside.dtype == outside.dtype == kind
    assert np.array_equal(inside, array) and np.array_equal(outside, array)
    assert next(tmp_path.iterdir()).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("value", [-1.0, 256.0, 0.5, 1e30])
def test_no_value_is_bent_to_fit(value):
    array = np.full((3, 1, 1, 1, 2, 2), 7, np.float32)
    array[2, 0, 0, 0, 1, 1] = value
    kept = store.gather(pieces(array, 2), (1, 1, 1, 2, 2), 3, None)
    assert kept.dtype == np.float32 and np.array_equal(kept, array)


def test_parts_are_rows_of_one_array():
    array = np.arange(40, dtype=np.uint8).reshape(10, 1, 1, 1, 2, 2)
    part = store.all_of(array).take([7, 2, 5])
    assert part.array is array and len(part) == 3 and part.shape == (3, 1, 1, 1, 2, 2)
    assert part[0:2].dtype == np.float32 and np.array_equal(part[0:2], array[[7, 2]])
    assert np.array_equal(part[np.array([2, 2, 0])], array[[5, 5, 7]])
    assert np.array_equal(part.take([1])[:], array[[2]])
    part[0:1][:] = 99
    assert array.max() == 39


def test_normalisation_is_the_same_from_a_store():
    array = np.random.default_rng(0).integers(0, 256, (1200, 1, 3, 1, 4, 4)).astype(np.uint8)
    rows = np.random.default_rng(1).permutation(1200)[:1100]
    for kind in ("cohort", "window"):
        one, two = model.Normalise(kind, 3), model.Normalise(kind, 3)
        one.fit(array[rows].astype(np.float32))
        two.fit(store.all_of(array).take(rows.tolist()))
        assert all(a.equal(b) for a, b in zip(one.buffers(), two.buffers(), strict=True))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_model_is_the_same_from_a_file(tmp_path, monkeypatch, kind):
    folder = numbers(tmp_path / "c", 90, kind)
    inside = training.train(folder, tmp_path / "inside", SMALL, say=quiet)
    monkeypatch.setattr(store, "MOST_IN_MEMORY", 0)
    outside = training.train(folder, tmp_path / "outside", SMALL, say=quiet)
    assert inside.sha256 == outside.sha256
    left = [path.name for path in (tmp_path / "outside").iterdir() if path.name.startswith("pixels")]
    assert not left, "pixels of patients stay in the run folder"


RUN = """
import sys
from pathlib import Path
from osler import data, fitting, store, training
import json
store.MOST_IN_MEMORY = 0
fitting.SAVE_SECONDS = 0.0
settings = json.loads(sys.argv[3])
training.train(Path(sys.argv[1]), Path(sys.argv[2]), settings, say=lambda line: print(line, flush=True))
"""


def test_a_killed_run_takes_its_pixels_from_the_file(tmp_path, monkeypatch, on_disk):
    folder, out = numbers(tmp_path / "c", 90, np.uint8), tmp_path / "run"
    whole = training.train(folder, tmp_path / "whole", SMALL, say=quiet)
    command = [sys.executable, "-c", RUN, str(folder), str(out), json.dumps(SMALL)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch 1/2" in line:
                process.send_signal(signal.SIGKILL)
    assert (out / "pixels.uint8").exists() and not (out / "model.safetensors").exists()
    monkeypatch.setattr(data, "_in_turn", None)  # nothing is read again
    assert training.train(folder, out, SMALL, say=quiet).sha256 == whole.sha256
    assert not (out / "pixels.uint8").exists()


def test_changed_files_and_damaged_stores_are_read_again(tmp_path, on_disk, monkeypatch):
    folder, file = numbers(tmp_path / "c", 12, np.uint8), tmp_path / "pixels"
    entries = cohort.read(folder).entries
    first = data.load(entries, PLAN, file=file)
    assert np.array_equal(data.load(entries, PLAN, file=file).pixels[:], first.pixels[:])

    changed = np.zeros((16, 16), np.uint8)
    np.save(folder / "3.npy", changed)
    os.utime(folder / "3.npy", ns=(1, 1))
    row = [entry.id for entry in entries].index("c3")
    again = data.load(entries, PLAN, file=file)
    pixels = again.pixels[:]
    assert (pixels[row] == 0).all() and again.digests[row] != first.digests[row]

    (tmp_path / "pixels.uint8").write_bytes((tmp_path / "pixels.uint8").read_bytes()[:-1])
    assert np.array_equal(data.load(entries, PLAN, file=file).pixels[:], pixels)
    (tmp_path / "pixels.csv").write_text("{nonsense")
    assert np.array_equal(data.load(entries, PLAN, file=file).pixels[:], pixels)
    other = data.load(entries, ImagePlan(size=(1, 8, 8)), file=file)
    assert other.pixels.shape[-2:] == (8, 8)
    store.remove(file)
    assert not list(tmp_path.glob("pixels*"))


def test_what_could_not_be_read_is_said_again(tmp_path, on_disk):
    folder, file = numbers(tmp_path / "c", 12, np.uint8), tmp_path / "pixels"
    (folder / "5.npy").write_bytes(b"nothing")
    entries = cohort.read(folder).entries
    first, again = data.load(entries, PLAN, file=file), data.load(entries, PLAN, file=file)
    assert [str(p) for p in first.problems] == [str(p) for p in again.problems] and len(again.problems) == 1
    assert (
        first.entries == again.entries
        and first.digests == again.digests
        and "c5" not in {e.id for e in again.entries}
    )


def test_a_full_disk_is_one_sentence(tmp_path, on_disk):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "pixels.uint8.part").symlink_to("/dev/full")
    array = np.zeros((400, 1, 1, 1, 16, 16), np.float32)
    with pytest.raises(Problem, match=r"cannot be written \(No space left on device\)"):
        store.gather(pieces(array, 10), (1, 1, 1, 16, 16), 400, tmp_path / "pixels")


# --- reading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_large_arrays_stay_on_disk(tmp_path, monkeypatch, save):
    random = np.random.default_rng(0)
    arrays = {"grey": random.integers(0, 256, (9, 4, 5)).astype(np.uint8),
              "colour": random.integers(0, 60_000, (7, 4, 5, 3)).astype(np.uint16)}  # fmt: skip
    monkeypatch.setattr(medmnist, "_IN_MEMORY", 0)
    medmnist._array.cache_clear()
    save(tmp_path / "a.npz", **arrays)
    for key, array in arrays.items():
        for index in (0, len(array) - 1, 3):
            image = medmnist.read(Source(tmp_path / "a.npz", key, index))
            row = array[index]
            assert np.array_equal(image.array.squeeze(), np.moveaxis(row, -1, 0) if row.ndim == 3 else row)
            assert image.array.dtype == array.dtype and image.array.flags.writeable
    with pytest.raises(Problem, match="no row 9 among 9"):
        medmnist.read(Source(tmp_path / "a.npz", "grey", 9))
    medmnist._array.cache_clear()


def test_a_flipped_bit_in_a_large_array_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(medmnist, "_IN_MEMORY", 0)
    np.savez(tmp_path / "a.npz", grey=np.zeros((9, 40, 50), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.getinfo("grey.npy").compress_type == zipfile.ZIP_STORED
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[5000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(Problem, match="broken"):
        medmnist.read(Source(tmp_path / "a.npz", "grey", 0))


# --- listing ----------------------------------------------------------------------------------------------


def test_cells_are_a_dictionary():
    cells = Cells({"a": [1, 2], "b": [None, "x"]}, 1)
    assert cells == {"a": 2, "b": "x"} and {**cells} == {"a": 2, "b": "x"} and list(cells) == ["a", "b"]
    assert cells.get("c") is None and "c" not in cells and len(cells) == 2
    with pytest.raises(KeyError):
        cells["c"]


def test_a_source_is_its_path():
    assert Source(Path("a/b.png")) == Source("a/b.png") and Source("a/b.png").path == Path("a/b.png")
    assert Source("a") != Source("a", index=0) and len({Source("a"), Source("a")}) == 1


def test_equal_cells_and_findings_are_one_object(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"x")
    rows = [f"c{i},x.npy,{'ab'[i % 2]},{'north' if i % 3 else 'south'}" for i in range(12)]
    (tmp_path / "t.csv").write_text("case,image,label,site\n" + "\n".join(rows) + "\n")
    entries = sorted(cohort.read(tmp_path / "t.csv").entries, key=lambda entry: int(entry.id[1:]))
    assert len({id(entry.findings) for entry in entries}) == 2
    assert [e.findings[0].name for e in entries] == ["ab"[i % 2] for i in range(12)]
    assert [e.metadata for e in entries] == [{"site": "north" if i % 3 else "south"} for i in range(12)]
    assert len({id(entry.metadata["site"]) for entry in entries}) == 2


def test_rows_without_an_image_shift_nothing(tmp_path):
    for i in (0, 2, 3):
        (tmp_path / f"{i}.npy").write_bytes(b"x")
    rows = [f"c{i},{i}.npy,a,{i * 10}" for i in range(4)]
    (tmp_path / "t.csv").write_text("case,image,label,age\n" + "\n".join(rows) + "\n")
    found = cohort.read(tmp_path / "t.csv")
    assert len(found.problems) == 1
    assert [(e.id, e.images["image"].path.name, e.metadata["age"]) for e in found.entries] == [
        ("c0", "0.npy", 0), ("c2", "2.npy", 20), ("c3", "3.npy", 30),
    ]  # fmt: skip


def test_a_chain_of_copies_is_joined_in_time_that_grows_with_it():
    """30,000 patients in one group, in the order that makes the longest chain: quadratic, it took minutes."""
    count = 30_000
    question = Question("label", "multiclass", ("a", "b"))
    stated = [(Finding("label", name, probability=1.0),) for name in "ab"]
    entries = tuple(Entry(f"{i:05d}", f"p{i}", {}, stated[i % 2]) for i in range(count))
    joined, copies = cohort.join(entries, [range(1, count)], folded=True)
    assert copies == count - 2 and len({entry.patient for entry in joined}) == 2
    found = Cohort(Path(), joined, (question,))
    parts = cohort.split(found, validation=0.2, calibration=0.0, test=0.0)
    assert isinstance(parts.training, Training)


# --- memory -----------------------------------------------------------------------------------------------

MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from osler import cohort, data, recipe, store, training
store.MOST_IN_MEMORY = 2**20
from osler.formats import medmnist
medmnist._IN_MEMORY = 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = cohort.read(Path(sys.argv[1]))
loaded = data.load(found.entries, recipe.ImagePlan(size=(1, 28, 28)), file=Path(sys.argv[2]))
plan = recipe.build({"image": {"size": [1, 28, 28]}, "network": {"options": {"depth": 18}},
                     "tasks": {q.task: q for q in found.questions}})
training.divide(found, loaded, plan)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / len(found.entries))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_memory_of_a_hundred_thousand_cases(tmp_path):
    """Their pixels alone are 784 bytes each, 3,136 as float32; none of it may stay in memory."""
    count = 100_000
    random = np.random.default_rng(0)
    parts = {"train": count - 2000, "val": 1000, "test": 1000}
    arrays = {f"{part}_images": random.integers(0, 256, (n, 28, 28), np.uint8) for part, n in parts.items()}
    arrays |= {f"{part}_labels": (np.arange(n) % 2).astype(np.uint8)[:, None] for part, n in parts.items()}
    np.savez(tmp_path / "many.npz", **arrays)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "many.npz"), str(tmp_path / "pixels")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    assert float(result.stdout) < 1500
