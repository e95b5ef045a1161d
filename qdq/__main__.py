"""Entry point of `python -m qdq`."""

from __future__ import annotations

from qdq.cli import run

if __name__ == "__main__":  # worker processes import this module under another name
    run()
