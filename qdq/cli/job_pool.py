"""Processes that work on the models of one command, each on one model after another.

A process that a model ends, as an assertion of a library in C++ does, loses that model alone:
another process takes its place. All end with the process that started them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

import msgspec

from qdq.cli.failures import COULD_NOT_RUN, UNFORESEEN
from qdq.cli.process import describe_end, end_with_parent
from qdq.cores import CORES_VARIABLE, count_cores
from qdq.errors import first_line
from qdq.interruption import DelayedEnd, clean_before_end, end_quietly_on_signals

_Settings = TypeVar("_Settings")
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")

#: Makes the function of a process, once, from the settings that all processes share.
MakeTask = Callable[[_Settings], Callable[[_Item], _Answer]]

#: Seconds that a process has to remove its temporary files.
_GRACE = 2.0


class JobFailure(msgspec.Struct, frozen=True):
    """Why there is no answer for an item: fact and fix, and the exit code that this means."""

    message: str
    exit_code: int


def run_jobs(
    make_task: MakeTask[_Settings, _Item, _Answer],
    settings: _Settings,
    items: Sequence[_Item],
    job_count: int,
) -> Iterator[tuple[int, _Answer | JobFailure]]:
    """Yield the position of each item and its answer, in the order in which they are ready.

    `make_task` is a function of a module. Settings, items and answers are pickled. A task raises
    nothing that it foresees: an exception of it is a JobFailure.
    """
    pool = _JobPool(make_task, settings, min(job_count, len(items)))
    clean_before_end(pool.end)
    try:
        yield from pool.run(items)
    finally:
        pool.end()


def sort_answers(answers: Iterable[tuple[int, _Answer]]) -> Iterator[_Answer]:
    """Yield answers by their positions, each as soon as all before it are there."""
    early: dict[int, _Answer] = {}
    position = 0
    for ready_position, answer in answers:
        early[ready_position] = answer
        while position in early:
            yield early.pop(position)
            position += 1


class _Worker:
    """One process, and the position of the item that it works on."""

    def __init__(self, make_task: MakeTask[Any, Any, Any], settings: object, cores: int) -> None:
        context: Any = multiprocessing.get_context("fork" if _can_fork() else "spawn")
        self.connection, other_end = context.Pipe()
        arguments = (other_end, make_task, settings, cores, os.getpid())
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        with DelayedEnd(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12, of numpy's threads
            self.process.start()
        other_end.close()
        self.position: int | None = None

    def send(self, position: int, item: object) -> None:
        self.position = position
        with contextlib.suppress(OSError):  # a process that has ended is seen by `receive`
            self.connection.send(item)

    def receive(self) -> Any:
        """Return the answer, or the failure by which the process ended."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return _explain_end(self.process.exitcode or 0)


def _can_fork() -> bool:
    """Whether a process may begin as a copy of this one, which has all modules loaded.

    numpy's threads are stopped around a fork (OpenBLAS, `pthread_atfork`), others are not.
    """
    is_alone = threading.active_count() == 1 and "onnxruntime" not in sys.modules
    return sys.platform == "linux" and is_alone


class _JobPool(Generic[_Item, _Answer]):
    """Processes with the same task."""

    def __init__(
        self, make_task: MakeTask[_Settings, _Item, _Answer], settings: _Settings, count: int
    ) -> None:
        self._make_task: MakeTask[Any, Any, Any] = make_task
        self._settings: object = settings
        self._count = count
        self._owner = os.getpid()
        self._workers: list[_Worker] = []

    def run(self, items: Iterable[_Item]) -> Iterator[tuple[int, _Answer | JobFailure]]:
        waiting = deque(enumerate(items))
        while waiting or self._list_busy():
            self._start(waiting)
            busy = self._list_busy()
            ready = wait([worker.connection for worker in busy])
            for worker in busy:
                if worker.connection in ready:
                    yield self._take_answer(worker, waiting)

    def end(self) -> None:
        """End the processes; those that work have a moment to remove their temporary files."""
        if os.getpid() != self._owner:  # in a copy of the process
            return
        workers = tuple(self._workers)
        self._workers.clear()
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(_GRACE)
            if worker.process.is_alive():
                worker.process.kill()

    def _list_busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.position is not None]

    def _start(self, waiting: deque[tuple[int, _Item]]) -> None:
        """Give items to processes, and start those that are missing."""
        while waiting and len(self._workers) < self._count:
            cores = max(count_cores() // self._count, 1)
            worker = _Worker(self._make_task, self._settings, cores)
            self._workers.append(worker)
            worker.send(*waiting.popleft())

    def _take_answer(
        self, worker: _Worker, waiting: deque[tuple[int, _Item]]
    ) -> tuple[int, _Answer | JobFailure]:
        """Return the position and the answer of a process, and give it the next item."""
        position, worker.position = worker.position, None
        assert position is not None  # it is busy
        answer: _Answer | JobFailure = worker.receive()
        if worker.process.exitcode is not None:
            self._workers.remove(worker)
        elif waiting:
            worker.send(*waiting.popleft())
        return position, answer


def _serve(
    connection: Connection,
    make_task: MakeTask[Any, Any, Any],
    settings: object,
    cores: int,
    parent: int,
) -> None:
    """Answer items until the parent ends, which also ends this process on Ctrl-C."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_quietly_on_signals()
    os.environ[CORES_VARIABLE] = str(cores)
    os.dup2(2, 1)  # what a library prints is not the command's output
    task = make_task(settings)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(_answer(task, item))
        sys.stderr.flush()


def _answer(task: Callable[[Any], Any], item: object) -> Any:
    try:
        return task(item)
    except MemoryError:
        return JobFailure("the memory is not enough. Pass a smaller --jobs.", COULD_NOT_RUN)
    except Exception as error:  # noqa: BLE001 nothing ends the other models
        summary = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
        fact = f"an error that qdq does not foresee: {summary}"
        return JobFailure(f"{fact}. Run the command for this model alone.", UNFORESEEN)


def _explain_end(exit_code: int) -> JobFailure:
    """Return the failure of a process that ended without an answer."""
    reason = describe_end(-exit_code) if exit_code < 0 else ""
    if not reason:
        reason = f"its process ended with code {exit_code}. Run the command for this model alone."
    return JobFailure(reason, COULD_NOT_RUN)
