"""``vizwiz-gateway``: flags, environment, and what it says when it cannot start."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vizwiz_gateway.cli import OPTIONS, read_settings
from vizwiz_gateway.settings import Settings, SettingsError

COMMAND = [sys.executable, "-m", "vizwiz_gateway"]


def test_flags_come_before_the_environment() -> None:
    environment = {
        "VIZWIZ_GATEWAY_TRITON": "triton:8001",
        "VIZWIZ_GATEWAY_PORT": "90",
        "VIZWIZ_GATEWAY_ALLOWED_HOST": "a.example, b.example",
        "VIZWIZ_GATEWAY_ALLOWED_ORIGIN": "https://a.example",
        "VIZWIZ_GATEWAY_ANSWER_TIMEOUT": "1.5",
    }
    flags = {"port": "80", "host": None, "allowed_origins": ["https://b.example", "https://c.example:8443"]}
    settings = read_settings(flags, environment)
    assert (settings.triton, settings.port, settings.host) == ("triton:8001", 80, "127.0.0.1")
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.allowed_origins == ("https://b.example", "https://c.example:8443")
    assert settings.answer_timeout_s == 1.5
    assert settings.token is None


def test_every_setting_has_a_flag() -> None:
    assert {option.setting for option in OPTIONS} == {field.name for field in fields(Settings)}


def test_the_token_is_not_printed() -> None:
    assert "secret" not in repr(Settings(token="secret-token"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("PORT", "many"), ("PORT", "70000"), ("PORT", "9" * 5_000), ("MAX_REQUESTS", "0"), ("DECODE_THREADS", "1.5")),
        *(("UPLOAD_TIMEOUT", "-1"), ("UPLOAD_TIMEOUT", "inf"), ("ANSWER_TIMEOUT", "nan"), ("MAX_PHOTO_BYTES", "")),
        *(("ALLOWED_ORIGIN", "*"), ("ALLOWED_ORIGIN", "https://example.org/"), ("ALLOWED_ORIGIN", "example.org")),
        *(("ALLOWED_HOST", "example.org:80"), ("ALLOWED_HOST", "*"), ("HOST", ""), ("TOKEN_FILE", "")),
    ],
)
def test_an_invalid_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=r"got .*, expected"):
        read_settings({}, {f"VIZWIZ_GATEWAY_{variable}": value})


@pytest.mark.parametrize("token", ["", "two words", "pässwort", "line\nend"])
def test_a_token_that_no_header_can_carry_is_refused(token: str, tmp_path: Path) -> None:
    """An empty one too: it would let everybody in."""
    (tmp_path / "token").write_text(token, encoding="utf-8")
    for flags, variables in (({"token": str(tmp_path / "token")}, {}), ({}, {"VIZWIZ_GATEWAY_TOKEN": token})):
        with pytest.raises(SettingsError, match="got a token that is empty or has other characters") as caught:
            read_settings(flags, variables)
        assert not token or token not in str(caught.value)


def test_an_unknown_variable_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"_UPLOAD_TIMEOUT_S, expected one of .*VIZWIZ_GATEWAY_UPLOAD_TIMEOUT$"):
        read_settings({}, {"VIZWIZ_GATEWAY_UPLOAD_TIMEOUT_S": "5"})


def test_it_says_why_it_cannot_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = {
            "cannot listen at 127.0.0.1": (1, f"--port={taken.getsockname()[1]}"),
            "got the address 'http://x', expected host:port": (2, "--triton=http://x"),
            "expected a file that holds the token": (2, f"--token-file={tmp_path / 'none'}"),
            "got --host=a..b, expected a host name or an IP address": (2, "--host=a..b"),
            "got port 99999, expected 0 to 65535": (2, "--port=99999"),
            "got --port='many', expected a whole number": (2, "--port=many"),
        }
        for expected, (code, flag) in cases.items():
            done = subprocess.run([*COMMAND, flag], capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout) == (code, "")
            assert expected in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize("limits", ["vizwiz_gateway.cli._set_limits()", "serving.launch.limit()"])
def test_a_core_dump_is_limited_to_a_byte(limits: str) -> None:
    """A pipe in core_pattern ignores a limit of 0 bytes; where the hard limit is 0, only root may raise it."""
    program = f"""
import resource, serving.launch, vizwiz_gateway.cli
resource.setrlimit(resource.RLIMIT_CORE, ({{0}}, {{0}}))
{limits}
assert resource.getrlimit(resource.RLIMIT_CORE) == ({{1}}, {{1}}), resource.getrlimit(resource.RLIMIT_CORE)
"""
    for before, after in ((4096, 1), (0, 0)):
        subprocess.run([sys.executable, "-c", program.format(before, after)], check=True, timeout=60, cwd=ROOT)


def test_it_names_the_extra_that_is_not_installed() -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from vizwiz_gateway.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "uvicorn is not installed; in the checkout, pip install '.[gateway]'" in done.stderr
