"""Ask a Triton server about photos.

    from vizwiz_client import VizwizClient

    with VizwizClient("localhost:8001") as client:
        answer = client.ask("img.jpg", "what is this?")
        print("cannot tell" if answer.declined else answer.answer)

No torch, and no work at import: the gRPC stack loads with the first request, the tokenizer with the first question.
"""

from vizwiz_client._answer import Answer, Candidate
from vizwiz_client._client import VizwizClient
from vizwiz_client.contract.errors import (
    DeadlineExceeded,
    ImageError,
    Overloaded,
    QuestionError,
    ServerError,
    ServerUnavailable,
    VizwizError,
    WrongServer,
)

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Candidate",
    "DeadlineExceeded",
    "ImageError",
    "Overloaded",
    "QuestionError",
    "ServerError",
    "ServerUnavailable",
    "VizwizClient",
    "VizwizError",
    "WrongServer",
]
