"""Packages that only some commands need: `pip install qdq` leaves them out, its extras bring them.

A module that uses ONNX Runtime imports it from here. The package is then loaded at its first use,
and where it is missing that use raises the line to type. Before an import of another optional
package, and of what is inside of it, stands `require_package`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from qdq.errors import MissingPackageError

if TYPE_CHECKING:
    import onnxruntime as onnxruntime  # noqa: PLC0414 exports it for mypy


class _Package(msgspec.Struct, frozen=True):
    """An optional package: its name for users, its purpose, and the extra of qdq that has it."""

    title: str
    purpose: str
    extra: str


_PACKAGES: Mapping[str, _Package] = {
    "onnxruntime": _Package("ONNX Runtime", "runs models on samples", "run"),
    "polygraphy": _Package("Polygraphy", "compares and builds models", "run"),
    "PIL": _Package("Pillow", "reads pictures", "run"),
    "tensorrt_rtx": _Package("TensorRT-RTX", "compiles engines without a GPU", "rtx"),
    "tensorrt": _Package("TensorRT", "builds engines on a GPU", "tensorrt"),
    "jinja2": _Package("Jinja2", "writes HTML reports", "report"),
    "distributed": _Package("Dask", "runs --workers and --scheduler", "dask"),
}


def is_installed(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


def explain_missing(*names: str) -> str:
    """Return two sentences for the first of some optional packages that is missing: fact and fix.

    "" where all are installed.
    """
    for name in names:
        if not is_installed(name):
            package = _PACKAGES[name]
            return (
                f"{package.title}, which {package.purpose}, is not installed. "
                f"Install it with pip install 'qdq[{package.extra}]'."
            )
    return ""


def require_package(name: str) -> None:
    """Raise MissingPackageError where an optional package is not installed."""
    reason = explain_missing(name)
    if reason:
        raise MissingPackageError(reason)


class _LatePackage(ModuleType):
    """A package that is imported when one of its names is first used."""

    def __getattr__(self, attribute: str) -> Any:
        require_package(self.__name__)
        value = getattr(importlib.import_module(self.__name__), attribute)
        setattr(self, attribute, value)
        return value


if not TYPE_CHECKING:
    onnxruntime = _LatePackage("onnxruntime")
