"""ONNX Runtime sessions whose runs end: by a time limit, and on Ctrl-C.

ONNX Runtime checks between two nodes, also those of a body, whether a run is to be ended
(RunOptions, `terminate`). It checks no time, and a Loop may have no end.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from qdq.errors import ModelError, UsageError
from qdq.optional_packages import onnxruntime as ort

#: The environment variable with the limit in seconds; worker processes inherit it.
TIME_LIMIT_VARIABLE = "QDQ_TIME_LIMIT"

_DEFAULT_LIMIT = 600.0

#: Seconds between two looks at the runs.
_WATCH_INTERVAL = 0.1

_Result = TypeVar("_Result")


class _Run:
    """One run: its options, when it is late, and whether it was ended for that."""

    def __init__(self, limit: float) -> None:
        self.options = ort.RunOptions()
        self.deadline = time.monotonic() + limit
        self.is_late = False


class _Watch:
    """A thread that ends the runs which are late, of all sessions."""

    def __init__(self) -> None:
        self._runs: set[_Run] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, run: _Run) -> None:
        """Watch a run, until `remove`."""
        with self._changed:
            self._runs.add(run)
            if self._thread is None or not self._thread.is_alive():  # as after a fork
                self._thread = threading.Thread(target=self._end_late_runs, daemon=True)
                self._thread.start()
            elif len(self._runs) == 1:
                self._changed.notify()

    def remove(self, run: _Run) -> None:
        """Watch a run no longer."""
        with self._changed:
            self._runs.discard(run)

    def _end_late_runs(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(_WATCH_INTERVAL if self._runs else None)
                now = time.monotonic()
                for run in self._runs:
                    if now > run.deadline:
                        run.is_late = True
                        run.options.terminate = True


_watch = _Watch()


class TimedSession:
    """A session that ends a run which takes too long, or whose caller is interrupted.

    It has all methods of `InferenceSession`.
    """

    def __init__(self, name: str, *args: Any, **keywords: Any) -> None:
        self._session = ort.InferenceSession(*args, **keywords)
        self._model_name = name
        self._limit = read_time_limit()
        self._active: set[_Run] = set()
        self._is_stopped = False
        #: What the session reads, and does not own.
        self._kept: object = None
        #: Runs what the main thread asks for, which waits and handles signals meanwhile.
        self._pool = ThreadPoolExecutor(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_session"], name)

    def keep(self, memory: object) -> None:
        """Keep what the session reads from memory that it does not own, as long as the session."""
        self._kept = memory

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Return outputs as `InferenceSession` does; raises ModelError after the time limit."""
        run = self._session.run
        return self._limit_run(lambda options: run(output_names, input_feed, options))

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None
    ) -> Any:
        """Return outputs as `InferenceSession` does; raises ModelError after the time limit."""
        run = self._session.run_with_ort_values
        return self._limit_run(lambda options: run(output_names, input_dict_ort_values, options))

    def stop_runs(self) -> None:
        """End the runs of all threads, and those that would begin."""
        self._is_stopped = True
        for run in tuple(self._active):
            run.options.terminate = True

    def _limit_run(self, compute: Callable[[ort.RunOptions], _Result]) -> _Result:
        run = _Run(self._limit)
        self._active.add(run)
        if self._is_stopped:  # asked after the run can be seen by `stop_runs`
            run.options.terminate = True
        _watch.add(run)
        try:
            return self._call(compute, run)
        except Exception as error:
            if not run.is_late:
                raise
            raise ModelError(
                f"{self._model_name}: a run takes more than {self._limit:g} seconds; a Loop in it "
                f"may have no end. Set {TIME_LIMIT_VARIABLE} to more seconds, or mend the Loop."
            ) from error
        finally:
            _watch.remove(run)
            self._active.discard(run)

    def _call(self, compute: Callable[[ort.RunOptions], _Result], run: _Run) -> _Result:
        """Return the result of a run; end it where the main thread is interrupted meanwhile."""
        if threading.current_thread() is not threading.main_thread():
            return compute(run.options)
        future = self._pool.submit(compute, run.options)
        try:
            return future.result()
        except BaseException:
            run.options.terminate = True
            raise


@contextmanager
def stop_on_error(session: ort.InferenceSession | None) -> Iterator[None]:
    """End the runs of a session, if it is one of these, where the block ends by an exception."""
    try:
        yield
    except BaseException:
        if isinstance(session, TimedSession):
            session.stop_runs()
        raise


def read_time_limit() -> float:
    """Return the seconds that one run may take; raises UsageError for no number above 0."""
    text = os.environ.get(TIME_LIMIT_VARIABLE, "")
    if not text:
        return _DEFAULT_LIMIT
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0.0 < limit <= threading.TIMEOUT_MAX:
        raise UsageError(
            f"{TIME_LIMIT_VARIABLE}={text!r}: the time limit is a number of seconds above 0. "
            "Set it to one such as 3600."
        )
    return limit
