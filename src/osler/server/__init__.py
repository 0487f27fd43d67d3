"""Online diagnosis: a door to the same `diagnose`.

``app`` answers requests, ``guard`` stands before it, ``uploads`` takes files in. FastAPI, Uvicorn and
python-multipart (``pip install "osler[serve]"``) are imported below this folder only.
"""

import contextlib
import importlib
import logging
import socket
from pathlib import Path

from osler import model
from osler.problem import Problem

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(run: Path, *, port: int = 8765, host: str = "127.0.0.1", upload_mib: int = 512) -> None:
    """Answers on this machine until it is stopped: a page at ``/``, JSON at ``/diagnoses``.

    Args:
        run: run folder or model file.
        port: to listen on; 0 takes a free one.
        host: 127.0.0.1, localhost or ::1.
        upload_mib: largest upload, MiB; a zip may hold four times as much.

    Raises:
        Problem: another host than loopback, a port that is taken, a missing package, or a broken model.
    """
    if host not in LOOPBACK:
        raise Problem(
            f"osler serve answers on this machine only, not on {host}: accounts and encryption come later",
            fix="use 127.0.0.1, and reach it from elsewhere through an SSH tunnel",
        )
    if upload_mib < 1:
        raise Problem(f"an upload limit of {upload_mib} MiB lets nothing in", fix="allow at least 1 MiB")
    _require_packages()
    import uvicorn

    from osler.server import app, uploads

    limits = uploads.Limits(upload=upload_mib * 2**20, expanded=4 * upload_mib * 2**20)
    with _listen(host, port) as door:
        made = model.load(run)
        application = app.build(made, limits)
        address = f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}"
        _log_to_stderr()
        print(f"Osler answers at {address} for research use only; Ctrl+C stops it", flush=True)
        # Uvicorn's own access log would hold what stands in addresses; behind no proxy, no header speaks for one.
        config = uvicorn.Config(
            application,
            access_log=False,
            log_level="warning",
            lifespan="off",
            proxy_headers=False,
            server_header=False,
        )
        # Uvicorn hands Ctrl+C on once every request is answered.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[door])


def _require_packages() -> None:
    for name in ("fastapi", "uvicorn", "python_multipart"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise Problem(f"osler serve needs the package {name}", fix='pip install "osler[serve]"') from error


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except (OSError, OverflowError) as error:
        door.close()
        why = getattr(error, "strerror", None) or error
        raise Problem(f"port {port} of {host} cannot be used ({why})", fix="give another one with --port") from error
    return door


def _log_to_stderr() -> None:
    logger = logging.getLogger("osler.server")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
