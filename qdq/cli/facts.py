"""`qdq facts`: the words that rules may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click
import msgspec

from qdq.cli.options import format_option, show
from qdq.quantizer import FORMATS
from qdq.reports.sections import Section
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, fact_parameters


class Fact(msgspec.Struct, frozen=True):
    """One word, where it may stand, and what it means."""

    word: str
    context: str
    description: str
    #: The numbers that a rule must give it under `given`.
    parameters: tuple[str, ...] = ()


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
    facts = [*_facts(NODE_FACTS, "from, into"), *_facts(EDGE_FACTS, "edge")]
    facts += [Fact(name, "using", form.description) for name, form in sorted(FORMATS.items())]
    rows = tuple((f.word, f.context, ", ".join(f.parameters), f.description) for f in facts)
    show(
        layout,
        Answer(tuple(facts)),
        [Section("Facts and formats", (), ("word", "behind", "given", "holds for"), rows)],
    )


def _facts(functions: dict[str, Callable[..., bool]], behind: str) -> Iterator[Fact]:
    for word, function in sorted(functions.items()):
        yield Fact(
            word, behind, " ".join((function.__doc__ or "").split()), fact_parameters(function)
        )
