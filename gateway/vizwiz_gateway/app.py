"""The ASGI application: routes of the REST endpoint, of the page, and of probes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles

import vizwiz_client
from vizwiz_client import Answer
from vizwiz_gateway import metrics, page
from vizwiz_gateway.middleware import Guard, log_failure, problem_response
from vizwiz_gateway.problems import Problem, ProblemError, problem
from vizwiz_gateway.schema import REQUEST, RESPONSES, AskBody
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
    timeout_s = settings.upload_timeout_s + settings.answer_timeout_s

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
    app.add_middleware(Guard, settings=settings)
    if settings.allowed_origins:  # outside the guard, so that scripts of these origins can read its refusals
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["POST"],
            allow_headers=["authorization", "x-request-id"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> dict[str, str | int | bool]:
        """Whether Triton serves a model that fits this gateway; a problem with status 502 or 504 if not."""
        info = await service.check()
        return {"status": "ok", "model": info.model, "contract_version": info.contract_version, "demo": info.demo}

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", response_class=Response)
    async def show_metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(service.metrics.render(), headers={"content-type": metrics.CONTENT_TYPE})

    @app.post("/v1/ask", response_model=AskBody, responses=RESPONSES, openapi_extra=REQUEST)
    async def ask(request: Request) -> JSONResponse:
        """Ask one or more questions about a photo."""
        answers = await _answer(request, Upload(), settings, service)
        return JSONResponse(
            {"answers": [answer.to_dict() for answer in answers], "request_id": request.state.request_id}
        )

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        if service.demo is None:
            with suppress(ProblemError):  # Triton is away: the page says so with the first question
                await service.check()
        return HTMLResponse(page.render(page.PageState(service.demo, settings.max_photo_bytes, timeout_s)))

    @app.post("/", include_in_schema=False)
    async def ask_on_page(request: Request) -> HTMLResponse:
        upload = Upload(top=page.TOP)
        answers, refusal = list[Answer](), None
        try:
            answers = await _answer(request, upload, settings, service)
        except ProblemError as error:
            refusal = error.problem
        except Exception as error:  # a person gets a page, not the JSON of the middleware
            refusal = log_failure(error, request.state.request_id)
        state = page.PageState(
            answers[0].demo if answers else service.demo,
            settings.max_photo_bytes,
            timeout_s,
            upload.questions,
            answers,
            refusal,
            request.state.request_id,
        )
        if refusal is None:
            return HTMLResponse(page.render(state))
        return HTMLResponse(page.render(state), refusal.status, refusal.headers)

    app.mount("/static", StaticFiles(directory=STATIC), "static")
    return app


async def _answer(request: Request, upload: Upload, settings: Settings, service: Service) -> list[Answer]:
    """Admit a request, read it into ``upload``, and ask. Raises ProblemError."""
    outcome = "internal"
    try:
        with service.admit() as admission:
            with service.metrics.upload.time():
                await _read(request, upload, settings)
            answers = await service.ask(upload, request.state.request_id, admission)
        outcome = "answered"
        return answers
    except ProblemError as error:
        outcome = error.problem.code
        raise
    finally:
        service.metrics.requests.labels(outcome).inc()


async def _read(request: Request, upload: Upload, settings: Settings) -> None:
    """Read the fields of a request, within the limits of size and time."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > settings.max_photo_bytes + OVERHEAD_BYTES:
        raise too_large(settings.max_photo_bytes)
    reading = read_upload(request.headers.get("content-type"), request.stream(), settings.max_photo_bytes, upload)
    try:
        await asyncio.wait_for(reading, settings.upload_timeout_s)
    except asyncio.TimeoutError:
        raise problem(
            HTTPStatus.REQUEST_TIMEOUT,
            "slow-upload",
            f"the photo did not arrive within {settings.upload_timeout_s:g} s; send a smaller one",
        ) from None
    except ClientDisconnect:
        raise problem(HTTPStatus.BAD_REQUEST, "disconnected", "the connection was lost during the upload") from None


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem_response(error.problem, request.state.request_id)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Unknown paths and methods."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    code = status.name.lower().replace("_", "-")
    headers = dict(error.headers or {})
    if headers.get("allow", headers.get("Allow")) == "GET":
        headers = {"Allow": "GET, HEAD"}  # FastAPI names the first route of the path
    served = f"only {headers['Allow']} is served" if "Allow" in headers else "nothing is served"
    refusal = Problem(status, code, status.phrase, f"got {request.method}; {served} at this path; see /openapi.json")
    return problem_response(refusal, request.state.request_id, headers)
