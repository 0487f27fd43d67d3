"""The application: one page, one question. It takes a file in, calls `diagnose` and hands the answer out."""

import asyncio
import importlib.metadata
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from osler import cache as copies
from osler import covariates, data, diagnoses, diagnosis, layouts
from osler.case import Entry
from osler.model import Model
from osler.problem import Problem
from osler.pseudonym import pseudonym
from osler.recipe import CovariatePlan
from osler.server import uploads
from osler.server.guard import Guard
from osler.server.schema import Diagnosis
from osler.server.uploads import Limits, Refused, Seekable

# The answer is shown in a frame of the page and inherits this: styles and images that stand in it, nothing else.
_CSP = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_CSP_ANSWER = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_RETRY = 10
_PROBLEM = {
    "type": "object",
    "required": ["problem"],
    "properties": {"problem": {"type": "string", "description": "what is wrong and what to do, one sentence"}},
}
_REFUSALS = {
    400: "the upload is not one file in the field `file`, or in the field `image.NAME` of an image",
    403: "the request comes from a page of another site",
    413: "the upload is too large, or decompresses to too much",
    421: "the request names another host than this machine",
    422: "the file cannot be read or does not fit the model",
    500: "something unexpected; the server's log has its id",
    503: "too many are waiting; see Retry-After",
}


# File and file name of each image, by the name of the image.
Given = Mapping[str, tuple[Seekable, str]]


@dataclass
class Desk:
    """Where a model answers, one request after the other; a few may wait."""

    made: Model
    limits: Limits
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    inside: int = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, taken before the upload is read.

        Raises:
            Refused: all are taken.
        """
        if self.inside > self.limits.waiting:
            raise Refused("too many requests are waiting", fix=f"try again in {_RETRY} seconds", status=503)
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of the images that the model looks at, where there are several."""
        names = self.made.recipe.image.modalities
        return names if len(names) > 1 else ()

    def answer(self, given: Given, as_page: bool, known: Sequence[str] = ()) -> str:
        """The diagnosis of an upload, as the page or the JSON that `osler diagnose` writes.

        Args:
            given: file and file name of each image, by its name; of one alone, under no name.
            as_page: which of the two.
            known: covariates, ``name=value`` each.

        Raises:
            Problem: the upload is refused, cannot be read, or does not fit the model.
        """
        with TemporaryDirectory(prefix="osler-") as folder:
            person = covariates.named(self.made.recipe.covariates, known)
            images, left = {}, self.limits.expanded
            for number, (name, (upload, filename)) in enumerate(given.items()):
                place = Path(folder) / str(number)
                place.mkdir()
                path = uploads.store(upload, filename, place, replace(self.limits, expanded=left))
                left -= sum(one.stat().st_size for one in place.rglob("*") if one.is_file())
                images[name or "image"] = layouts.single(path).images["image"]
            # The case is called "image" until the answer is there, so that no message can hold the file's name.
            # Nothing of what is dropped onto the page stays: neither what is decoded, nor what a preparation or an
            # explanation keeps of it.
            with copies.bypassed():
                named = Entry("image", "image", images, covariates=person)
                case = data.read_case(named, moments=self.made.recipe.moments)
                first = next(filename for _, filename in given.values())
                found = replace(diagnosis.diagnose(self.made, case), case=uploads.case_name(first))
                if not as_page:
                    return diagnoses.to_json(found, case, self.made)
                written = diagnoses.write_diagnosis(found, case, self.made, Path(folder) / "answer")
            return (written / "diagnosis.html").read_text(encoding="utf-8")


def build(made: Model, limits: Limits | None = None) -> FastAPI:
    """The application for one model: ``GET /``, ``POST /diagnoses``, ``GET /health``, ``GET /openapi.json``."""
    desk = Desk(made, limits or Limits())
    app = FastAPI(
        title="Osler",
        version=importlib.metadata.version("osler"),
        description="Diagnosis of one case: an image, or a DICOM series as a zip, or several of them. For research "
        "use only: not a medical device.",
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )

    def refusal(headers: Headers, refused: Refused) -> Response:
        again = {"Retry-After": str(_RETRY)} if refused.status == 503 else {}
        if wants_page(headers.get("accept", "")):
            return page(desk, headers, str(refused), refused.status, again)
        return JSONResponse({"problem": str(refused)}, refused.status, again)

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        what = {404: "there is no such page", 405: "this cannot be asked in this way"}.get(error.status_code)
        refused = Refused(
            what or "this request cannot be understood", fix="see /openapi.json", status=error.status_code
        )
        return refusal(request.headers, refused)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index(request: Request) -> Response:
        return page(desk, request.headers)

    @app.get("/health", summary="Whether it answers, and with which model")
    async def health() -> dict[str, bool | int | str]:
        return {"ready": True, "model": made.sha256, "busy": desk.inside}

    @app.post(
        "/diagnoses",
        summary="The images of one case, each a file or a DICOM series as a zip, to its diagnosis",
        response_model=Diagnosis,
        responses=_responses(),
        openapi_extra={"requestBody": _body(made.recipe.covariates, desk.names)},
    )
    async def diagnoses(request: Request) -> Response:
        as_page = wants_page(request.headers.get("accept", ""))
        async with _draining(request, desk.limits.upload) as receive:
            with desk.place():
                most = len(made.recipe.covariates.columns)
                async with _files(Request(request.scope, receive), most, desk.names) as (files, known):
                    given = {name: (file.file, file.filename or "") for name, file in files.items()}
                    first = next(filename for _, filename in given.values())
                    size = sum(file.size or 0 for file in files.values())
                    request.state.osler = {"case": pseudonym(uploads.case_name(first)), "bytes": size}
                    async with desk.turn:
                        text = await run_in_threadpool(_in_words, desk, (given, as_page, known))
        if as_page:
            return HTMLResponse(text, headers={"Content-Security-Policy": _CSP_ANSWER})
        return Response(text, media_type="application/json")

    routes = ("/", "/health", "/diagnoses", "/openapi.json")
    app.add_middleware(Guard, refusal=refusal, routes=routes)
    return app


def _in_words(desk: Desk, asked: tuple[Given, bool, Sequence[str]]) -> str:
    """:meth:`Desk.answer`, every problem of which becomes a refusal without the path of a temporary file."""
    try:
        return desk.answer(*asked)
    except Refused:
        raise
    except Problem as problem:
        raise Refused(problem.what, fix=problem.fix) from problem
    except MemoryError as error:
        raise Refused("the image does not fit into this machine's memory", fix="crop it", status=413) from error


@asynccontextmanager
async def _files(
    request: Request, covariates: int, names: Sequence[str]
) -> AsyncIterator[tuple[dict[str, UploadFile], list[str]]]:
    """The files of the form, on disk without a name until the block ends, and its covariates (``name=value``).

    One is the field ``file``, under no name; of several images each is a field ``image.NAME``, and what is left empty
    is missing. A covariate is a field of the name ``covariate.NAME``; what is left empty is not known.
    """
    fields = {f"image.{name}": name for name in names} or {"file": ""}
    what = f"one file for each of the fields {', '.join(fields)}" if names else "one file"
    try:
        form = await request.form(max_files=len(fields), max_fields=len(fields) + covariates)
    except HTTPException as error:
        also = " and a field for each covariate" if covariates else ""
        fix = "send it as the form's field file" if not names else "leave out what is missing"
        raise Refused(f"the upload is not {what}{also}", fix=fix, status=400) from error
    try:
        sent = [
            (key, one)
            for key, one in form.multi_items()
            if isinstance(one, UploadFile) and (one.filename or one.size)
        ]
        # In the order of the model, so that the case has one name in whatever order they come.
        found = {name: one for field, name in fields.items() for key, one in sent if key == field}
        if not found:
            fix = "choose one, as the form's field file" if not names else f"choose one, as {' or '.join(fields)}"
            raise Refused("no file came with the request", fix=fix, status=400)
        if len(found) < len(sent):
            strange = next((key for key, _ in sent if key not in fields), "")
            why = f"{strange!r} is no image that the model looks at" if strange else "one image came twice"
            raise Refused(why, fix=f"send {what}", status=400)
        known = [(key.partition(".")[2], value) for key, value in form.multi_items() if key.startswith("covariate.")]
        yield found, [f"{key}={value}" for key, value in known if isinstance(value, str) and value.strip()]
    finally:
        await form.close()


@asynccontextmanager
async def _draining(request: Request, most: int) -> AsyncIterator[Receive]:
    """The request's body up to ``most`` bytes; what is refused is first read to its end, within reason.

    A server that answers and hangs up while a browser is still sending is shown by it as a broken connection.
    """
    read, more = 0, True

    async def receive() -> Message:
        nonlocal read, more
        message = await request.receive()
        read += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def limited() -> Message:
        message = await receive()
        # The form around the file needs some bytes too.
        if read > most + 2**16:
            raise Refused(
                f"the upload is larger than {most / 2**20:,.0f} MiB", fix="crop it or thin it out", status=413
            )
        return message

    try:
        yield limited
    except Refused:
        while more and read < 4 * most:
            await receive()
        raise


def wants_page(accept: str) -> bool:
    """Whether an ``Accept`` header (RFC 9110, 12.5.1) prefers HTML to JSON."""
    quality: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, _, parameters = part.partition(";")
        weight = dict(pair.strip().partition("=")[::2] for pair in parameters.split(";")).get("q", "1")
        try:
            quality[kind.strip()] = float(weight)
        except ValueError:
            quality[kind.strip()] = 0.0
    return quality.get("text/html", 0.0) > quality.get("application/json", 0.0)


@cache
def _templates() -> jinja2.Environment:
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader("osler.server", ""), jinja2.PackageLoader("osler", "pages")])
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)


def page(
    desk: Desk, headers: Headers, problem: str = "", status: int = 200, more: dict[str, str] | None = None
) -> HTMLResponse:
    """The page that takes a file, with a problem on it if there was one."""
    nonce = secrets.token_urlsafe(16)
    host = headers.get("host", "")
    text = (
        _templates()
        .get_template("page.html")
        .render(
            nonce=nonce,
            problem=problem,
            questions=list(desk.made.recipe.tasks.values()),
            covariates=desk.made.recipe.covariates,
            names=desk.names,
            model=desk.made.sha256,
            limit=desk.limits.upload,
            address=f"http://{host}" if status != 421 else "",
        )
    )
    return HTMLResponse(text, status, {"Content-Security-Policy": _CSP.format(nonce=nonce), **(more or {})})


def _body(plan: CovariatePlan, names: Sequence[str]) -> dict[str, Any]:
    kinds = "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MP4, MOV, AVI or .npy"
    what = f"{kinds}; or a zip with one of them or with the files of one DICOM series"
    file = {"type": "string", "format": "binary", "description": what}
    fields: dict[str, Any] = {f"image.{name}": file for name in names} or {"file": file}
    for name in plan.columns:
        if plan.kinds[name] == "category":
            fields[f"covariate.{name}"] = {"type": "string", "enum": list(plan.categories[name])}
        else:
            low, high = plan.ranges[name]
            unit = plan.units.get(name, "")
            fields[f"covariate.{name}"] = {"type": "number", "minimum": low, "maximum": high, "description": unit}
    form = {"type": "object", "required": [] if names else ["file"], "properties": fields}
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def _responses() -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of the answers beside the diagnosis itself."""
    refused = {"application/json": {"schema": _PROBLEM}}
    answers: dict[int | str, dict[str, Any]] = {
        status: {"description": why, "content": refused} for status, why in _REFUSALS.items()
    }
    answers[200] = {"description": "the diagnosis", "content": {"text/html": {"schema": {"type": "string"}}}}
    return answers
