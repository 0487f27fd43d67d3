"""The real thing: a server of its own process, and a browser that drops an image onto its page."""

import base64
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from osler.problem import Problem
from osler.pseudonym import pseudonym
from osler.server import serve

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAME = "Mustermann^Erika 1964"


@dataclass(frozen=True)
class Served:
    """A server that is running."""

    address: str
    process: subprocess.Popen[str]

    def stop(self) -> list[dict[str, object]]:
        """Ends it as Ctrl+C does; the lines of its log."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=300)
        return [json.loads(line) for line in errors.splitlines()]


@pytest.fixture
def served(run: Path, private: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(run, private, tmp_path) as made:
        yield made


@contextmanager
def serving(run: Path, private: Path, tmp_path: Path) -> Iterator[Served]:
    """A server of its own process, until the block ends."""
    code = "import sys, pathlib, osler.server as s; s.serve(pathlib.Path(sys.argv[1]), port=0)"
    environment = os.environ | {"OSLER_HOME": str(tmp_path / "home"), "TMPDIR": str(private)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(run)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout
    words = process.stdout.readline().split()
    address = next((word for word in words if word.startswith("http")), "")
    try:
        assert address, process.communicate()[1]
        yield Served(address, process)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_it_answers_over_the_network_of_this_machine_and_stops(served: Served, png: bytes, private: Path) -> None:
    with httpx.Client(base_url=served.address, trust_env=False) as client:
        assert client.get("/health").json()["ready"] is True
        answer = client.post("/diagnoses", files={"file": (f"{NAME}.png", png)})
        assert answer.json()["case"] == pseudonym(NAME)
        assert "server" not in answer.headers
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    log = served.stop()
    assert [line["status"] for line in log] == [200, 200, 421]
    assert "Mustermann" not in json.dumps(log)
    assert not list(private.iterdir())


@dataclass
class Browser:
    """One tab of headless Chromium, told what to do through a pair of pipes (Chrome DevTools Protocol).

    ``complaints`` are what its console says, ``asked`` the addresses that it asked for."""

    orders: IO[bytes]
    answers: IO[bytes]
    session: str = ""
    number: int = 0
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        order = {"id": self.number, "method": method, "params": parameters}
        self.orders.write(json.dumps(order | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        self.orders.flush()
        while True:
            message = json.loads(self.line())
            if message.get("id") == self.number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            match message.get("method"):
                case "Log.entryAdded":
                    self.complaints.append(message["params"]["entry"]["text"])
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(message["params"]["exceptionDetails"]))
                case "Network.requestWillBeSent":
                    self.asked.append(message["params"]["request"]["url"])

    def line(self) -> bytes:
        letters = bytearray()
        while (letter := self.answers.read(1)) != b"\0":
            assert letter, "the browser is gone"
            letters += letter
        return bytes(letters)

    def value(self, expression: str) -> Any:
        result = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """Waits, some minutes on a busy machine, until an expression is true."""
        for _ in range(3000):
            if value := self.value(expression):
                return value
            time.sleep(0.1)
        raise AssertionError(f"never came true: {expression}; {self.complaints}")

    def open(self, address: str) -> None:
        self.tell("Page.navigate", url=address)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({address!r})")

    def choose(self, path: Path, field: str = "input[type=file]") -> None:
        """Puts a file into the page's file input, as a person would with its dialog."""
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector=field)["nodeId"]
        self.tell("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def drop(self, path: Path, x: int, y: int) -> None:
        content = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.tell("Input.dispatchDragEvent", type=kind, x=x, y=y, data=content)

    def screenshot(self, path: Path) -> None:
        result = self.tell("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(result["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A Chromium that ends with the block; its profile lies in ``folder``."""
    assert CHROMIUM
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    # Chromium reads from descriptor 3 and writes to 4: high numbers cannot be in their way.
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 100) for number in (theirs_in, theirs_out)]
    os.close(theirs_in), os.close(theirs_out)
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--window-size=1100,1000")
    command = [CHROMIUM, *options, "--disable-dev-shm-usage", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]} {high[0]}<&- {high[1]}>&-', "-", *command],
        pass_fds=high,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for number in high:
        os.close(number)
    with os.fdopen(ours_out, "wb") as orders, os.fdopen(ours_in, "rb") as answers:
        try:
            tab = Browser(orders, answers)
            target = tab.tell("Target.createTarget", url="about:blank")["targetId"]
            tab.session = tab.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
                tab.tell(f"{domain}.enable")
            yield tab
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with browser(tmp_path / "chromium") as made:
        yield made


@pytest.mark.slow
def test_a_person_gets_the_diagnosis(served: Served, tab: Browser, png: bytes, tmp_path: Path) -> None:
    image, text = tmp_path / f"{NAME}.png", tmp_path / "letter.txt"
    image.write_bytes(png)
    text.write_text("no image")
    shots = Path(os.environ.get("OSLER_SCREENSHOTS", tmp_path))
    answer = "document.getElementById('answer').contentDocument"

    tab.open(served.address)
    tab.screenshot(shots / "page.png")
    tab.drop(image, 500, 400)
    tab.until(f"!document.getElementById('result').hidden && {answer}.querySelector('h1') !== null")
    assert pseudonym(NAME) in tab.value(f"{answer}.body.textContent")
    # The frame is as high as what stands in it, its images are drawn, its own styles hold, and focus went there.
    tab.until(
        f"Math.abs(document.getElementById('answer').offsetHeight - {answer}.documentElement.offsetHeight) < 20"
    )
    assert tab.value(f"[...{answer}.images].length > 0 && [...{answer}.images].every(i => i.naturalWidth > 0)")
    assert tab.value("document.activeElement.id") == "heading"
    assert tab.value(f"getComputedStyle({answer}.querySelector('.diagnosis')).display") == "grid"
    tab.screenshot(shots / "answer.png")
    tab.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    tab.screenshot(shots / "answer-dark.png")
    assert tab.complaints == []
    assert {url.partition(":")[0] for url in tab.asked} <= {"http", "data", "blob", "about"}
    assert all(url.startswith(served.address) for url in tab.asked if url.startswith("http"))

    # Now by keyboard alone, with a file that is no image.
    tab.choose(text)
    tab.value("document.getElementById('file').focus()")
    tab.press("Tab", 9)
    assert tab.value("document.activeElement.id") == "send"
    tab.press("Enter", 13)
    assert "unknown format" in tab.until("document.getElementById('problem').textContent")
    assert tab.value("document.getElementById('result').hidden") is True
    tab.screenshot(shots / "problem.png")


@pytest.mark.slow
def test_a_person_gives_each_image_its_field(
    run_of_two: Path, private: Path, tab: Browser, png: bytes, tmp_path: Path
) -> None:
    image = tmp_path / f"{NAME}.png"
    image.write_bytes(png)
    shots = Path(os.environ.get("OSLER_SCREENSHOTS", tmp_path))
    answer = "document.getElementById('answer').contentDocument"
    with serving(run_of_two, private, tmp_path) as served:
        tab.open(served.address)
        # Nothing yet.
        tab.value("document.getElementById('send').click()")
        assert "Choose one file" in tab.until("document.getElementById('problem').textContent")
        # Dropped beside the fields it could be any of them.
        tab.drop(image, 500, 200)
        assert "onto its own field" in tab.until("document.getElementById('problem').textContent")
        place = tab.value("(r => [r.x + 9, r.y + 9])(document.getElementById('image2').getBoundingClientRect())")
        tab.drop(image, *map(int, place))
        tab.until("document.getElementById('image2').files.length === 1")
        tab.screenshot(shots / "page-several.png")
        tab.value("document.getElementById('send').click()")
        tab.until(f"!document.getElementById('result').hidden && {answer}.querySelector('h1') !== null")
        assert "The answer rests on t2; missing: t1." in tab.value(f"{answer}.body.textContent")
        tab.choose(image, "#image1")
        tab.value("document.getElementById('send').click()")
        tab.until("document.getElementById('state').textContent.includes('below')")
        tab.until(f"{answer}.body && !{answer}.body.textContent.includes('missing: t1')")
        tab.screenshot(shots / "answer-several.png")
        assert tab.complaints == []
        assert [line["status"] for line in served.stop() if line["method"] == "POST"] == [200, 200]


@pytest.mark.slow
def test_it_works_without_scripts_and_not_from_other_sites(
    served: Served, tab: Browser, png: bytes, tmp_path: Path
) -> None:
    image = tmp_path / f"{NAME}.png"
    image.write_bytes(png)
    # The same server under its other name is another site; its own policy would stop this request even earlier.
    tab.tell("Page.setBypassCSP", enabled=True)
    tab.open(served.address.replace("127.0.0.1", "localhost"))
    request = "{method: 'POST', mode: 'no-cors', body: new FormData()}"
    assert tab.value(f"fetch('{served.address}/diagnoses', {request}).catch(() => 'blocked')") == "blocked"

    tab.tell("Emulation.setScriptExecutionDisabled", value=True)
    tab.open(served.address)
    assert tab.value("document.getElementById('invitation').textContent") == "Choose an image"
    tab.choose(image)
    tab.value("document.getElementById('send').focus()")
    tab.press("Enter", 13)
    tab.until("location.pathname === '/diagnoses' && document.readyState === 'complete'")
    assert pseudonym(NAME) in tab.value("document.body.textContent")
    assert "no image" not in tab.value("document.body.textContent")
    assert [line["status"] for line in served.stop() if line["method"] == "POST"] == [403, 200]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.org", ""])
def test_only_loopback_is_served(host: str, run: Path) -> None:
    with pytest.raises(Problem, match="accounts and encryption come later"):
        serve(run, host=host)


def test_a_taken_port_is_said(run: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Problem, match="cannot be used"):
            serve(run, port=taken.getsockname()[1])
    with pytest.raises(Problem, match="cannot be used"):
        serve(run, port=70_000)


def test_a_missing_package_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.raises(Problem, match=r'pip install "osler\[serve\]"'):
        serve(run)


def test_osler_itself_needs_none_of_it() -> None:
    code = (
        "import sys, osler, osler.server, osler.diagnosis\n"
        "assert not {'fastapi', 'uvicorn', 'starlette', 'python_multipart'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
