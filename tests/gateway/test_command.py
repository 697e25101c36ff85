"""``vizwiz-gateway``: flags, environment, and what it says when it cannot start."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vizwiz_gateway.settings import Settings, SettingsError

COMMAND = [sys.executable, "-m", "vizwiz_gateway"]


def test_flags_come_before_the_environment() -> None:
    environment = {
        "VIZWIZ_GATEWAY_TRITON": "triton:8001",
        "VIZWIZ_GATEWAY_PORT": "90",
        "VIZWIZ_GATEWAY_ALLOWED_HOSTS": "a.example, b.example",
        "VIZWIZ_GATEWAY_ANSWER_TIMEOUT_S": "1.5",
        "VIZWIZ_GATEWAY_TOKEN": "",
    }
    settings = Settings.from_environment(environment, port=80, host=None)
    assert (settings.triton, settings.port, settings.host) == ("triton:8001", 80, "127.0.0.1")
    assert settings.allowed_hosts == ("a.example", "b.example")
    assert settings.answer_timeout_s == 1.5
    assert settings.token is None


def test_the_token_is_not_printed() -> None:
    assert "secret" not in repr(Settings(token="secret-token"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "many"), ("PORT", "70000"), ("MAX_REQUESTS", "0"), ("UPLOAD_TIMEOUT_S", "-1"), ("DECODE_THREADS", "1.5")],
)
def test_an_invalid_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"(?i)got .*{name}.*{value}"):
        Settings.from_environment({f"VIZWIZ_GATEWAY_{name}": value})


def test_it_says_why_it_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = {
            "cannot listen at 127.0.0.1": [f"--port={taken.getsockname()[1]}"],
            "got the address 'http://x', expected host:port": ["--triton=http://x"],
            "is empty, expected the token": [f"--token-file={tmp_path / 'empty'}"],
            "cannot be read": [f"--token-file={tmp_path / 'none'}"],
            "got max_requests 0, expected": ["--max-requests=0"],
        }
        for expected, flags in cases.items():
            done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stdout) == (1, "")
            assert expected in done.stderr
            assert "Traceback" not in done.stderr


def test_help_names_every_setting() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=True)
    for flag in ("triton", "host", "port", "allowed-host", "allowed-origin", "token-file", "max-photo-bytes"):
        assert f"--{flag} " in done.stdout
    for flag in ("max-requests", "decode-threads", "upload-timeout", "answer-timeout"):
        assert f"--{flag} " in done.stdout


def test_it_names_the_extra_that_is_not_installed() -> None:
    program = "import sys; sys.modules['uvicorn'] = None; from vizwiz_gateway.__main__ import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "uvicorn is not installed; install the extra: pip install 'vizwiz-client[gateway]'" in done.stderr
