"""The option --open: a model in Netron, a viewer of networks that shows every node of a file."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import click

from qdq.errors import UsageError

_NETRON = "netron"

#: The viewers that were started. They are not waited for.
_viewers: list[subprocess.Popen[bytes]] = []

#: Adds ``--open``, which the command receives as `is_opened`.
open_option = click.option(
    "--open",
    "is_opened",
    is_flag=True,
    help="Then show the model in Netron (https://netron.app), where it is installed.",
)


def require_viewer() -> list[str]:
    """Return the command that starts Netron; raises UsageError where it is not installed."""
    command = shutil.which(_NETRON)
    if command is not None:
        return [command]
    if importlib.util.find_spec(_NETRON) is not None:
        return [sys.executable, "-c", f"import {_NETRON}; {_NETRON}.main()"]
    raise UsageError("--open: Netron is not installed. Install it with pip install netron.")


def open_model(path: Path) -> None:
    """Show a model in Netron, which keeps running after this process."""
    command = [*require_viewer(), "--browse", str(path.resolve())]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"{path}: Netron could not be started: {reason}. Open the file in it yourself."
        ) from error
    _viewers.append(process)
