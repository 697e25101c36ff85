"""ASGI middleware: request ids, security headers, the Host check, the token, and the last resort for errors."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
import os
import re
import traceback
from contextlib import suppress
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vizwiz_gateway.page import CSP
from vizwiz_gateway.problems import MEDIA_TYPE, Problem, problem
from vizwiz_gateway.settings import Settings

LOGGER = logging.getLogger("vizwiz_gateway")
REQUEST_ID = "x-request-id"
LINGER_BYTES, LINGER_S = 50_000_000, 10.0  # read after an early refusal; see _Exchange

_REQUEST_ID = re.compile(r"[0-9A-Za-z._-]{1,64}")
_OPEN_PATHS = ("/healthz", "/readyz", "/metrics")  # need no token: probes and Prometheus have none
_SECURITY_HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def problem_response(problem: Problem, request_id: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A response of type application/problem+json."""
    return JSONResponse(
        problem.to_dict(request_id), problem.status, {**problem.headers, **(headers or {})}, media_type=MEDIA_TYPE
    )


def log_failure(error: Exception, request_id: str) -> Problem:
    """Log the kind and the place of an unexpected error; return the problem that answers its request."""
    # no message and no values: they may quote the photo or the question
    last = traceback.extract_tb(error.__traceback__)[-1]
    LOGGER.error("request %s: %s at %s:%s", request_id, type(error).__name__, last.filename, last.lineno)
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return problem(status, "internal", "the gateway failed; its log names the request").problem


class Guard:
    """Middleware that gives each request an id, refuses unknown hosts and missing tokens, and catches every error.

    Args:
        app: the application.
        settings: allowed hosts and the token.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = {"localhost", settings.host.lower(), *(host.lower() for host in settings.allowed_hosts)}
        self._origins = settings.allowed_origins
        self._token = settings.token.encode() if settings.token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(8).hex()
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(receive, send, request_id)
        try:
            refusal = self._refusal(scope, headers)
            await (refusal or self._app)(scope, exchange.receive, exchange.send)
        except Exception as error:
            failure = log_failure(error, request_id)
            if not exchange.started:
                await problem_response(failure, request_id)(scope, exchange.receive, exchange.send)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        path, request_id = scope["path"], scope["state"]["request_id"]
        host = headers.get("host", "")
        if not self._is_known(host):
            detail = (
                f"this gateway does not answer to the host name {host[:100]!r}; open it by its address, or allow the "
                "name with --allowed-host"
            )
            return _refuse(request_id, HTTPStatus.MISDIRECTED_REQUEST, "unknown-host", detail)
        # A browser adds the page's password to requests from other sites. `Sec-Fetch-Site` detects them; `Origin`
        # cannot, because the page's own form sends "null" (its referrer policy). `Origin` only selects the allowed
        # sites.
        cross_site = scope["method"] == "POST" and headers.get("sec-fetch-site") == "cross-site"
        if cross_site and headers.get("origin") not in self._origins:
            detail = "another web site sent this request; name the site with --allowed-origin if it may"
            return _refuse(request_id, HTTPStatus.FORBIDDEN, "cross-site", detail)
        is_open = self._token is None or path in _OPEN_PATHS
        if is_open or self._is_authorised(headers.get("authorization", "")):
            return None
        scheme = "Bearer" if path.startswith("/v1/") else 'Basic realm="vizwiz", charset="UTF-8"'
        detail = "this gateway requires its token: as Bearer token for /v1, as password (any user name) for the page"
        return _refuse(request_id, HTTPStatus.UNAUTHORIZED, "no-token", detail, {"www-authenticate": scheme})

    def _is_known(self, host: str) -> bool:
        """Whether a ``Host`` header is expected: DNS rebinding needs a name, so addresses pass."""
        name = re.sub(r":\d*$", "", host).lower()
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True

    def _is_authorised(self, authorization: str) -> bool:
        assert self._token is not None
        scheme, _, value = authorization.partition(" ")
        given = value.strip().encode()
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self._token)


def _refuse(
    request_id: str, status: HTTPStatus, code: str, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    return problem_response(problem(status, code, detail).problem, request_id, headers)


class _Exchange:
    """``receive`` and ``send`` of one request: adds headers, and reads the rest of the body after an early refusal.

    A connection that is closed with unread bytes is reset, and the client may never see the response.
    """

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self.started = False
        self._receive, self._send, self._request_id = receive, send, request_id
        self._body_read = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._body_read |= message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID] = self._request_id
            for name, value in _SECURITY_HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-cache" if "etag" in headers else "no-store")
        if message["type"] == "http.response.body" and not message.get("more_body") and not self._body_read:
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        async def read() -> None:
            size = 0
            while not self._body_read and size < LINGER_BYTES:
                size += len((await self.receive()).get("body", b""))

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read(), LINGER_S)
