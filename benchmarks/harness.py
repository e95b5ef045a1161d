"""Measuring whole processes, and Markdown tables: what the benchmarks share."""

from __future__ import annotations

import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TypeVar

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent

_KIB_PER_MIB = 1024
_POLL_SECONDS = 0.05
_Result = TypeVar("_Result")

#: Options of `qdq quantize` for what it did before the guard: plan, calibrate and insert pairs.
PLAIN = ("--guard", "off", "--recover", "off")


@dataclass(frozen=True)
class Run:
    """The cost of one process: seconds on the wall and of the processor, peak memory."""

    seconds: float
    processor_seconds: float
    mebibytes: float
    output: str = ""


@dataclass(frozen=True)
class Ended:
    """Why a process has no cost to report."""

    reason: str
    #: Whether it exceeded its limits, so that it may end well with less to do.
    exceeded: bool = False


@dataclass(frozen=True)
class Limits:
    """The memory and time that a process may take."""

    mebibytes: int
    seconds: int


def checkout_environment(**variables: str) -> dict[str, str]:
    """Return this environment with the checkout's qdq first on the path."""
    return {**os.environ, "PYTHONPATH": str(CHECKOUT), **variables}


def measure(
    command: Sequence[str],
    *,
    limits: Limits | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path = CHECKOUT,
) -> Run | Ended:
    """Run a command and return its cost, or why it failed; peak memory is its own, from wait4."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=errors,
            env=environment or checkout_environment(),
            cwd=folder,
        )
        excess, status, usage = _wait(process.pid, limits)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if excess:
            return Ended(excess, exceeded=True)
        if process.returncode:
            failure = errors.read().strip() or f"exit code {process.returncode}"
            return Ended(failure.splitlines()[-1])
        processor_seconds = usage.ru_utime + usage.ru_stime
        return Run(seconds, processor_seconds, usage.ru_maxrss / _KIB_PER_MIB, output.read())


def measure_python(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Run Python with these arguments and return its cost; where it fails, print why and end."""
    run = measure([sys.executable, *arguments], environment=environment)
    if isinstance(run, Ended):
        sys.exit(f"python {' '.join(arguments)}: {run.reason}")
    return run


def alternate(
    commands: Mapping[str, _Result], repeats: int, run: Callable[[_Result], Run]
) -> dict[str, list[Run]]:
    """Return the runs of each command: all in turns, after a first turn that does not count."""
    turns = [{name: run(command) for name, command in commands.items()} for _ in range(repeats + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in commands}


def median(runs: Sequence[Run]) -> Run:
    """Return the medians of several runs."""
    return Run(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.processor_seconds for run in runs),
        statistics.median(run.mebibytes for run in runs),
    )


def count_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def markdown_row(cells: Iterable[object]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def markdown_head(headers: Sequence[str]) -> str:
    """Return the first two lines of a Markdown table."""
    return f"{markdown_row(headers)}\n{markdown_row('---' for _ in headers)}"


def _wait(pid: int, limits: Limits | None) -> tuple[str, int, resource.struct_rusage]:
    """Wait for a process; return which limit it exceeded, its status and its resource usage."""
    if limits is None:
        _, status, usage = os.wait4(pid, 0)
        return "", status, usage
    done = Event()
    reasons: list[str] = []
    watcher = Thread(target=_watch, args=(pid, limits, done, reasons))
    watcher.start()
    _, status, usage = os.wait4(pid, 0)
    done.set()
    watcher.join()
    return "".join(reasons), status, usage


def _watch(pid: int, limits: Limits, done: Event, reasons: list[str]) -> None:
    """Kill a process that exceeds its limits and note which; memory is known on Linux only."""
    end = time.monotonic() + limits.seconds
    while not done.wait(_POLL_SECONDS):
        if _resident_mebibytes(pid) > limits.mebibytes:
            reasons.append(f"over {limits.mebibytes} MiB")
        elif time.monotonic() > end:
            reasons.append(f"over {limits.seconds} s")
        if reasons:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return


def _resident_mebibytes(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    match = re.search(r"VmRSS:\s+(\d+)", status)
    return int(match[1]) / _KIB_PER_MIB if match else 0.0
