"""The two paths of calculations, compiled and numpy, for tests that compare them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest import mock

import pytest

from qdq.compiled import library
from qdq.compiled.compilation import compile_library, find_compiler
from qdq.files.temporary import work_folder

NO_COMPILER = "needs a C compiler: the compiled part cannot be built to be compared"

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason=NO_COMPILER)


@cache
def compiled_library() -> library.Library:
    """Return the library, compiled for these tests where the installation has none."""
    installed = library.load_library(library.LIBRARY)
    if installed is not None:
        return installed
    with work_folder() as folder:
        path = Path(folder, "libqdq.so")
        assert compile_library(library.SOURCE, path) == ""
        compiled = library.load_library(path)
    assert compiled is not None
    return compiled


@contextmanager
def calculating(path: str) -> Iterator[None]:
    """Calculate with `numpy`, with `compiled`, or with `portable`, which is without AVX2."""
    chosen = {"numpy": None, "compiled": compiled_library(), "portable": _portable()}[path]
    with (
        mock.patch("qdq.observers.tensor_statistics.find_library", return_value=chosen),
        mock.patch("qdq.ranges.exact_sum.find_library", return_value=chosen),
        mock.patch("qdq.ranges.square_error.find_library", return_value=chosen),
        mock.patch("qdq.calibration.weight_scales.find_library", return_value=chosen),
    ):
        yield


def _portable() -> library.Library:
    portable = library.Library(compiled_library().functions)
    portable.has_avx2 = False
    return portable
