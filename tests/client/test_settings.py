"""What a client is told when it is made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from vizwiz_client import AsyncVizwizClient, Tls, VizwizClient, WrongServer


@pytest.fixture(params=[VizwizClient, AsyncVizwizClient])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(
    "url", ["localhost:1", "127.0.0.1:65535", "[::1]:8001", "[fe80::1%eth0]:8001", "my-host.example:8001"]
)
def test_addresses(kind: Any, url: str) -> None:
    kind(url)


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost:8001", "localhost", "", "local host:8001", "grpc://x:1", ":8001", "localhost:", "::1:8001"),
        *(
            "localhost:8001/",
            "localhost:80a",
            "localhost:-1",
            "user@host:1",
            "localhost:8001\n",
            "localhost:٨",
            "[::1]",
        ),
    ],
)
def test_an_address_of_another_form(kind: Any, url: str) -> None:
    with pytest.raises(
        WrongServer, match=r"expected host:port without http://, such as localhost:8001 or \[::1\]:8001"
    ):
        kind(url)


@pytest.mark.parametrize("timeout_s", [0, -1, math.nan, math.inf, 1e10])
def test_a_timeout_is_over_zero(kind: Any, timeout_s: float) -> None:
    with pytest.raises(ValueError, match=f"got timeout_s={timeout_s}, expected a number of seconds over 0"):
        kind(timeout_s=timeout_s)


@pytest.mark.parametrize("retries", [-1, 1.5, True, None])
def test_retries_are_counted(kind: Any, retries: object) -> None:
    with pytest.raises(ValueError, match=f"got retries={retries}, expected a whole number, 0 or more"):
        kind(retries=retries)


@pytest.mark.parametrize("name", ["", "a b", "grpc-timeout", "key-bin", "schlüssel", "a:b"])
def test_names_of_headers(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"got the header '{name}', expected a name of letters"):
        kind(headers={name: "x"})


@pytest.mark.parametrize("value", ["a\nb", "schlüssel", b"bytes", 7])
def test_values_of_headers_are_not_repeated(kind: Any, value: object) -> None:
    with pytest.raises(ValueError, match="got a value of the header 'x-key' that is not printable ASCII") as caught:
        kind(headers={"X-Key": value})
    assert str(value) not in str(caught.value)


def test_certificate_and_key_come_together(tmp_path: Path) -> None:
    for name in ("cert", "key"):
        with pytest.raises(ValueError, match=rf"got Tls\({name}=...\) alone, expected cert and key together"):
            Tls(**{name: tmp_path / "x.pem"})


def test_unreadable_files_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Tls\(ca='.*none.pem'\): cannot be read \(No such file or directory\)"):
        Tls(ca=tmp_path / "none.pem")
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(ValueError, match=r"Tls\(ca='.*x.pem'\): not a PEM file; expected one with a line '-----BEGIN"):
        Tls(ca=str(tmp_path / "x.pem"))
