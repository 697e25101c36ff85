"""The demo's model, exported and served: answers say that they come from it."""

from __future__ import annotations

from tests.conftest import LiveServer
from tests.gateway.processes import Gateway


def test_the_demo_says_that_it_is_one(live_server: LiveServer, gateway: Gateway, photo: bytes) -> None:
    drawn = next((live_server.data / "val").iterdir()).read_bytes()
    with Gateway(live_server.grpc_url) as demo:
        assert demo.http.get("/readyz").json()["demo"] is True
        reply = demo.ask(drawn, "what is this?", data={"top": "3"}).json()
    assert reply["demo"] is True
    assert len(reply["answers"][0]["candidates"]) == 3
    assert gateway.ask(photo, "what is this?").json()["demo"] is False
