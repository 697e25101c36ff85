"""Who may ask: tokens, origins, and the headers that protect the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.small_server import SmallServer
from tests.gateway.processes import Gateway
from vizwiz_gateway.page import CSP

TOKEN = "a-token-of-some-length"
ORIGIN = "https://example.org"


@pytest.fixture(scope="module")
def guarded(triton: SmallServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a token, for the pages of one other site."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(f"{TOKEN}\n")
    flags = (f"--token-file={file}", f"--allowed-origin={ORIGIN}", "--allowed-host=ask.example.org")
    with Gateway(triton.grpc_url, *flags) as gateway:
        yield gateway


def test_the_token(guarded: Gateway, photo: bytes) -> None:
    bearer, wrong = {"authorization": f"Bearer {TOKEN}"}, {"authorization": f"Bearer {TOKEN}x"}
    for headers in ({}, wrong, {"authorization": TOKEN}, {"authorization": "Basic !"}, {"authorization": "Bearer x"}):
        refused = guarded.ask(photo, "what is this?", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "no-token")
        assert refused.headers["www-authenticate"] == "Bearer"
    assert guarded.ask(photo, "what is this?", headers=bearer).status_code == 200

    for path in ("/", "/static/page.css", "/openapi.json"):
        refused = guarded.http.get(path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert guarded.http.get(path, auth=("anyone", TOKEN)).status_code == 200
    assert guarded.http.get("/", auth=("anyone", "x")).status_code == 401
    # the page's script sends what the browser sends by itself
    assert guarded.ask(photo, "what is this?", auth=("anyone", TOKEN)).status_code == 200


def test_probes_need_no_token(guarded: Gateway) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert guarded.http.get(path).status_code == 200, path
        head = guarded.http.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert guarded.http.post(path).headers["allow"] == "GET, HEAD", path


def test_the_token_of_the_environment(triton: SmallServer) -> None:
    with Gateway(triton.grpc_url, VIZWIZ_GATEWAY_TOKEN=TOKEN) as gateway:
        assert gateway.http.get("/").status_code == 401
        assert gateway.http.get("/", auth=("", TOKEN)).status_code == 200
        assert TOKEN not in Path(f"/proc/{gateway.pid}/cmdline").read_text()


def test_pages_of_other_sites(guarded: Gateway, gateway: Gateway, photo: bytes) -> None:
    headers = {"origin": ORIGIN, "authorization": f"Bearer {TOKEN}", "sec-fetch-site": "cross-site"}
    preflight = {"origin": ORIGIN, "access-control-request-method": "POST"}
    preflight["access-control-request-headers"] = "authorization"
    assert guarded.http.options("/v1/ask", headers=preflight).headers["access-control-allow-origin"] == ORIGIN
    answer = guarded.ask(photo, "what is this?", headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)

    other = headers | {"origin": "https://evil.example"}
    refused = guarded.ask(photo, "what is this?", headers=other)
    assert (refused.status_code, refused.json()["code"]) == (403, "cross-site")
    assert "access-control-allow-origin" not in refused.headers
    # none are allowed by default
    assert gateway.ask(photo, "what is this?", headers=headers).status_code == 403
    assert gateway.http.options("/v1/ask", headers=preflight).status_code == 405
    same = {"origin": "null", "sec-fetch-site": "same-origin"}  # the page's own form
    assert gateway.ask(photo, "what is this?", headers=same).status_code == 200


def test_a_page_of_an_allowed_site_can_read_refusals(guarded: Gateway) -> None:
    for headers, code in (({}, "no-token"), ({"host": "evil.example"}, "unknown-host")):
        refused = guarded.http.post("/v1/ask", headers={"origin": ORIGIN, **headers})
        assert refused.json()["code"] == code
        assert refused.headers["access-control-allow-origin"] == ORIGIN
        assert "access-control-allow-origin" not in guarded.http.post("/v1/ask", headers=headers).headers


def test_a_host_name_that_is_allowed(guarded: Gateway) -> None:
    assert guarded.http.get("/healthz", headers={"host": "ask.example.org"}).status_code == 200
    assert guarded.http.get("/healthz", headers={"host": "other.example.org"}).status_code == 421


def test_every_response_has_the_security_headers(gateway: Gateway) -> None:
    for path, status in {"/": 200, "/static/page.css": 200, "/healthz": 200, "/nowhere": 404, "/metrics": 200}.items():
        response = gateway.http.get(path)
        assert response.status_code == status
        assert response.headers["content-security-policy"] == CSP
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in response.headers
        assert "server" not in response.headers
    assert gateway.http.get("/", headers={"host": "evil.example"}).headers["content-security-policy"] == CSP


def test_no_documentation_page_of_a_third_party(gateway: Gateway) -> None:
    assert [gateway.http.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


def test_openapi_describes_what_is_sent(gateway: Gateway, photo: bytes) -> None:
    schemas = gateway.http.get("/openapi.json").json()
    operation = schemas["paths"]["/v1/ask"]["post"]
    assert set(operation["responses"]) == {*"200 400 401 403 408 413 415 421 422 500 502 503 504".split()}
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"photo", "question", "top"}
    models = schemas["components"]["schemas"]
    reply = gateway.ask(photo, "what is this?").json()
    assert set(models["AskBody"]["properties"]) == set(reply)
    assert set(models["AnswerBody"]["properties"]) == set(reply["answers"][0])
    assert set(models["TimingsBody"]["properties"]) == set(reply["answers"][0]["timings"])
    problem = operation["responses"]["415"]["content"]["application/problem+json"]["schema"]
    assert set(problem["properties"]) == set(gateway.ask(b"none", "what is this?").json())


def test_metrics(triton: SmallServer, photo: bytes) -> None:
    with Gateway(triton.grpc_url) as gateway:
        answers = gateway.ask(photo, "what is this?", "why?").json()["answers"]
        assert gateway.ask(b"none", "what is this?").status_code == 415
        text = gateway.http.get("/metrics").text
        declined = sum(answer["declined"] for answer in answers)
        for line in (
            'vizwiz_gateway_requests_total{outcome="answered"} 1.0',
            'vizwiz_gateway_requests_total{outcome="not-a-photo"} 1.0',
            f'vizwiz_gateway_answers_total{{declined="true"}} {float(declined)}',
            f'vizwiz_gateway_answers_total{{declined="false"}} {2.0 - declined}',
            "vizwiz_gateway_decode_seconds_count 1.0",
            "vizwiz_gateway_queue_seconds_count 1.0",
            "vizwiz_gateway_triton_seconds_count 1.0",
            "vizwiz_gateway_admitted 0.0",
        ):
            assert line in text.splitlines(), text
        assert "process_resident_memory_bytes" in text
