"""The ASGI application: routes of the REST endpoint, of the page, and of probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

import vizwiz_client
from vizwiz_gateway import page
from vizwiz_gateway.middleware import Guard, problem_response
from vizwiz_gateway.problems import Problem, ProblemError, problem
from vizwiz_gateway.service import Service
from vizwiz_gateway.settings import Settings
from vizwiz_gateway.uploads import OVERHEAD_BYTES, Upload, read_upload, too_large

STATIC = Path(__file__).with_name("static")


def create_app(settings: Settings) -> FastAPI:
    """The gateway's application.

    Args:
        settings: limits, addresses and the token.

    Raises:
        WrongServer: Triton's address is not "host:port".
    """
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="VizWiz gateway",
        version=vizwiz_client.__version__,
        docs_url=None,  # these pages load scripts from a third party
        redoc_url=None,
        lifespan=lifespan,
    )
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["POST"],
            allow_headers=["authorization", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Guard, settings=settings)  # the last one added is the outermost

    @app.exception_handler(ProblemError)
    async def on_problem(request: Request, error: ProblemError) -> Response:
        return problem_response(error.problem, request.state.request_id)

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        refused = Problem(
            status, status.name.lower().replace("_", "-"), status.phrase, f"{status.phrase}: see /openapi.json"
        )
        return problem_response(refused, request.state.request_id, dict(error.headers or {}))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """Whether Triton serves a model that fits this gateway; 502 or 503 if not."""
        info = await service.check()
        return {"status": "ok", "model": info.model, "contract_version": info.contract_version}

    @app.post("/v1/ask")
    async def ask(request: Request) -> JSONResponse:
        """Ask questions about a photo."""
        with service.admit() as admission:
            upload = await _read(request, settings)
            reply = await service.ask(upload, request.state.request_id, admission)
        return JSONResponse(
            {
                "answers": [answer.to_dict() for answer in reply.answers],
                "demo": reply.demo,
                "request_id": request.state.request_id,
            }
        )

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page.render(page.PageState(service.demo, settings.max_photo_bytes)))

    @app.post("/", include_in_schema=False)
    async def ask_on_page(request: Request) -> HTMLResponse:
        request_id, upload = request.state.request_id, Upload(top=page.TOP)
        state, status, headers = page.PageState(service.demo, settings.max_photo_bytes, request_id=request_id), 200, {}
        try:
            with service.admit() as admission:
                upload = await _read(request, settings, top=page.TOP)
                reply = await service.ask(upload, request_id, admission)
            state = page.PageState(
                reply.demo, settings.max_photo_bytes, upload.questions, reply.answers, request_id=request_id
            )
        except ProblemError as error:
            state = page.PageState(
                service.demo, settings.max_photo_bytes, upload.questions, problem=error.problem, request_id=request_id
            )
            status, headers = error.problem.status, error.problem.headers
        return HTMLResponse(page.render(state), status, headers)

    app.mount("/static", StaticFiles(directory=STATIC), "static")
    return app


async def _read(request: Request, settings: Settings, top: int = 1) -> Upload:
    """The fields of a request, within the limits of size and time."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > settings.max_photo_bytes + OVERHEAD_BYTES:
        raise too_large(settings.max_photo_bytes)
    reading = read_upload(request.headers.get("content-type"), request.stream(), settings.max_photo_bytes, top)
    try:
        return await asyncio.wait_for(reading, settings.upload_timeout_s)
    except asyncio.TimeoutError:
        raise problem(
            HTTPStatus.REQUEST_TIMEOUT,
            "slow-upload",
            f"the photo did not arrive within {settings.upload_timeout_s:g} s; send a smaller one",
        ) from None
    except ClientDisconnect:
        raise problem(HTTPStatus.BAD_REQUEST, "disconnected", "the connection was lost during the upload") from None
