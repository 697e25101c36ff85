"""One measurement, as it is told to the process that generates the load, and what that process tells back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

BARE = "bare encoders"  # the two graphs, called one after the other in the generating process


@dataclass(frozen=True)
class Job:
    """A closed loop: ``concurrency`` requests of ``batch`` questions each are always under way."""

    system: str  # an ensemble, "fastapi ...", or BARE
    photos: str  # folder
    side: int  # S in pixels, where photos are sent decoded
    url: str = ""
    repository: str = ""  # of the graphs, for BARE
    target: str = "portable-fp32"  # likewise: what they were written for
    concurrency: int = 1
    batch: int = 1
    repeated: bool = False  # questions come again
    one_photo: bool = False  # the same photo in every request
    length: int = 0  # positions of every question; 0 is as VizWiz's are
    seed: int = 0
    prepared: int = 1_000  # requests with questions of their own; then these come again
    ramp: int = 1  # completed requests that are not measured, because they started on an idle server
    seconds: float = 4.0  # of measuring, and ...
    least: int = 1  # ... requests measured, both of which are reached unless one of these limits is:
    most: int = 1_000_000  # requests sent
    at_most_s: float = 180.0  # of sending


@dataclass
class Record:
    """What came of a job; times are seconds of the system's monotonic clock, which all processes share."""

    starts: list[float] = field(default_factory=list)  # of each request that was answered, by their ends
    ends: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stopped: float = 0.0  # when the last request was sent, or would have been
    cpu_s: float = 0.0  # that the generating process computed

    def to_json(self) -> str:
        """Encode, on one line."""
        return json.dumps(asdict(self))
