"""What is measured, and for how long: the whole is to take 25 minutes on two cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.serving.job import BARE
from benchmarks.serving.models import MODELS

CONCURRENCIES = (1, 2, 4, 8, 16, 32)
BATCHES = (1, 2, 4, 8)
PLAIN = ("fastapi fp32", "fastapi bf16")
PLAIN_CONCURRENCIES = (1, 16)
REPEATED_CONCURRENCIES = (1, 16)
MEMORY_MODEL, MEMORY_CONCURRENCY, MEMORY_REQUESTS = "demo", 8, 40_000
MEMORY_BLOCK, MEMORY_REST_S = 500, 0.3  # requests between two looks at memory, and the pause before each
FIRST_REQUESTS = 10  # on a fresh server: the first against the tenth
ROUNDS = 3  # of measurements that are compared closely, in turn: a machine's mood then meets all alike


@dataclass(frozen=True)
class Pace:
    """How long a model's measurements take, and which of them it can afford."""

    seconds: float  # a measurement's, unless `least` takes longer
    least: int  # questions
    fastest: float  # requests a second that no system here reaches: so many different ones are prepared
    batches: Sequence[int]
    repeated: bool  # whether repeated questions are worth measuring: whether the text encoder is part of the cost


LARGE = MODELS[-1]
PACES = {
    "demo": Pace(4.0, 30, 2_000.0, BATCHES, True),
    "ViT-B/32": Pace(5.0, 20, 200.0, BATCHES, True),
    LARGE: Pace(8.0, 9, 10.0, (1, 8), False),
}


@dataclass(frozen=True)
class Cell:
    """One cell of the table: a closed loop on one system."""

    model: str
    system: str
    concurrency: int = 1
    batch: int = 1
    repeated: bool = False

    @property
    def key(self) -> str:
        """Its key among the results."""
        questions = ", repeated questions" if self.repeated else ""
        return f"{self.model}, {self.system}, concurrency {self.concurrency}, batch {self.batch}{questions}"


def groups(
    model: str, ensembles: Sequence[str], concurrencies: Sequence[int], batches: Sequence[int]
) -> Iterator[list[Cell]]:
    """The cells of the embedded server and of the bare encoders; a group's are measured in turn."""
    pace = PACES[model]
    for batch in batches:
        if batch in pace.batches and 1 in concurrencies:
            yield [Cell(model, system, 1, batch) for system in (BARE, *ensembles)]
    for concurrency in concurrencies:
        if concurrency > 1 and 1 in batches:
            yield [Cell(model, system, concurrency) for system in ensembles]
    for concurrency in REPEATED_CONCURRENCIES:
        if pace.repeated and concurrency in concurrencies:
            yield [Cell(model, system, concurrency, repeated=True) for system in ensembles]


def plain_cells(model: str, system: str, concurrencies: Sequence[int]) -> list[Cell]:
    """The cells of a FastAPI server, which takes one question a request."""
    return [Cell(model, system, concurrency) for concurrency in PLAIN_CONCURRENCIES if concurrency in concurrencies]
