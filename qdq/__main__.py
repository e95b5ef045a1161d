"""Entry point of `qdq` and of `python -m qdq`."""

from __future__ import annotations

import signal


def run() -> None:
    """Run the command line; until that is imported, Ctrl-C ends the process without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from qdq.cli import run as run_command

    run_command()


if __name__ == "__main__":  # worker processes import this module under another name
    run()
