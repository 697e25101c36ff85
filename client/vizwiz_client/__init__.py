"""Ask a Triton server about photos.

    from vizwiz_client import VizwizClient

    with VizwizClient("localhost:8001") as client:
        answer = client.ask("img.jpg", "what is this?")
        print("cannot tell" if answer.declined else answer.answer)

No torch, and no work at import: NumPy and Pillow load with the first client, the gRPC stack with the first request.
"""

from vizwiz_client._answer import Answer, Candidate, Timings
from vizwiz_client._async_client import AsyncVizwizClient
from vizwiz_client._client import VizwizClient
from vizwiz_client._model_info import ModelInfo
from vizwiz_client._settings import Tls
from vizwiz_client._status import Check, Status
from vizwiz_client.contract.errors import (
    ContractMismatch,
    DeadlineExceeded,
    ImageError,
    ModelMissing,
    Overloaded,
    QuestionError,
    ServerError,
    ServerFault,
    ServerUnavailable,
    VizwizError,
    WrongServer,
)

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "AsyncVizwizClient",
    "Candidate",
    "Check",
    "ContractMismatch",
    "DeadlineExceeded",
    "ImageError",
    "ModelInfo",
    "ModelMissing",
    "Overloaded",
    "QuestionError",
    "ServerError",
    "ServerFault",
    "ServerUnavailable",
    "Status",
    "Timings",
    "Tls",
    "VizwizClient",
    "VizwizError",
    "WrongServer",
]
