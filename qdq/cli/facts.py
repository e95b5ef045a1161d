"""`qdq facts`: the words that rules may use."""

from __future__ import annotations

import click
import msgspec

from qdq.cli.options import format_option, show
from qdq.facts import EDGE_FACTS, NODE_FACTS
from qdq.reporting import Section


class Fact(msgspec.Struct, frozen=True):
    """One word, where it may stand, and what it means."""

    word: str
    behind: str
    says: str


class Answer(msgspec.Struct, frozen=True):
    """What `--format json` prints."""

    facts: tuple[Fact, ...]


@click.command("facts")
@format_option
def command(layout: str) -> None:
    """Print the kebab-case words that rules may use, besides the names of ONNX operators.

    \b
    Example:
      qdq facts
    """
    facts = [Fact(word, "from, into", " ".join((f.__doc__ or "").split())) for word, f in sorted(NODE_FACTS.items())]
    facts += [Fact(word, "edge", " ".join((f.__doc__ or "").split())) for word, f in sorted(EDGE_FACTS.items())]
    rows = tuple((f.word, f.behind, f.says) for f in facts)
    show(layout, Answer(tuple(facts)), [Section("Facts", (), ("word", "behind", "holds for"), rows)])
