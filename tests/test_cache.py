"""The cache of decoded images: private, bounded, and never a reason for anything to fail."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from osler import cache, formats
from osler.case import Source
from osler.cli import main
from osler.problem import Problem

VOLUME = np.random.default_rng(0).integers(-1000, 1000, (96, 80, 70), np.int16)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OSLER_CACHE", raising=False)
    yield tmp_path / "home"
    cache.settle()


def saved(path: Path, volume: np.ndarray = VOLUME) -> Path:
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 2, 3, 1.0])), path)
    return path


def read(path: Path) -> np.ndarray:
    return formats.read(Source(path)).array


def copies(home: Path) -> list[Path]:
    cache.settle()
    return sorted((home / "cache").iterdir()) if (home / "cache").exists() else []


def test_a_second_read_maps_the_copy_and_is_the_same(tmp_path: Path, home: Path) -> None:
    path = saved(tmp_path / "Jane Doe.nii.gz")
    first, second = read(path), read(path)
    (copy,) = copies(home)
    assert isinstance(second.base, np.memmap | np.ndarray) and not second.flags.writeable
    assert (first == second).all() and (second[0, 0] == VOLUME.T).all()
    # The copy is what is read: a changed voxel in it is seen.
    with copy.open("r+b") as file:
        file.seek(352)
        file.write(b"\x39\x05")
    assert read(path)[0, 0, 0, 0, 0] == 0x0539
    patch = read(path)[..., 3:40, 5:60, 7:50]
    assert (patch[0, 0] == VOLUME.T[3:40, 5:60, 7:50]).all()


def test_it_is_private_and_its_names_say_nothing(tmp_path: Path, home: Path) -> None:
    read(saved(tmp_path / "Jane Doe.nii.gz"))
    (copy,) = copies(home)
    assert "Jane" not in copy.name
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600 and stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
    copy.parent.chmod(0o777)
    with copy.open("r+b") as file:
        file.seek(352)
        file.write(b"\x39\x05")
    assert read(tmp_path / "Jane Doe.nii.gz")[0, 0, 0, 0, 0] == VOLUME[0, 0, 0], "a folder that is open is not read"


def test_a_changed_file_is_decoded_again(tmp_path: Path, home: Path) -> None:
    path = saved(tmp_path / "a.nii.gz")
    read(path)
    saved(path, VOLUME[::-1])
    assert (read(path)[0, 0] == VOLUME[::-1].T).all() and len(copies(home)) == 2


def test_small_and_uncompressed_files_are_not_copied(tmp_path: Path, home: Path) -> None:
    read(saved(tmp_path / "a.nii.gz", VOLUME[:9, :9, :9]))
    assert not read(saved(tmp_path / "a.nii")).flags.writeable
    assert not copies(home)


def test_what_was_not_used_for_longest_goes_first(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSLER_CACHE", str(2.5 * (VOLUME.nbytes + 352) / cache.GIB))
    paths = [saved(tmp_path / f"{number}.nii.gz", VOLUME + number) for number in range(3)]
    keys = [cache.key(path) for path in paths]
    for age, path in ((300, paths[0]), (200, paths[1])):
        read(path)
        cache.settle()
        os.utime(home / "cache" / cache.key(path), (1e9 - age, 1e9 - age))
    read(paths[0])
    read(paths[2])
    assert {path.name for path in copies(home)} == {keys[0], keys[2]}


def test_it_can_be_off_shown_and_purged(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "a.nii.gz")
    monkeypatch.setenv("OSLER_CACHE", "0")
    read(path)
    assert not copies(home)
    monkeypatch.delenv("OSLER_CACHE")
    read(path)
    assert len(copies(home)) == 1
    (home / "cache" / "killed.part").write_bytes(b"x" * 9)
    with pytest.raises(SystemExit):
        main(["cache"])
    assert "2 files" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["cache", "--purge"])
    assert "0 files" in capsys.readouterr().out and not copies(home)
    monkeypatch.setenv("OSLER_CACHE", "much")
    with pytest.raises(Problem, match="OSLER_CACHE is 'much'"):
        read(path)


def test_a_full_disk_costs_the_copy_and_nothing_else(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    path = saved(tmp_path / "a.nii.gz")
    monkeypatch.setattr(Path, "replace", full)
    assert (read(path)[0, 0] == VOLUME.T).all()
    assert not copies(home)


def test_no_room_on_the_disk_is_left_alone(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_RESERVE", 2**60)
    read(saved(tmp_path / "a.nii.gz"))
    assert not copies(home)


def test_processes_share_it(tmp_path: Path, home: Path) -> None:
    path = saved(tmp_path / "a.nii.gz")
    program = (
        "import sys; from pathlib import Path; from osler import formats; from osler.case import Source\n"
        "print(int(formats.read(Source(Path(sys.argv[1]))).array.astype('int64').sum()))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert {process.communicate()[0].strip() for process in running} == {str(int(VOLUME.astype(np.int64).sum()))}
    assert len(copies(home)) == 1 and (read(path)[0, 0] == VOLUME.T).all()


def test_bypassed_keeps_and_takes_nothing(tmp_path: Path, home: Path) -> None:
    path = saved(tmp_path / "a.nii.gz")
    with cache.bypassed():
        read(path)
    assert not copies(home)
    read(path)
    (copy,) = copies(home)
    copy.write_bytes(b"damaged")
    with cache.bypassed():
        assert (read(path)[0, 0] == VOLUME.T).all()
