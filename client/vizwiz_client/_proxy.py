"""The HTTP proxy that gRPC takes from the environment."""

from __future__ import annotations

import os
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

# https://github.com/grpc/grpc/blob/master/doc/environment_variables.md: the first one that is set counts, even if empty
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")


def is_loopback(url: str) -> bool:
    """Whether "host:port" is this machine: "localhost", 127.0.0.0/8 or ::1, where no proxy has to be asked."""
    host = _host(url)
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def describe_route(url: str) -> str:
    """``url``, and the proxy between this process and it, if there is one: without the password in its address."""
    name = next((name for name in _PROXIES if name in os.environ), "")
    try:
        proxy = urlsplit(os.environ.get(name, ""))
    except ValueError:  # no URL, so that gRPC does without
        return url
    if proxy.scheme != "http" or not proxy.netloc or is_loopback(url) or _is_excepted(_host(url)):
        return url
    user, _, address = proxy.netloc.rpartition("@")
    return (
        f"{url} (through the proxy http://{'***@' if user else ''}{address} of the environment variable {name}; "
        "no_proxy names the hosts that are reached without one)"
    )


def _is_excepted(host: str) -> bool:
    exceptions = next((os.environ[name] for name in _EXCEPTIONS if name in os.environ), "")
    return any(_matches(host.lower(), entry.strip().lower()) for entry in exceptions.split(","))


def _matches(host: str, entry: str) -> bool:
    """Whether ``entry`` is the host, a domain that it belongs to, or a network such as 10.0.0.0/8."""
    if entry and f".{host}".endswith(f".{entry.lstrip('.')}"):
        return True
    try:
        return "/" in entry and ip_address(host) in ip_network(entry, strict=False)
    except ValueError:  # the host is a name
        return False


def _host(url: str) -> str:
    return url.rpartition(":")[0].strip("[]").partition("%")[0]
