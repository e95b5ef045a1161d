"""`qdq facts`: the facts and formats that rules may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import click
import msgspec

from qdq.cli.messages import print_record
from qdq.cli.options import format_option
from qdq.quantizer import FORMATS
from qdq.reports.sections import Section
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, fact_parameters


class Fact(msgspec.Struct, frozen=True):
    """One word, the keys of a rule that it may follow, and its meaning."""

    #: The word.
    word: str
    #: The keys of a rule that take it.
    context: str
    #: Its meaning.
    description: str
    #: The numbers that a rule must give it under `given`.
    parameters: tuple[str, ...] = ()


class FactsAnswer(msgspec.Struct, frozen=True):
    """All words of the rule language."""

    facts: tuple[Fact, ...]


@click.command("facts")
@format_option
def command(layout: str) -> None:
    """Print the kebab-case words that rules may use in addition to the names of ONNX operators.

    \b
    Example:
      qdq facts
    """
    facts = [*_list_facts(NODE_FACTS, "from, into"), *_list_facts(EDGE_FACTS, "edge")]
    for name, quantizer in sorted(FORMATS.items()):
        facts.append(Fact(name, "using", quantizer.description))
    rows = tuple(_table_row(fact) for fact in facts)
    headers = ("word", "used in", "given", "holds for")
    section = Section("Facts and formats", headers=headers, rows=rows)
    print_record(layout, FactsAnswer(tuple(facts)), [section])


def _list_facts(functions: Mapping[str, Callable[..., bool]], context: str) -> Iterator[Fact]:
    for word, function in sorted(functions.items()):
        description = " ".join((function.__doc__ or "").split())
        yield Fact(word, context, description, fact_parameters(function))


def _table_row(fact: Fact) -> tuple[str, ...]:
    return (fact.word, fact.context, ", ".join(fact.parameters), fact.description)
