"""YAML read strictly: keys are words and given once, and everything knows its line."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from qdq.errors import RuleError, did_you_mean


class LocatedMapping(dict[str, Any]):
    """A YAML mapping that remembers its line and that of each key."""

    def __init__(self, line: int = 1) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses repeated keys and keys that are not words, and remembers lines."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = True) -> dict[Hashable, Any]:
        mapping = LocatedMapping(node.start_mark.line + 1)
        for key_node, value_node in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise RuleError(
                    f"{line}: YAML reads the key {key_node.value!r} as {key!r}; put it in quotes"
                )
            if key in mapping:
                raise RuleError(f"{line}: the key {key!r} is given twice; remove one")
            mapping[key] = self.construct_object(value_node, deep=True)
            mapping.lines[key] = line
        return mapping  # type: ignore[return-value] # every key was checked to be a word

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            KeyError,
            AttributeError,
        ) as error:  # PyYAML's, for dates and explicit tags
            raise RuleError(
                f"{node.start_mark.line + 1}: YAML cannot read {node.value!r} as {node.tag.rpartition(':')[2]}; put it in quotes"
            ) from error


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _StrictLoader.construct_mapping)


def read_documents(path: Path) -> list[tuple[int, Any]]:
    """Return the line and content of each document in a YAML file, mappings as `LocatedMapping`; raises RuleError with file and line."""
    try:
        loader = _StrictLoader(path.read_text(encoding="utf-8"))
        documents = []
        while loader.check_node() and (node := loader.get_node()) is not None:
            documents.append((node.start_mark.line + 1, loader.construct_document(node)))
        return documents
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RuleError(
            f"{path}:{line}: not valid YAML: {error.problem}; quote values that begin with a sign"
        ) from error
    except RecursionError as error:
        raise RuleError(
            f"{path}: is nested too deeply; a rule or case file needs a few levels only"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RuleError(f"{path}: cannot be read: {error}") from error


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file of one document, None for an empty one; raises RuleError with file and line."""
    documents = read_documents(path)
    if len(documents) > 1:
        raise RuleError(f"{path}:{documents[1][0]}: a second document begins; this file holds one")
    return documents[0][1] if documents else None


def require_known_keys(
    mapping: LocatedMapping, known: Iterable[str], required: Iterable[str] = ()
) -> None:
    """Raise RuleError, from its line on, for a key that is not known or a required one that is missing."""
    known = tuple(known)
    for key in mapping:
        if key not in known:
            raise RuleError(
                f"{mapping.lines[key]}: unknown key {key!r}{did_you_mean(key, known)}; known are {', '.join(known) or 'none'}"
            )
    for key in required:
        if key not in mapping:
            raise RuleError(f"{mapping.line}: the key {key!r} is missing")


def read_text(mapping: LocatedMapping, key: str) -> str:
    """Return the text behind a key, white space folded; raises RuleError, from its line on, for anything else."""
    value = mapping[key]
    if not isinstance(value, str) or not value.strip():
        raise RuleError(
            f"{mapping.lines[key]}: {key!r} must be text, not {value!r}; put it in quotes"
        )
    return " ".join(value.split())


def read_choice(mapping: LocatedMapping, key: str, known: Iterable[str]) -> Any:
    """Return the value behind a key if it is one of `known`; raises RuleError, from its line on, if not."""
    value, known = mapping[key], tuple(known)
    if value not in known:
        raise RuleError(
            f"{mapping.lines[key]}: {key!r} is {value!r}; it must be one of {', '.join(known)}{did_you_mean(str(value), known)}"
        )
    return value


def read_words(
    mapping: LocatedMapping, key: str, check: Callable[[str], str] = str
) -> tuple[str, ...]:
    """Return the word or list of words behind a key, none where it is missing; `check` may raise RuleError for each."""
    if key not in mapping:
        return ()
    value, line = mapping[key], mapping.lines[key]
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(w, str) and w for w in found):
        raise RuleError(f"{line}: {key!r} must be a word or a list of words, not {value!r}")
    try:
        return tuple(check(w) for w in found)
    except RuleError as error:
        raise RuleError(f"{line}: {error}") from error


#: libyaml's parser where PyYAML was built with it: plans of large models have many lines.
_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_text_yaml(content: bytes) -> Any:
    """Return one YAML document as `LocatedMapping` mappings, lists and texts: every scalar stays the text that it is.

    Raises RuleError, from its line on, for a repeated key, an alias, a tag or a second document, and
    yaml.YAMLError for what is no YAML.
    """
    events = iter(yaml.parse(content, Loader=_FAST))
    found: Any = None
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if found is not None:
                raise RuleError(f"{_line(event)}: a second document begins; this file holds one")
            found = _texts(next(events), events)
    return found


def _texts(event: yaml.Event, events: Iterator[yaml.Event]) -> Any:
    if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
        raise RuleError(
            f"{_line(event)}: tags and aliases are not read here; write the value itself"
        )
    if isinstance(event, yaml.ScalarEvent):
        return event.value
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_texts(event, events))
        return items
    mapping = LocatedMapping(_line(event))
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _texts(event, events)
        if not isinstance(key, str):
            raise RuleError(f"{_line(event)}: a key must be a word")
        if key in mapping:
            raise RuleError(f"{_line(event)}: the key {key!r} is given twice; remove one")
        mapping.lines[key] = _line(event)
        mapping[key] = _texts(next(events), events)
    return mapping


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
