"""Bodies of ``/v1/ask`` as OpenAPI describes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from vizwiz_gateway.problems import MEDIA_TYPE
from vizwiz_gateway.uploads import MAX_QUESTIONS, MAX_TOP


class CandidateBody(BaseModel):
    """One possible answer."""

    answer: str
    confidence: float = Field(description="probability, 0 to 1")


class TimingsBody(BaseModel):
    """Seconds spent on one answer."""

    prepare_s: float = Field(description="decoding the photo, tokenising the questions")
    request_s: float = Field(description="the request to Triton")
    total_s: float = Field(description="from the complete upload to the answer")


class AnswerBody(BaseModel):
    """The answer to one question; probabilities are 0 to 1."""

    answer: str
    confidence: float
    declined: bool = Field(description="the photo probably cannot answer: show the answer as a guess, or not at all")
    answerable: float = Field(description="probability that the photo can answer the question")
    answer_type: str
    candidates: list[CandidateBody]
    runner_up: CandidateBody | None = Field(description="the second answer, whatever `top` is; null if there is none")
    quality: dict[str, float] = Field(
        description="probability of each problem of the photo, most probable first; empty if the model predicts none"
    )
    advice: list[str] = Field(description="what is wrong with the photo and what to do; `sentence` may leave it out")
    sentence: str = Field(description="everything to tell a person, advice included where a better photo is needed")
    question_truncated: bool
    demo: bool = Field(description="the model has learnt drawn pictures only: its answers to real photos mean nothing")
    head_id: str
    request_id: str
    timings: TimingsBody


class AskBody(BaseModel):
    """The reply to one request."""

    answers: list[AnswerBody] = Field(description="one for each question, in order")
    request_id: str


class ProblemBody(BaseModel):
    """An error: RFC 9457 problem details."""

    type: str
    status: int
    code: str = Field(description="stable name of the kind of error")
    title: str
    detail: str = Field(description="what was found, what was expected, what to do")
    request_id: str


REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["photo", "question"],
                    "properties": {
                        "photo": {"type": "string", "format": "binary"},
                        "question": {"type": "array", "items": {"type": "string"}, "maxItems": MAX_QUESTIONS},
                        "top": {"type": "integer", "minimum": 1, "maximum": MAX_TOP, "default": 1},
                    },
                },
                "encoding": {"question": {"style": "form", "explode": True}},
            }
        },
    }
}
_ERRORS = {
    400: "malformed form, or the connection was lost",
    401: "the token is missing or wrong",
    403: "a page of another site asked",
    408: "the upload took too long",
    413: "the photo or a text is too large",
    415: "not a photo that can be read, or not a form",
    421: "the Host header is a name that was not allowed",
    422: "no question, no photo, or an invalid field",
    500: "the gateway failed",
    502: "Triton is unavailable, or does not serve a model that fits",
    503: "too many requests: ask again after Retry-After seconds",
    504: "no answer in time",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": ProblemBody.model_json_schema()}}}
    for status, text in _ERRORS.items()
}
