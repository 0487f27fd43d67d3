"""Downloads, against a server on this machine that can do what real ones do wrong."""

import errno
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import osler
from osler import layouts, public_sets
from osler.cli import main
from osler.problem import Problem
from osler.public_sets import PublicSet, download


def content() -> bytes:
    rng = np.random.default_rng(0)
    made = io.BytesIO()
    arrays = {}
    for part, count in (("train", 60), ("val", 12), ("test", 12)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{part}_labels"] = np.arange(count)[:, None] % 2
    np.savez(made, **arrays)
    return made.getvalue()


FILE = content()


class Server(ThreadingHTTPServer):
    """Gives ``FILE``; its attributes say what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.ranges, self.tag = FILE, True, '"one"'
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.codes: list[int] = []  # what the next answers are instead
        self.slow = 0.0  # seconds between pieces
        self.asked: list[str | None] = []
        self.length: int | None = None
        self.silent = 0.0  # seconds before it says anything

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is nothing to report."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        time.sleep(server.silent)
        if server.codes:
            self.send_error(server.codes.pop(0))
            return
        start = 0
        fits = self.headers.get("If-Range", server.tag) == server.tag
        if asked and server.ranges and fits:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
            if start >= len(server.body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        else:
            self.send_response(200)
        self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str((server.length or len(server.body)) - start))
        self.end_headers()
        rest = server.body[start:]
        if server.cuts:
            rest = rest[: server.cuts.pop(0)]
        for at in range(0, len(rest), 4096):
            self.wfile.write(rest[at : at + 4096])
            time.sleep(server.slow)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(public_sets, "_WAITS", (0.0, 0.0, 0.0))
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def wanted(server: Server, body: bytes = FILE) -> PublicSet:
    url = f"http://127.0.0.1:{server.server_address[1]}/toymnist.npz"
    md5 = hashlib.md5(body).hexdigest()
    return PublicSet("toymnist", "noise", "multiclass", 84, "28x28", "CC BY 4.0", "a test", url, md5)


def test_a_whole_set_is_a_cohort(server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    file = download(wanted(server), tmp_path / "toy", say=said.append)
    assert file == tmp_path / "toy" / "toymnist.npz" and file.read_bytes() == FILE
    assert "CC BY 4.0" in said[1] and wanted(server).md5 in said[1]
    assert "CC BY 4.0" in (tmp_path / "toy" / "toymnist.txt").read_text()
    assert sorted(path.suffix for path in file.parent.iterdir()) == [".npz", ".txt"]
    listing = layouts.read(tmp_path / "toy")
    assert len(listing.entries) == 84 and {entry.split for entry in listing.entries} == {
        "train",
        "validation",
        "test",
    }
    download(wanted(server), tmp_path / "toy")
    assert len(server.asked) == 1, "it is not fetched twice"


def test_it_goes_on_after_cuts(server: Server, tmp_path: Path) -> None:
    server.cuts = [10_000, 0, 20_000]
    assert download(wanted(server), tmp_path).read_bytes() == FILE
    assert server.asked == [None, "bytes=10000-", "bytes=10000-", "bytes=30000-"]


def test_it_goes_on_from_an_earlier_attempt(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toymnist.npz.part").write_bytes(FILE[:5000])
    assert download(wanted(server), tmp_path).read_bytes() == FILE
    assert server.asked == ["bytes=5000-"]


def test_a_finished_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toymnist.npz.part").write_bytes(FILE)
    assert download(wanted(server), tmp_path).read_bytes() == FILE


@pytest.mark.parametrize("left", [b"something else" * 99, FILE + b"more"])
def test_a_part_that_does_not_fit_is_fetched_anew(server: Server, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "toymnist.npz.part").write_bytes(left)
    assert download(wanted(server), tmp_path).read_bytes() == FILE
    assert server.asked[-1] is None


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = False, [10_000]
    assert download(wanted(server), tmp_path).read_bytes() == FILE


def test_a_file_that_changed_meanwhile_is_fetched_whole(server: Server, tmp_path: Path) -> None:
    other = FILE[::-1]
    server.cuts = [10_000]

    def change(line: str) -> None:
        if "trying again" in line:
            server.body, server.tag = other, '"two"'

    assert download(wanted(server, other), tmp_path, say=change).read_bytes() == other


def test_a_wrong_checksum_is_refused_in_one_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"toymnist.npz: the file that came has the MD5 .* not the published"):
        download(replace(wanted(server), md5="0" * 32), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_answer_shorter_than_it_says_is_refused(server: Server, tmp_path: Path) -> None:
    server.length = len(FILE) + 9
    with pytest.raises(Problem, match="has the MD5"):
        download(wanted(server, FILE + b"x" * 9), tmp_path)
    assert not (tmp_path / "toymnist.npz").exists()


@pytest.mark.parametrize(("codes", "asked"), [([404], 1), ([403], 1), ([500] * 9, 4)])
def test_a_server_that_refuses_is_named(server: Server, tmp_path: Path, codes: list[int], asked: int) -> None:
    first = codes[0]
    server.codes = codes
    with pytest.raises(Problem, match=f"127.0.0.1 does not give the file .*{first}"):
        download(wanted(server), tmp_path)
    assert len(server.asked) == asked


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429]
    assert download(wanted(server), tmp_path).read_bytes() == FILE


def test_a_server_that_is_silent_is_not_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(public_sets, "_TIMEOUT", 0.1)
    server.silent = 0.5
    with pytest.raises(Problem, match="timed out"):
        download(wanted(server), tmp_path)
    assert not (tmp_path / "toymnist.npz").exists()


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    made = replace(wanted(server), url="http://127.0.0.1:9/x.npz")
    with pytest.raises(Problem, match=r"127\.0\.0\.1 does not give the file"):
        download(made, tmp_path)


def test_a_full_disk_is_said_before_and_on_the_way(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(public_sets.shutil, "disk_usage", lambda _: public_sets.shutil._ntuple_diskusage(9, 9, 0))
        with pytest.raises(Problem, match="the disk has 0 MiB free"):
            download(wanted(server), tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(public_sets, "_attempt", full)
        with pytest.raises(Problem, match=r"toymnist.npz.part: it cannot be written \(no space left"):
            download(wanted(server), tmp_path)
    assert not (tmp_path / "toymnist.npz").exists()


def test_another_file_of_that_name_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toymnist.npz").write_bytes(b"mine")
    with pytest.raises(Problem, match="it is another one; move it away"):
        download(wanted(server), tmp_path)
    assert (tmp_path / "toymnist.npz").read_bytes() == b"mine"


def test_a_killed_process_leaves_a_part_that_is_used(server: Server, tmp_path: Path) -> None:
    server.slow, made = 0.05, wanted(server)
    program = (
        "import sys; from osler.public_sets import PublicSet, download\n"
        "download(PublicSet('toymnist', '', '', 1, '', '', '', sys.argv[1], sys.argv[2]), sys.argv[3])"
    )
    process = subprocess.Popen([sys.executable, "-c", program, made.url, made.md5, str(tmp_path)])
    part = tmp_path / "toymnist.npz.part"
    while not (part.exists() and part.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "toymnist.npz").exists() and 0 < part.stat().st_size < len(FILE)
    server.slow = 0
    assert download(made, tmp_path).read_bytes() == FILE
    assert server.asked[-1] is not None


def test_the_catalogue_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    sets = public_sets.catalogue()
    assert len({each.name for each in sets}) == len(sets) == 12 * 4 + 6 * 2
    assert len({each.md5 for each in sets}) == len(sets)
    assert all(re.fullmatch(r"[0-9a-f]{32}", each.md5) for each in sets)
    assert all(each.url.startswith("https://") and f"/{each.name}.npz" in each.url for each in sets)
    assert {each.licence for each in sets if each.name.startswith("dermamnist")} == {"CC BY-NC 4.0"}
    with pytest.raises(SystemExit) as stop:
        main(["download"])
    assert not stop.value.code
    listed = capsys.readouterr().out
    assert all(each.name in listed for each in sets) and "doi" in listed


def test_a_name_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert osler.download is download
    with pytest.raises(Problem, match="did you mean pneumoniamnist"):
        download("pneumonamnist", tmp_path)
    with pytest.raises(SystemExit):
        main(["download", "pneumonamnist"])
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.real_data
def test_the_counts_are_those_of_the_real_set(real_data: Path) -> None:
    with np.load(real_data / "pneumoniamnist" / "pneumoniamnist.npz", allow_pickle=False) as arrays:
        there = len(arrays["train_images"]) + len(arrays["val_images"])
    # The test part is kept back: 624 images, as published.
    assert public_sets.find("pneumoniamnist").images == there + 624
