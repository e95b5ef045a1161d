"""ONNX Runtime sessions whose runs end: by a time limit, and on Ctrl-C.

ONNX Runtime checks between two nodes, also those of a body, whether a run is to be ended
(RunOptions, `terminate`). It checks no time, and a Loop may have no end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import onnxruntime as ort

from qdq.errors import ModelError, UsageError

#: The environment variable with the limit in seconds; worker processes inherit it.
TIME_LIMIT_VARIABLE = "QDQ_TIME_LIMIT"

_DEFAULT_LIMIT = 600.0

_Result = TypeVar("_Result")


class TimedSession(ort.InferenceSession):  # type: ignore[misc] # onnxruntime has no types
    """A session that ends a run which takes too long, or whose caller is interrupted."""

    def __init__(self, name: str, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._model_name = name
        self._limit = read_time_limit()
        self._active: set[ort.RunOptions] = set()
        self._is_stopped = False

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Return outputs as `InferenceSession` does; raises ModelError after the time limit."""
        run = super().run
        return self._limit_run(lambda options: run(output_names, input_feed, options))

    def run_with_ort_values(
        self, output_names: Any, input_dict_ort_values: Any, run_options: Any = None
    ) -> Any:
        """Return outputs as `InferenceSession` does; raises ModelError after the time limit."""
        run = super().run_with_ort_values
        return self._limit_run(lambda options: run(output_names, input_dict_ort_values, options))

    def stop_runs(self) -> None:
        """End the runs of all threads, and those that would begin."""
        self._is_stopped = True
        for options in tuple(self._active):
            options.terminate = True

    def _limit_run(self, run: Callable[[ort.RunOptions], _Result]) -> _Result:
        options = ort.RunOptions()
        self._active.add(options)
        if self._is_stopped:  # asked after the options can be seen by `stop_runs`
            options.terminate = True
        is_late = threading.Event()

        def end_run() -> None:
            is_late.set()
            options.terminate = True

        timer = threading.Timer(self._limit, end_run)
        timer.daemon = True
        timer.start()
        try:
            return _call_interruptibly(lambda: run(options), options)
        except Exception as error:
            if not is_late.is_set():
                raise
            raise ModelError(
                f"{self._model_name}: a run takes more than {self._limit:g} seconds; a Loop in it "
                f"may have no end. Set {TIME_LIMIT_VARIABLE} to more seconds, or mend the Loop."
            ) from error
        finally:
            self._active.discard(options)
            timer.cancel()


def _call_interruptibly(run: Callable[[], _Result], options: ort.RunOptions) -> _Result:
    """Return the result of a run, on another thread than the main one, which handles signals."""
    if threading.current_thread() is not threading.main_thread():
        return run()
    future: Future[_Result] = Future()

    def fulfil() -> None:
        try:
            future.set_result(run())
        except BaseException as error:  # noqa: BLE001 the caller raises it
            future.set_exception(error)

    thread = threading.Thread(target=fulfil, daemon=True)
    thread.start()
    try:
        return future.result()
    except KeyboardInterrupt:
        options.terminate = True
        thread.join()
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
