"""The demo's model, exported and served: answers say that they come from it."""

from __future__ import annotations

from tests.conftest import LiveServer
from tests.gateway.processes import Gateway


def test_the_demo_says_that_it_is_one(live_server: LiveServer, gateway: Gateway, photo: bytes) -> None:
    drawn = next((live_server.data / "val").iterdir()).read_bytes()
    with Gateway(live_server.grpc_url) as demo:
        assert demo.http.get("/readyz").json()["demo"] is True
        reply = demo.ask(drawn, "what is this?", data={"top": "3"}).json()
    [answer] = reply["answers"]
    assert answer["demo"] is True
    assert len(answer["candidates"]) == 3
    [other] = gateway.ask(photo, "what is this?").json()["answers"]
    assert other["demo"] is False
