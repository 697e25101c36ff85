"""Client of a Triton server that answers questions about photos.

    from vizwiz_client import VizwizClient

    with VizwizClient("localhost:8001") as client:
        answer = client.ask("img.jpg", "what is this?")
        print("cannot tell" if answer.declined else answer.answer)

Imports no torch. NumPy and Pillow are imported with the first client, the gRPC stack with the first request.
"""

from vizwiz_client._client import AsyncVizwizClient, VizwizClient
from vizwiz_client._results import Answer, Candidate, Check, ModelInfo, Status, Timings
from vizwiz_client._settings import Tls
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
from vizwiz_client.contract.wording import Thresholds, Wording

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
    "Thresholds",
    "Timings",
    "Tls",
    "VizwizClient",
    "VizwizError",
    "Wording",
    "WrongServer",
]
