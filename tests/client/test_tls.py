"""An encrypted connection to a real Triton, with certificates of an authority that lives as long as this test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from PIL import Image

from tests.client.conftest import Connect
from tests.client.small_server import SmallServer
from vizwiz_client import ServerUnavailable, Tls

GREEN = Image.new("RGB", (40, 30), (0, 200, 0))


@dataclass(frozen=True)
class Files:
    """Certificates and keys, in PEM."""

    ca: Path
    server_cert: Path
    server_key: Path
    client_cert: Path
    client_key: Path
    other_ca: Path  # has signed none of them


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    authority, other = trustme.CA(), trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client@example.org")
    made = Files(**{name: folder / f"{name}.pem" for name in Files.__dataclass_fields__})
    for path, pem in (
        (made.ca, authority.cert_pem),
        (made.server_cert, server.cert_chain_pems[0]),
        (made.server_key, server.private_key_pem),
        (made.client_cert, client.cert_chain_pems[0]),
        (made.client_key, client.private_key_pem),
        (made.other_ca, other.cert_pem),
    ):
        pem.write_to_path(str(path))
    return made


@pytest.fixture(scope="module")
def servers(files: Files, small_repository: Path) -> Iterator[dict[str, SmallServer]]:
    """One server that proves who it is, and one that wants the same of its clients."""
    tls = [
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={files.server_cert}",
        f"--grpc-server-key={files.server_key}",
    ]
    mutual = [*tls, "--grpc-use-ssl-mutual=true", f"--grpc-root-cert={files.ca}"]
    with SmallServer(small_repository, tls) as one, SmallServer(small_repository, mutual) as other:
        yield {"tls": one, "mutual": other}


def test_the_server_is_known_by_its_authority(connect: Connect, servers: dict[str, SmallServer], files: Files) -> None:
    client = connect(servers["tls"].grpc_url, tls=Tls(ca=files.ca))
    assert client.ask(GREEN, "what?").head_id
    assert len(list(client.ask_many([(GREEN, "what?")] * 40))) == 40


def test_each_side_knows_the_other(connect: Connect, servers: dict[str, SmallServer], files: Files) -> None:
    client = connect(servers["mutual"].grpc_url, tls=Tls(files.ca, files.client_cert, files.client_key))
    assert client.ask(GREEN, "what?").head_id


def test_who_is_not_trusted_gets_nothing(connect: Connect, servers: dict[str, SmallServer], files: Files) -> None:
    stranger = r"certificate of .* is not trusted; pass the authority that signed it, --tls-ca"
    refused = [
        ("tls", Tls(ca=files.other_ca), stranger),
        ("tls", Tls(), stranger),  # it is no public authority's
        ("tls", None, "a server with TLS needs --tls-ca"),
        ("mutual", Tls(files.other_ca, files.client_cert, files.client_key), stranger),
        ("mutual", Tls(ca=files.ca), "does it require a client certificate"),
    ]
    for name, tls, text in refused:
        client = connect(servers[name].grpc_url, tls=tls, retries=0, timeout_s=30)
        with pytest.raises(ServerUnavailable, match=text):
            client.ask(GREEN, "what?")
