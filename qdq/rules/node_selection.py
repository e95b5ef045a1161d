"""Nodes that an option selects: by a glob of names, by operator, or from one node to another.

`op:Softmax` are all nodes of an operator, `op:Reduce*` those of several. `range:FIRST..LAST` are
the nodes from one to another in the order of the graph that holds both.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from qdq.errors import UsageError, did_you_mean
from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex, Node
from qdq.rules.rule import Where

OPERATOR_PREFIX = "op:"
RANGE_PREFIX = "range:"
RANGE_SEPARATOR = ".."

#: The characters that globs give a meaning.
_SPECIAL = "[*?"


def make_where(index: GraphIndex, text: str, option: str, allow_unmatched: bool) -> Where:
    """Return the condition of a rule about the nodes that a text selects.

    `option` is what messages name. Raises UsageError for a range without both ends, and for an
    operator or a node of a range that the model has not, unless `allow_unmatched`.
    """
    if text.startswith(OPERATOR_PREFIX):
        return _select_operators(index, text, option, allow_unmatched)
    if text.startswith(RANGE_PREFIX):
        return _select_range(index, text, option, allow_unmatched)
    return Where(named=(text,))


def describe_selection(text: str) -> str:
    """Return the nodes that a text selects, as the object of a sentence."""
    if text.startswith(OPERATOR_PREFIX):
        return f"the operator {text.removeprefix(OPERATOR_PREFIX)}"
    if text.startswith(RANGE_PREFIX):
        first, _, last = text.removeprefix(RANGE_PREFIX).partition(RANGE_SEPARATOR)
        return f"the nodes from {first} to {last}"
    return f"the nodes named {text}"


def exact_glob(label: str) -> str:
    """Return the glob that matches a label alone."""
    return "".join(f"[{letter}]" if letter in _SPECIAL else letter for letter in label)


def split_literal_globs(globs: Iterable[str]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the globs without special characters, which are names, and the others."""
    names: set[str] = set()
    others: list[str] = []
    for glob in globs:
        if any(letter in _SPECIAL for letter in glob):
            others.append(glob)
        else:
            names.add(glob)
    return frozenset(names), tuple(others)


def _select_operators(index: GraphIndex, text: str, option: str, allow_unmatched: bool) -> Where:
    glob = text.removeprefix(OPERATOR_PREFIX)
    operators = sorted({node.op for scope in index.scopes.values() for node in scope.nodes})
    matching = tuple(operator for operator in operators if fnmatchcase(operator, glob))
    if matching or allow_unmatched:
        return Where(into=matching or (glob,))
    hint = did_you_mean(glob, operators) or "."
    raise UsageError(
        f"{index.source.name}: {option} {text}: no node is a {glob!r}{hint} Correct it, or pass "
        "--allow-unmatched."
    )


def _select_range(index: GraphIndex, text: str, option: str, allow_unmatched: bool) -> Where:
    first, separator, last = text.removeprefix(RANGE_PREFIX).partition(RANGE_SEPARATOR)
    if not (first and separator and last):
        raise UsageError(f"{option} {text}: the range has no two ends. Write range:FIRST..LAST.")
    for path, scope in index.scopes.items():
        labels = [qualified_name(path, node.label) for node in scope.nodes]
        if first in labels and last in labels:
            start, end = labels.index(first), labels.index(last)
            if start > end:
                raise UsageError(f"{option} {text}: {first!r} comes after {last!r}. Swap them.")
            return Where(named=tuple(map(exact_glob, labels[start : end + 1])))
    if allow_unmatched:
        return Where(named=(exact_glob(first),))
    raise UsageError(_describe_missing(index, text, option, (first, last)))


def _describe_missing(index: GraphIndex, text: str, option: str, ends: tuple[str, str]) -> str:
    place = f"{index.source.name}: {option} {text}"
    labels = [
        qualified_name(path, node.label)
        for path, scope in index.scopes.items()
        for node in scope.nodes
    ]
    for end in ends:
        if end not in labels:
            hint = did_you_mean(end, labels) or "."
            return f"{place}: no node is named {end!r}{hint} Correct it."
    return f"{place}: the nodes are not in the same graph. Write two ranges."


def list_selected(index: GraphIndex, where: Where) -> list[tuple[GraphIndex, Node]]:
    """Return the nodes of all graphs that a condition from `make_where` selects, in graph order."""
    selected: list[tuple[GraphIndex, Node]] = []
    for scope in index.scopes.values():
        for node in scope.nodes:
            names = glob_names(scope, node)
            is_named = any(fnmatchcase(name, glob) for name in names for glob in where.named)
            if is_named or node.op in where.into:
                selected.append((scope, node))
    return selected


def is_selection(text: str) -> bool:
    """Whether a text may select several nodes: a glob, an operator or a range."""
    prefixes = (OPERATOR_PREFIX, RANGE_PREFIX)
    return text.startswith(prefixes) or any(letter in _SPECIAL for letter in text)


def glob_names(index: GraphIndex, node: Node) -> set[str]:
    """Return the names of a node that a glob may match.

    They are its label, its name, and in a body the label after the body's path.
    """
    name = node.proto.name or node.label
    qualified_label = qualified_name(index.path, node.label)
    return {node.label, name, qualified_label}
