"""The process that generates the load: a job a line on standard input, what came of it a line on standard output."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from contextlib import AsyncExitStack

from benchmarks.serving.job import Job, Record
from benchmarks.serving.senders import Send, open_sender

MOST_ERRORS = 20  # a server that fails fast would otherwise be asked until the time is up


async def run(job: Job) -> Record:
    """Do ``job``."""
    async with AsyncExitStack() as stack:
        return await closed_loop(await open_sender(job, stack), job)


async def closed_loop(send: Send, job: Job) -> Record:
    """Keep ``job.concurrency`` requests under way until its limits say that it is enough, and wait for the last."""
    record, numbers, started = Record(), itertools.count(), time.monotonic()
    cpu = time.process_time()

    def enough() -> bool:
        now, measured = time.monotonic(), len(record.ends) - job.ramp
        since = record.ends[job.ramp - 1] if job.ramp and measured >= 0 else started
        full = measured >= job.least and now - since >= job.seconds
        return full or now - started >= job.at_most_s or len(record.errors) >= MOST_ERRORS

    async def ask_on() -> None:
        while not enough() and (number := next(numbers)) < job.most:
            start = time.monotonic()
            try:
                await send(number)
            except Exception as error:  # whatever it is, the user would have had no answer
                record.errors.append(f"{type(error).__name__}: {error}"[:300])
                continue
            record.starts.append(start)
            record.ends.append(time.monotonic())
        record.stopped = record.stopped or time.monotonic()

    await asyncio.gather(*(ask_on() for _ in range(job.concurrency)))
    record.cpu_s = time.process_time() - cpu
    return record


def main() -> None:
    """Do jobs until standard input ends."""
    for line in sys.stdin:
        print(asyncio.run(run(Job(**json.loads(line)))).to_json(), flush=True)


if __name__ == "__main__":
    main()
