"""Entry point of the command `qdq` and of `python -m qdq`."""

from __future__ import annotations

from qdq.interruption import end_on_signals


def run() -> None:
    """Run the command line and end the process.

    The signals come first: Ctrl-C is most likely while the libraries are loaded.
    """
    end_on_signals()
    from qdq.cli import run as run_command

    run_command()


if __name__ == "__main__":  # worker processes import this module under another name
    run()
