"""`python -m qdq` is the command `qdq`."""

from __future__ import annotations

from qdq.cli import run

if __name__ == "__main__":  # and not where a worker process imports it again
    run()
