"""POST /v1/ask: equal to the client's answers, and a typed error for every fault of a request."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.client.small_server import SmallServer
from tests.gateway.processes import Gateway
from vizwiz_client import VizwizClient
from vizwiz_gateway import page
from vizwiz_gateway.app import create_app
from vizwiz_gateway.problems import Problem
from vizwiz_gateway.service import Service
from vizwiz_gateway.settings import Settings


def test_answers_are_the_clients(gateway: Gateway, triton: SmallServer, photo: bytes) -> None:
    questions = ["what is this?", "what color is it?"]
    response = gateway.ask(photo, *questions, data={"top": "3"})
    with VizwizClient(triton.grpc_url) as client:
        expected = [answer.to_dict() for answer in client.ask_batch([(photo, q) for q in questions], top=3)]
    assert response.status_code == 200
    answers = response.json()["answers"]
    for answer in (*answers, *expected):
        del answer["timings"], answer["request_id"]
    assert answers == expected
    assert answers[0] != answers[1]


def test_a_photo_is_turned_upright(gateway: Gateway, photo: bytes) -> None:
    image = Image.open(io.BytesIO(photo))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(file, "PNG", exif=exif)
    upright = io.BytesIO()
    image.save(upright, "PNG")
    answers = [
        gateway.ask(data, "what is this?").json()["answers"][0] for data in (file.getvalue(), upright.getvalue())
    ]
    assert answers[0]["candidates"] == answers[1]["candidates"]


@pytest.mark.parametrize(
    ("files", "data", "status", "code"),
    [
        ({"photo": ("a.txt", b"no photo")}, {"question": "what is this?"}, 415, "not-a-photo"),
        ({"photo": ("a.pdf", b"%PDF-1.4")}, {"question": "what is this?"}, 415, "not-a-photo"),
        ({"photo": ("a.jpg", b"")}, {"question": "what is this?"}, 415, "not-a-photo"),
        ({"other": ("a.jpg", b"x")}, {"question": "what is this?"}, 422, "no-photo"),
        ("photo", {}, 422, "no-question"),
        ("photo", {"question": "  "}, 422, "no-question"),
        ("photo", {"question": "é" * 5_001}, 422, "no-question"),
        ("photo", {"question": "x" * 30_000}, 413, "too-large"),
        ("photo", {"question": ["why?"] * 17}, 422, "too-many-questions"),
        ("photo", {"question": "why?", "top": "0"}, 422, "bad-top"),
        *(
            ("photo", {"question": "why?", "top": top}, 422, "bad-top")
            for top in ("many", "51", "٣", "00000000199999", "000000001" + 5_000 * "9")
        ),
        ({"photo": ("a.jpg", bytes(26_000_000))}, {"question": "what is this?"}, 413, "too-large"),
    ],
)
def test_a_bad_request_gets_a_problem(gateway: Gateway, photo: bytes, files, data, status: int, code: str) -> None:
    files = {"photo": ("img.jpg", photo)} if files == "photo" else files
    response = gateway.http.post("/v1/ask", files=files, data=data, headers={"x-request-id": "mine-1"})
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["status"], body["code"], body["request_id"]) == (status, code, "mine-1")
    assert body["detail"]


def test_a_body_that_is_no_form(gateway: Gateway) -> None:
    assert gateway.http.post("/v1/ask", json={"question": "why?"}).json()["code"] == "not-a-form"
    form = {"content-type": "multipart/form-data; boundary=x"}
    bodies = (b"", b"--x\r\n", b'--x\r\ncontent-disposition: form-data; name="photo"\r\n\r\nabc', b"nonsense")
    for body in bodies:
        assert gateway.http.post("/v1/ask", content=body, headers=form).json()["code"] == "malformed", body


def test_a_photo_without_its_at_sign(gateway: Gateway, photo: bytes) -> None:
    """Curl's `photo=img.jpg` sends the name; a photo that a program sends without a file name is answered."""
    for content, status in ((b"img.jpg", 415), (photo, 200)):
        response = gateway.http.post("/v1/ask", files={"photo": (None, content), "question": (None, b"what is this?")})
        assert response.status_code == status
        if status != 200:
            assert response.json()["detail"].endswith("with curl, write photo=@img.jpg")


def test_two_photos(gateway: Gateway, photo: bytes) -> None:
    """One taken and one chosen, for example; the page's form has the question after them, and keeps it."""
    files = [("photo", ("a.jpg", photo)), ("photo", ("b.jpg", photo)), ("question", (None, b"a rare question"))]
    assert gateway.http.post("/v1/ask", files=files).json()["code"] == "several-photos"
    page = gateway.http.post("/", files=files)
    assert page.status_code == 400
    assert "There are two photos" in page.text
    assert 'value="a rare question"' in page.text


def test_a_question_after_an_empty_photo_is_kept(gateway: Gateway) -> None:
    page = gateway.http.post("/", files={"photo": ("a.jpg", b""), "question": (None, b"a rare question")})
    assert page.status_code == 415
    assert 'value="a rare question"' in page.text


def test_what_came_is_said(gateway: Gateway, photo: bytes) -> None:
    """Wrong fields, an empty file, another type of body, another method."""

    def detail(**request: Any) -> str:
        return str(gateway.http.post("/v1/ask", **request).json()["detail"])

    asked = {"question": (None, b"why?")}
    assert (
        detail(files={"image": ("a.jpg", photo), **asked}) == "got image, question, expected a photo in the field photo"
    )
    blank = detail(files={"photo": ("a.jpg", photo), "question": (None, b" ")})
    assert blank == "got photo, question, expected a question in the field question, and not a blank one"
    assert detail(files={"photo": ("a.jpg", b""), **asked}) == "the photo is an empty file; send another one"
    assert detail(files={"photo": ("", b""), "photo ": ("a.jpg", photo), **asked}).startswith(
        "got photo, photo , question"
    )
    assert detail(json={}).startswith("got a body of type application/json, expected multipart/form-data")
    refused = gateway.http.get("/v1/ask")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert refused.json()["detail"] == "got GET; only POST is served at this path; see /openapi.json"
    assert gateway.http.get("/nowhere").json()["detail"].startswith("got GET; nothing is served at this path")


def test_request_ids(gateway: Gateway, photo: bytes) -> None:
    answer = gateway.ask(photo, "what is this?", headers={"x-request-id": "one.2_three"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "one.2_three"
    for bad in ("", "a b", "x" * 65, "<script>"):
        made = gateway.http.get("/healthz", headers={"x-request-id": bad}).headers["x-request-id"]
        assert made != bad
        assert len(made) == 16
    assert gateway.http.get("/nowhere").json()["request_id"]


def test_a_host_name_that_is_not_allowed(gateway: Gateway) -> None:
    port = httpx.URL(gateway.url).port
    for host, status in {"evil.example": 421, f"localhost:{port}": 200, "192.168.1.2": 200, "[::1]:8080": 200}.items():
        assert gateway.http.get("/", headers={"host": host}).status_code == status, host


def test_the_page_answers_without_javascript(gateway: Gateway, photo: bytes) -> None:
    assert 'method="post" action="/" enctype="multipart/form-data"' in gateway.http.get("/").text
    response = gateway.http.post("/", files={"photo": ("a.jpg", photo)}, data={"question": "what is this?"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    refused = gateway.http.post("/", files={"photo": ("a.jpg", b"none")}, data={"question": "a <b> question"})
    assert refused.status_code == 415
    assert "a &lt;b&gt; question" in refused.text


@pytest.mark.parametrize(
    ("detail", "sentence"),
    [
        (
            "the photo: the file is HEIC, expected a JPEG; export it as JPEG, or install pillow-heif",
            "is a HEIC file, which",
        ),
        ("the photo: the picture is 1 x 1 pixels, expected at least 16", "cannot be used. The picture is 1 x 1 pixels"),
    ],
)
def test_the_page_explains_photos_that_are_refused(detail: str, sentence: str) -> None:
    refusal = Problem(415, "not-a-photo", "", detail)
    shown = page.render(page.PageState(False, 1, 1, questions=["why?"], problem=refusal))
    assert f"This photo {sentence}" in shown
    assert "pillow-heif" not in shown


def test_a_fault_of_the_gateway_is_a_page_for_people_and_json_for_programs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise MemoryError("what is this?")

    monkeypatch.setattr(Service, "ask", fail)
    transport = httpx.ASGITransport(create_app(Settings()))

    async def post(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, files={"photo": ("a.jpg", b"x")}, data={"question": "what is this?"})

    shown, answered = asyncio.run(post("/")), asyncio.run(post("/v1/ask"))
    assert (shown.status_code, shown.headers["content-type"]) == (500, "text/html; charset=utf-8")
    assert "The server failed. Press Ask again in a minute." in shown.text
    assert 'value="what is this?"' in shown.text
    assert (answered.status_code, answered.json()["code"]) == (500, "internal")
    assert [record.message.count("MemoryError at ") for record in caplog.records] == [1, 1]
    assert "what is this?" not in caplog.text
