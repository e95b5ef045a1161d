"""Processes that run the items of a campaign: one that dies or hangs fails its item alone."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from fuzz.outcomes import FAILED, Outcome

#: Seconds without an answer after which an item counts as hanging, and those that a start takes.
LIMIT, START_LIMIT = 20.0, 120.0


class Trials(Protocol):
    """What a worker runs: an item for each seed."""

    def run(self, seed: int) -> list[Outcome]: ...

    def close(self) -> None: ...


MakeTrials = Callable[..., Trials]


def run_campaign(
    make_trials: MakeTrials,
    arguments: Sequence[Any],
    seeds: range,
    jobs: int,
    limit: float = LIMIT,
) -> Iterator[list[Outcome]]:
    """Yield what became of the item of each seed, in no order."""
    workers = [
        _Worker(make_trials, arguments, seeds[number::jobs], limit) for number in range(jobs)
    ]
    try:
        while any(worker.is_running for worker in workers):
            running = [worker for worker in workers if worker.is_running]
            ready = wait([worker.pipe for worker in running], timeout=0.5)
            for worker in running:
                yield from worker.receive(worker.pipe in ready)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process with its part of the seeds, started again behind a seed that kills it."""

    def __init__(
        self, make_trials: MakeTrials, arguments: Sequence[Any], seeds: range, limit: float
    ) -> None:
        self.make_trials, self.arguments, self.limit = make_trials, arguments, limit
        self.seeds = seeds
        self.is_running = bool(seeds)
        if self.is_running:
            self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(child_pipe, self.make_trials, self.arguments, self.seeds)
        )
        self.process.start()
        child_pipe.close()
        self.is_ready = False
        self.since = time.monotonic()

    def receive(self, is_ready: bool) -> Iterator[list[Outcome]]:
        """Yield what came back."""
        try:
            if is_ready:
                yield from self._next()
            elif time.monotonic() - self.since > (self.limit if self.is_ready else START_LIMIT):
                yield self._fail_item(f"hangs: still running after {self.limit:g} s")
        except EOFError:
            self.process.join()
            yield self._fail_item(f"the process died with {self.process.exitcode}")

    def _next(self) -> Iterator[list[Outcome]]:
        outcomes = self.pipe.recv()
        self.since = time.monotonic()
        if not self.is_ready:
            self.is_ready = True
            return
        yield outcomes
        self._go_on()

    def _fail_item(self, fault: str) -> list[Outcome]:
        if not self.is_ready:
            raise RuntimeError(f"a worker does not start: {fault}")
        outcome = Outcome(self.seeds[0], "unknown", "unknown", FAILED, fault)
        self.stop()
        self._go_on()
        if self.is_running:
            self._start()
        return [outcome]

    def _go_on(self) -> None:
        self.seeds = self.seeds[1:]
        self.is_running = bool(self.seeds)

    def stop(self) -> None:
        if hasattr(self, "process"):
            self.process.kill()
            self.process.join()
            self.pipe.close()


def _serve(
    pipe: Connection, make_trials: MakeTrials, arguments: Sequence[Any], seeds: range
) -> None:
    """Send an empty list when ready, then the outcomes of every seed."""
    os.nice(10)
    trials = make_trials(*arguments)
    try:
        pipe.send([])
        for seed in seeds:
            pipe.send(trials.run(seed))
    finally:
        trials.close()
