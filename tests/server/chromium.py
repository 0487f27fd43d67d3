"""Headless Chromium, told what to do through a pair of pipes (Chrome DevTools Protocol, no driver needed)."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Browser:
    """One tab. ``complaints`` are what its console says, ``asked`` the addresses that it asked for."""

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

    def choose(self, path: Path) -> None:
        """Puts a file into the page's file input, as a person would with its dialog."""
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
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
    """A Chromium that ends with the block; its profile and its own temporary files lie in ``folder``."""
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
        env=os.environ | {"TMPDIR": str(folder)},
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
