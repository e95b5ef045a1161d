"""Functions of the user's Python scripts: data loaders and metrics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from qdq.errors import QdqError, first_line
from qdq.files.command_files import note_input


def is_script(name: str) -> bool:
    """Whether a text names a Python script, with or without the name of a function."""
    return name.endswith(".py") or ".py:" in name


def split_script_name(name: str, default: str) -> tuple[Path, str]:
    """Return the file and the function of ``FILE.py:FUNCTION``; `default` is the function's."""
    file, _, function = name.partition(".py")
    return Path(f"{file}.py"), function.lstrip(":") or default


def load_function(path: Path, function: str, error_type: type[QdqError]) -> Callable[..., Any]:
    """Return a function of a script, which is run for it.

    Raises `error_type` where the script fails or has no such function.
    """
    try:
        loaded = _run_script(path).get(function)
    except QdqError:
        raise
    except (Exception, SystemExit) as error:
        raise script_failure(path, error, error_type) from error
    if not callable(loaded):
        raise error_type(
            f"{path}: the script has no function {function}(). "
            f"Define it, or pass {path}:FUNCTION to name another."
        )
    return loaded  # type: ignore[no-any-return] # the script is untyped


def script_failure(path: Path, error: BaseException, error_type: type[QdqError]) -> QdqError:
    """Return the error for an exception of the user's script."""
    failure = f"{type(error).__name__}: {first_line(error)}"
    return error_type(f"{path}: the script failed: {failure}. Fix the script.")


def _run_script(path: Path) -> dict[str, Any]:
    """Run a script that may import its neighbours, and return its namespace."""
    note_input(path)
    module = ModuleType(f"qdq_script_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    finally:
        del sys.path[0]
    return module.__dict__
