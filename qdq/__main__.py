"""`python -m qdq` is the command `qdq`."""

from qdq.cli import run

run()
