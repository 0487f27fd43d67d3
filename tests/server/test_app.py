"""The server says what `diagnose` says, to whom it should, and forgets it."""

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from osler import cache, data, diagnoses, diagnosis, layouts
from osler.case import Question
from osler.model import Model, Network
from osler.pseudonym import pseudonym
from osler.recipe import ImagePlan, NetworkPlan, Recipe
from osler.server import app
from osler.server.uploads import Limits

NAME = "Mustermann^Erika 1964"
HOME = "http://localhost:8765"
PAGE = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
Zipped = Callable[[dict[str, bytes]], bytes]


@dataclass(frozen=True)
class Client:
    """Asks an application without a network."""

    served: FastAPI

    def ask(self, method: str, path: str, **content: Any) -> httpx.Response:
        async def answer() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.served), base_url=HOME) as client:
                return await client.request(method, path, **content)

        return asyncio.run(answer())

    def get(self, path: str, **content: Any) -> httpx.Response:
        return self.ask("GET", path, **content)

    def post(self, path: str, **content: Any) -> httpx.Response:
        return self.ask("POST", path, **content)


@pytest.fixture
def client(made: Model) -> Client:
    return Client(app.build(made, Limits(upload=2**20, expanded=2**22, files=20)))


def files(content: bytes, name: str = f"{NAME}.png") -> dict[str, tuple[str, bytes]]:
    return {"file": (name, content)}


def directly(made: Model, path: Path) -> dict[str, object]:
    """What `osler diagnose` writes for a file."""
    case = data.read_case(layouts.single(path))
    content: dict[str, object] = json.loads(diagnoses.to_json(diagnosis.diagnose(made, case), case, made))
    return content


def dicom(pixels: NDArray[np.uint8], number: int = 0, name: str = NAME) -> bytes:
    """One slice of a series."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    slice_ = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID, slice_.Modality = "1.2.3", "1.2.4", "CT"
    slice_.PatientName, slice_.PatientID = name, name
    slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 2 * number], [1, 0, 0, 0, 1, 0]
    slice_.PixelSpacing, slice_.RescaleSlope, slice_.RescaleIntercept = [1, 1], 1, -1024
    slice_.Rows, slice_.Columns = pixels.shape
    slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
    slice_.BitsAllocated = slice_.BitsStored = 16
    slice_.HighBit, slice_.PixelData = 15, (pixels.astype(np.uint16) + number).tobytes()
    stream = io.BytesIO()
    slice_.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def probabilities(content: dict[str, object]) -> list[float]:
    answers = content["answers"]
    assert isinstance(answers, dict)
    return [finding["probability"] for answer in answers.values() for finding in answer["findings"]]


def test_the_answer_is_that_of_diagnose(client: Client, made: Model, png: bytes, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.png").write_bytes(png)
    response = client.post("/diagnoses", files=files(png))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    here, there = directly(made, tmp_path / f"{NAME}.png"), response.json()
    np.testing.assert_allclose(probabilities(there), probabilities(here), atol=1e-6, rtol=0)
    for content in (here, there):
        del content["seconds"], content["peak_mib"]
    assert there == here
    assert there["case"] == pseudonym(NAME)


def test_a_zipped_series_is_the_folder(
    client: Client, made: Model, pixels: NDArray[np.uint8], zipped: Zipped, tmp_path: Path
) -> None:
    # The order of the names is not that of the slices: positions decide.
    series = {f"{NAME}/{(5 * n) % 7}.dcm": dicom(pixels, n) for n in range(4)}
    (tmp_path / NAME).mkdir()
    for name, content in series.items():
        (tmp_path / name).write_bytes(content)
    there = client.post("/diagnoses", files=files(zipped(series), f"{NAME}.zip")).json()
    here = directly(made, tmp_path / NAME)
    np.testing.assert_allclose(probabilities(there), probabilities(here), atol=1e-6, rtol=0)
    assert (there["case"], there["notes"]) == (here["case"], here["notes"])


def test_a_browser_gets_the_page(client: Client, png: bytes) -> None:
    response = client.post("/diagnoses", files=files(png), headers=PAGE | {"Origin": HOME})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert pseudonym(NAME) in response.text
    assert "malignant" in response.text
    assert "Mustermann" not in response.text
    assert "script-src" not in response.headers["content-security-policy"]
    assert "<script" not in response.text


def test_the_first_page_works_alone(client: Client, made: Model) -> None:
    response = client.get("/", headers=PAGE)
    policy = response.headers["content-security-policy"]
    nonce = policy.partition("'nonce-")[2].partition("'")[0]
    assert len(nonce) > 16
    assert f'<script nonce="{nonce}">' in response.text
    assert nonce not in client.get("/").text
    assert "research use only" in response.text.lower()
    assert made.sha256 in response.text
    # A plain form, and nothing that is loaded from elsewhere.
    assert (
        '<form id="form" class="card drop" method="post" action="/diagnoses" enctype="multipart/form-data"'
        in response.text
    )
    assert "http" not in response.text.replace(HOME, "")


def test_health_says_which_model(client: Client, made: Model) -> None:
    assert client.get("/health").json() == {"ready": True, "model": made.sha256, "busy": 0}


def test_openapi_describes_what_comes(client: Client, png: bytes) -> None:
    description = client.get("/openapi.json").json()
    post = description["paths"]["/diagnoses"]["post"]
    assert "multipart/form-data" in post["requestBody"]["content"]
    assert {"200", "403", "413", "422", "500", "503"} <= set(post["responses"])
    schema = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Diagnosis"}
    types = {name: set(part["properties"]) for name, part in description["components"]["schemas"].items()}
    answer = client.post("/diagnoses", files=files(png)).json()
    assert set(answer) == types["Diagnosis"]
    assert set(answer["answers"]["signs"]) == types["Answer"]
    assert set(answer["answers"]["signs"]["findings"][0]) == types["Finding"]


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"", "a.png", "0 bytes"),
        (b"no image at all", "a.png", "unknown format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "a.png", "broken"),
        (b"PK\x03\x04" + bytes(50), "a.zip", "zip is broken"),
        (bytes(400), "a.nii", "NIfTI"),
        (bytes(128) + b"DICM" + bytes(50), "a.dcm", "DICOM"),
    ],
)
def test_a_problem_is_a_sentence_without_names(
    content: bytes, name: str, says: str, client: Client, private: Path
) -> None:
    response = client.post("/diagnoses", files=files(content, f"{NAME} {name}"))
    assert response.status_code == 422
    assert set(response.json()) == {"problem"}
    assert says in response.json()["problem"]
    page = client.post("/diagnoses", files=files(content, f"{NAME} {name}"), headers=PAGE)
    assert page.status_code == 422
    assert says in page.text
    for text in (response.text, page.text):
        assert "Mustermann" not in text
        assert str(private) not in text
        assert "Traceback" not in text


def test_names_are_neither_kept_nor_logged(
    client: Client, png: bytes, pixels: NDArray[np.uint8], private: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert client.post("/diagnoses", files=files(png)).status_code == 200
        assert client.post("/diagnoses", files=files(dicom(pixels), f"{NAME}.dcm"), headers=PAGE).status_code == 200
        assert client.post("/diagnoses", files=files(dicom(pixels)[:700], f"{NAME}.dcm")).status_code == 422
        assert client.get(f"/{NAME}.png").status_code == 404
    assert not list(private.iterdir())
    own = [json.loads(record.getMessage()) for record in caplog.records if record.name == "osler.server"]
    assert [line["status"] for line in own] == [200, 200, 422, 404]
    assert {line.get("case") for line in own} == {pseudonym(NAME), None}
    assert own[-1]["route"] == "other"
    assert not [record for record in caplog.records if record.name != "httpx" and "Mustermann" in record.getMessage()]


@pytest.mark.parametrize("page", [True, False])
def test_nothing_that_is_computed_of_an_image_is_kept(
    page: bool, png: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N4 keeps its fields on the disk, of images of this user; those of a visitor leave nothing."""
    pytest.importorskip("SimpleITK")
    monkeypatch.setenv("OSLER_CACHE", "1")
    plan = Recipe(
        ImagePlan((1, 32, 32), intensity="image", modality="MR", prepare=("n4",)),
        {"diagnosis": Question("diagnosis", "multiclass", ("benign", "malignant"))},
        NetworkPlan("reference_cnn", pooling="neck"),
    )
    made = Model(plan, [Network(plan).eval()])
    prepared = Client(app.build(made))
    assert prepared.post("/diagnoses", files=files(png), headers=PAGE if page else {}).status_code == 200
    cache.settle()
    assert cache.contents().files == 0
    # Without the server the same image leaves its field.
    (tmp_path / "image.png").write_bytes(png)
    directly(made, tmp_path / "image.png")
    cache.settle()
    assert cache.contents().files == 1


def test_what_is_unexpected_has_a_number_and_no_traceback(
    client: Client, png: bytes, private: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"about {NAME}")

    monkeypatch.setattr(diagnosis, "diagnose", broken)
    with caplog.at_level(logging.INFO, "osler.server"):
        response = client.post("/diagnoses", files=files(png))
    assert response.status_code == 500
    assert response.headers["x-content-type-options"] == "nosniff"
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "osler.server"]
    assert line["id"] in response.json()["problem"]
    assert (line["error"], line["status"]) == ("RuntimeError", 500)
    assert any("broken" in place for place in line["at"])
    assert NAME not in response.text + caplog.text
    assert not list(private.iterdir())


def test_too_much_is_refused_however_it_comes(client: Client, zipped: Zipped, private: Path) -> None:
    stated = client.post("/diagnoses", files=files(bytes(2**21)))
    assert (stated.status_code, "larger than 1 MiB" in stated.json()["problem"]) == (413, True)

    async def pieces() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(3 * 16):
            yield bytes(2**16)
        yield b"\r\n--x--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    unstated = client.post("/diagnoses", content=pieces(), headers=kind)
    assert unstated.status_code == 413
    bomb = client.post("/diagnoses", files=files(zipped({"a": bytes(2**23)}), "a.zip"))
    assert (bomb.status_code, "decompresses" in bomb.json()["problem"]) == (413, True)
    many = client.post("/diagnoses", files=files(zipped({str(n): b"x" for n in range(21)}), "a.zip"))
    assert (many.status_code, "more than 20 files" in many.json()["problem"]) == (413, True)
    assert not list(private.iterdir())


def test_what_is_no_single_file_is_refused(client: Client, png: bytes) -> None:
    for arguments in (
        {"content": png},
        {"data": {"file": "text"}},
        {"files": {"other": ("a.png", png)}},
        {"files": [("file", ("a.png", png)), ("file", ("b.png", png))]},
        {"files": {"file": ("", b"")}},
        {"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data"}},
    ):
        response = client.post("/diagnoses", **arguments)
        assert response.status_code == 400, arguments
        assert "file" in response.json()["problem"]


@pytest.fixture
def of_two() -> Model:
    """It looks at two images of a case."""
    plan = Recipe(
        ImagePlan((1, 32, 32), intensity="image", modalities=("t1", "t2 (fat)")),
        {"diagnosis": Question("diagnosis", "multiclass", ("benign", "malignant"))},
        NetworkPlan("reference_cnn", pooling="neck"),
    )
    return Model(plan, [Network(plan).eval()])


def test_of_several_images_any_can_be_sent_each_by_its_name(
    of_two: Model, png: bytes, pixels: NDArray[np.uint8], private: Path, tmp_path: Path
) -> None:
    client, other = Client(app.build(of_two)), dicom(pixels.T)
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "b.dcm").write_bytes(other)
    sent = {"image.t1": ("a.png", png), "image.t2 (fat)": ("b.dcm", other)}
    here = {"t1": tmp_path / "a.png", "t2 (fat)": tmp_path / "b.dcm"}
    seen = []
    for names in (["t1", "t2 (fat)"], ["t1"], ["t2 (fat)"]):
        case = data.read_case_at({name: here[name] for name in names})
        direct = json.loads(diagnoses.to_json(diagnosis.diagnose(of_two, case), case, of_two))
        # As a browser sends a form in which a field was left empty.
        left = {f"image.{name}": ("", b"") for name in here if name not in names}
        response = client.post("/diagnoses", files={f"image.{n}": sent[f"image.{n}"] for n in names} | left)
        assert response.status_code == 200, response.text
        np.testing.assert_allclose(probabilities(response.json()), probabilities(direct), atol=1e-6, rtol=0)
        assert response.json()["notes"] == direct["notes"]
        seen.append(probabilities(direct))
    assert seen[0] != seen[1] != seen[2]
    page = client.post("/diagnoses", files=sent, headers=PAGE)
    assert page.status_code == 200 and "malignant" in page.text
    assert not list(private.iterdir())


def test_of_several_images_what_is_sent_is_known(of_two: Model, png: bytes) -> None:
    client = Client(app.build(of_two))
    fields = client.get("/openapi.json").json()["paths"]["/diagnoses"]["post"]["requestBody"]["content"]
    assert list(fields["multipart/form-data"]["schema"]["properties"]) == ["image.t1", "image.t2 (fat)"]
    text = client.get("/", headers=PAGE).text
    assert 'name="image.t1" type="file"' in text and "Diagnosis of one case" in text
    for sent, says in (
        ({"file": ("a.png", png)}, "choose one, as image.t1 or image.t2 (fat)"),
        ({"image.t1": ("a.png", png), "image.t3": ("b.png", png)}, "'image.t3' is no image that the model looks at"),
        ([("image.t1", ("a.png", png)), ("image.t1", ("b.png", png))], "one image came twice"),
        ([("image.t1", (f"{n}.png", png)) for n in range(3)], "one file for each of the fields image.t1"),
        ({"image.t1": ("", b"")}, "no file came"),
    ):
        response = client.post("/diagnoses", files=sent)
        assert response.status_code == 400, says
        assert says in response.json()["problem"]


def test_what_several_files_decompress_to_has_one_limit(of_two: Model, zipped: Zipped, private: Path) -> None:
    client = Client(app.build(of_two, Limits(upload=2**20, expanded=2**20, files=20)))
    series = ("a.zip", zipped({"a.dcm": dicom(np.zeros((600, 600), np.uint8))}))
    for name in ("image.t1", "image.t2 (fat)"):
        assert client.post("/diagnoses", files={name: series}).status_code == 200
    both = client.post("/diagnoses", files={"image.t1": series, "image.t2 (fat)": series})
    assert (both.status_code, "decompresses" in both.json()["problem"]) == (413, True)
    assert not list(private.iterdir())


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:3000", "https://localhost:8765"])
def test_other_sites_are_refused(origin: str, client: Client, png: bytes) -> None:
    for headers in ({"Origin": origin}, {"Origin": origin} | PAGE):
        response = client.post("/diagnoses", files=files(png), headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    assert client.ask("OPTIONS", "/diagnoses", headers={"Origin": origin}).status_code == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "0.0.0.0"],
)
def test_other_names_for_this_machine_are_refused(host: str, client: Client, png: bytes) -> None:
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        assert client.get("/", headers=headers).status_code == 421
        assert client.post("/diagnoses", files=files(png), headers=headers).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8765", "[::1]:8765", "LOCALHOST:9"])
def test_its_own_page_is_let_in(host: str, client: Client, png: bytes) -> None:
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert client.post("/diagnoses", files=files(png), headers=headers).status_code == 200


def test_pages_and_refusals_carry_the_headers(client: Client, png: bytes) -> None:
    answers = (
        client.get("/"),
        client.get("/nothing", headers=PAGE),
        client.get("/diagnoses"),
        client.post("/diagnoses", files=files(png)),
        client.post("/diagnoses", files=files(png), headers=PAGE),
        client.get("/", headers={"Host": "evil.example"} | PAGE),
    )
    assert [answer.status_code for answer in answers] == [200, 404, 405, 200, 200, 421]
    for answer in answers:
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html", True),
        (PAGE["Accept"], True),
        ("text/html;q=0.5, application/json", False),
        ("application/json;q=0.1, text/html;level=1;q=0.9", True),
        ("text/html;q=none", False),
    ],
)
def test_what_is_preferred_is_sent(accept: str, page: bool) -> None:
    assert app.wants_page(accept) is page


def test_one_at_a_time_and_few_wait(made: Model, png: bytes) -> None:
    """A request that is still sending holds the only place; a second one is sent away, a third one let in later."""

    async def story() -> list[httpx.Response]:
        served = app.build(made, Limits(waiting=0))
        began, go = asyncio.Event(), asyncio.Event()
        request = httpx.Request("POST", HOME, files=files(png))
        body = request.read()

        async def slowly() -> AsyncIterator[bytes]:
            yield body[:100]
            began.set()
            await go.wait()
            yield body[100:]

        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url=HOME) as client:
            kind = {"Content-Type": request.headers["Content-Type"]}
            first = asyncio.create_task(client.post("/diagnoses", content=slowly(), headers=kind))
            await began.wait()
            second, health = await client.post("/diagnoses", files=files(png)), await client.get("/health")
            go.set()
            return [await first, second, health, await client.post("/diagnoses", files=files(png))]

    first, second, health, third = asyncio.run(story())
    assert [first.status_code, second.status_code, third.status_code] == [200, 503, 200]
    assert int(second.headers["retry-after"]) > 0
    assert "waiting" in second.json()["problem"]
    assert health.json()["busy"] == 1


def test_those_who_wait_are_answered_one_by_one(made: Model, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = 0, 0
    real = diagnosis.diagnose

    def counted(*arguments: object) -> object:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            return real(*arguments)  # type: ignore[arg-type]
        finally:
            inside -= 1

    monkeypatch.setattr(diagnosis, "diagnose", counted)

    async def story() -> list[httpx.Response]:
        served = app.build(made, Limits(waiting=4))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url=HOME) as client:
            return await asyncio.gather(*(client.post("/diagnoses", files=files(png)) for _ in range(5)))

    answers = asyncio.run(story())
    assert [answer.status_code for answer in answers] == [200] * 5
    assert most == 1
