"""Files are there whole or not at all; how far something is, is said now and then."""

from pathlib import Path

import pytest

from osler import files, progress
from osler.problem import Problem


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    for content in ("old", "größer\n", b"\x00\xff"):
        files.replaced(tmp_path / "a.txt", content)
        expected = content.encode("utf-8") if isinstance(content, str) else content
        assert (tmp_path / "a.txt").read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.replaced(tmp_path / "a.txt", "old")

    def full(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Problem, match=r"a.txt: cannot be written \(No space left on device\); free some space"):
        files.replaced(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_may_not_be_written_is_no_matter_of_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is read-only nothing is removed either."""

    def refuse(path: Path, *given: object, **named: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(Problem, match=r"\(Read-only file system\); check the rights, or give another place"):
        files.replaced(tmp_path / "a.txt", "new")


def test_a_folder_is_made_or_it_is_said_why_not(tmp_path: Path) -> None:
    assert files.folder(tmp_path / "a" / "b").is_dir() and files.folder(tmp_path / "a").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match=r"the folder cannot be made \(.+\); give another --out"):
        files.folder(tmp_path / "file" / "b")


def test_progress_is_said_every_ten_seconds_with_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = progress.Progress(1000, said.append)
    for done in range(100, 1001, 100):
        now[0] += 4
        told(done)
    # At 12, 24 and 36 seconds of 40.
    assert said == [f"{n} of 1,000 cases, about {left} s left" for n, left in ((300, 28), (600, 16), (900, 4))]
