"""The compiled library: where it is, whether it may be used, and its functions.

It is a plain shared library that ctypes calls: one build is for every Python version, and needs no
headers of Python. ctypes releases the interpreter's lock during a call.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

from qdq.arrays import Array
from qdq.compiled.compilation import digest_source

#: The environment variable that switches the library off where it is 0.
SWITCH = "QDQ_COMPILED"

SOURCE = Path(__file__).with_name("compiled.c")

#: The library's name beside its source; the build hook of pyproject.toml writes it.
LIBRARY = SOURCE.with_name("libqdq.so")

_TOTALS = ctypes.c_void_p
_FLOATS = ctypes.c_void_p
_INTEGERS = ctypes.c_void_p
_COUNT = ctypes.c_int64
_FLAG = ctypes.c_int32

#: The types of the arguments of each function, as in the source.
_ARGUMENTS: dict[str, tuple[type, ...]] = {
    "qdq_add_tensor": (
        _TOTALS, _FLOATS, _COUNT, _COUNT, _COUNT, _FLAG, _INTEGERS, _INTEGERS, _FLOATS, _FLAG,
    ),
    "qdq_add_exactly": (_INTEGERS, _FLOATS, _COUNT, _COUNT),
    "qdq_divide_exactly": (_INTEGERS, _COUNT, _COUNT, _FLOATS),
    "qdq_search_levels": (_FLOATS, _COUNT, _FLOATS, _FLOATS, _COUNT, _INTEGERS, _COUNT),
    "qdq_search_scales": (
        _FLOATS, _COUNT, _COUNT, _FLOATS, _FLOATS, _INTEGERS, _FLOATS, _COUNT, _COUNT,
        ctypes.c_float, _FLAG, _FLOATS, _FLAG,
    ),
}  # fmt: skip


class Library:
    """The functions of a loaded library, and the instructions that they use."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self.functions = functions
        for name, arguments in _ARGUMENTS.items():
            function = getattr(functions, name)
            function.argtypes = arguments
            function.restype = None
        self.add_tensor = functions.qdq_add_tensor
        self.add_tensor.restype = ctypes.c_int32
        self.add_exactly = functions.qdq_add_exactly
        self.divide_exactly = functions.qdq_divide_exactly
        self.search_levels = functions.qdq_search_levels
        self.search_levels.restype = _COUNT
        self.search_scales = functions.qdq_search_scales
        self.has_avx2 = bool(functions.qdq_has_avx2())
        functions.qdq_size_of_workspace.restype = _COUNT
        #: The bytes that `add_tensor` counts a grade in.
        self.size_of_workspace: int = functions.qdq_size_of_workspace()

    @property
    def instructions(self) -> str:
        """The name of the instruction set in use."""
        return "AVX2" if self.has_avx2 else f"{platform.machine()}, portable"


@cache
def find_library() -> Library | None:
    """Return the library, or None where it is missing, of another source, or switched off.

    A process decides once.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    return load_library(LIBRARY)


def load_library(path: Path) -> Library | None:
    """Return the library in a file, or None where it is missing or of another source.

    An installation in place can outlive changes of the source.
    """
    try:
        functions = ctypes.CDLL(str(path))
        functions.qdq_source_digest.restype = ctypes.c_char_p
        digest = functions.qdq_source_digest().decode()
        if digest != digest_source(SOURCE):
            return None
        return Library(functions)
    except (OSError, AttributeError):
        return None


def describe_path() -> str:
    """Return the words for the path that calculations take, for `qdq --version`."""
    library = find_library()
    if library is not None:
        return f"compiled ({library.instructions})"
    if os.environ.get(SWITCH) == "0":
        return f"numpy ({SWITCH}=0)"
    if LIBRARY.exists():
        return "numpy (the compiled part is of another version; install qdq again)"
    return "numpy (no compiled part; qdq docs calibration)"


def address(array: Array | None) -> int | None:
    """Return the address of an array's first value; None for a null pointer."""
    if array is None:
        return None
    data: int = array.__array_interface__["data"][0]  # `ctypes.data` takes three times as long
    return data
