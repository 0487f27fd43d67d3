"""What stands before the application: any web page can reach a server on loopback, so each request is checked.

A page elsewhere can send a form here (cross-site request forgery: its ``Origin`` tells) and can make its own name
point to this machine (DNS rebinding: ``Host`` tells). Neither gets further than this file.
"""

import json
import logging
import re
import secrets
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from osler.server.uploads import Refused

log = logging.getLogger("osler.server")

_HOSTS = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Under no-referrer browsers send "Origin: null" with forms of our own page too.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Guard:
    """ASGI middleware: checks where a request comes from, sets headers, logs a line, lets no traceback out.

    Attributes:
        app: what answers.
        refusal: a response from the request's headers and a :class:`Refused`.
        routes: paths that may stand in the log; any other could be a name.
    """

    app: ASGIApp
    refusal: Callable[[Headers, Refused], Response]
    routes: tuple[str, ...]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, number = time.perf_counter(), secrets.token_hex(6)
        scope.setdefault("state", {})
        sent = {"status": 0}

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-Id"] = number
            await send(message)

        headers, extra = Headers(scope=scope), {}
        try:
            check(headers)
            await self.app(scope, receive, send_guarded)
        except ClientDisconnect:
            sent["status"] = 499
        except Refused as refused:
            await self.refusal(headers, refused)(scope, receive, send_guarded)
        except Exception as error:
            extra = {"error": type(error).__name__, "at": _places(error)}
            if not sent["status"]:
                what = f"something unexpected went wrong here; the log of the server has it under {number}"
                await self.refusal(headers, Refused(what, status=500))(scope, receive, send_guarded)
            sent["status"] = 500
        finally:
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "id": number,
                "method": scope["method"] if re.fullmatch("[A-Z]{3,7}", scope["method"]) else "other",
                "route": scope["path"] if scope["path"] in self.routes else "other",
                "status": sent["status"],
                "seconds": round(time.perf_counter() - began, 3),
                **scope["state"].get("osler", {}),
                **extra,
            }
            log.log(logging.ERROR if extra else logging.INFO, json.dumps(line))


def check(headers: Headers) -> None:
    """Lets through what this machine's own browser asks for from our own page, and programs without an ``Origin``.

    Raises:
        Refused: the request names another host, or comes from another site's page.
    """
    host = headers.get("host", "").lower()
    try:
        named = urlsplit(f"//{host}").hostname
    except ValueError:
        named = None
    if named not in _HOSTS:
        raise Refused("this server is called 127.0.0.1 or localhost and nothing else", fix="use that", status=421)
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host}":
        raise Refused("this server takes requests from its own page only", fix="open that page", status=403)


def _places(error: BaseException) -> list[str]:
    """Where in our code it was raised, and in whose, without its message, which may quote a name from a file."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames[:-1] if "osler" in Path(frame.filename).parts]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in (*ours[-8:], *frames[-1:])]
