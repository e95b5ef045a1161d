"""YAML read strictly: keys are text and occur once, and every mapping knows its lines."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from qdq.errors import RuleError, did_you_mean
from qdq.files.command_files import note_input

#: libyaml's parser where PyYAML was built with it: plans of large models have many lines.
_FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class LocatedMapping(dict[str, Any]):
    """A YAML mapping with its line and the line of each key."""

    def __init__(self, line: int = 1) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that rejects repeated keys and keys other than text, and records lines."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = True) -> dict[Hashable, Any]:
        mapping = LocatedMapping(_start_line(node))
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            line = _start_line(key_node)
            if not isinstance(key, str):
                raise RuleError(
                    f"{line}: YAML reads the key {key_node.value!r} as {key!r}. Put it in quotes."
                )
            _require_new_key(mapping, key, line)
            mapping[key] = self.construct_object(value_node, deep=True)
            mapping.lines[key] = line
        return mapping  # type: ignore[return-value] # every key is text

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:
            # PyYAML raises these for dates and explicit tags that it cannot convert
            line = _start_line(node)
            type_name = node.tag.rpartition(":")[2]
            raise RuleError(
                f"{line}: YAML cannot read {node.value!r} as {type_name}. Put it in quotes."
            ) from error


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _StrictLoader.construct_mapping)


def _start_line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _require_new_key(mapping: LocatedMapping, key: str, line: int) -> None:
    if key in mapping:
        raise RuleError(f"{line}: the key {key!r} is given twice. Remove one.")


def read_documents(path: Path) -> list[tuple[int, Any]]:
    """Return the line and content of each document in a YAML file.

    Mappings are `LocatedMapping`. Raises RuleError with file and line.
    """
    note_input(path)
    try:
        return _construct_documents(path.read_text(encoding="utf-8"))
    except RuleError as error:
        raise RuleError(f"{path}:{error}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RuleError(
            f"{path}:{line}: the file is not valid YAML: {error.problem}."
            " Quote values that begin with a sign."
        ) from error
    except RecursionError as error:
        raise RuleError(
            f"{path}: the YAML is nested too deeply. Write rules and cases in a few levels."
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RuleError(f"{path}: the file cannot be read: {error}") from error


def _construct_documents(text: str) -> list[tuple[int, Any]]:
    loader = _StrictLoader(text)
    documents: list[tuple[int, Any]] = []
    while loader.check_node():
        node = loader.get_node()
        if node is None:
            break
        content = loader.construct_document(node)
        documents.append((_start_line(node), content))
    return documents


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file of one document, None for an empty one.

    Raises RuleError with file and line.
    """
    documents = read_documents(path)
    if not documents:
        return None
    if len(documents) > 1:
        line, _ = documents[1]
        raise RuleError(f"{path}:{line}: a second document begins. Keep one document in this file.")
    _, content = documents[0]
    return content


def require_known_keys(
    mapping: LocatedMapping, known: Iterable[str], required: Iterable[str] = ()
) -> None:
    """Raise RuleError, beginning with the line, for an unknown key or a missing required one."""
    known = tuple(known)
    for key in mapping:
        if key not in known:
            line = mapping.lines[key]
            hint = did_you_mean(key, known) or "."
            known_keys = ", ".join(known) or "none"
            raise RuleError(f"{line}: unknown key {key!r}{hint} The known keys are {known_keys}.")
    for key in required:
        if key not in mapping:
            raise RuleError(f"{mapping.line}: the key {key!r} is missing. Add it.")


def read_text(mapping: LocatedMapping, key: str) -> str:
    """Return the text of a key with white space folded.

    Raises RuleError, beginning with the line, for any other value.
    """
    value = mapping[key]
    if not isinstance(value, str) or not value.strip():
        line = mapping.lines[key]
        raise RuleError(f"{line}: {key!r} must be text, not {value!r}. Put it in quotes.")
    return " ".join(value.split())


def read_choice(mapping: LocatedMapping, key: str, known: Iterable[str]) -> Any:
    """Return the value of a key, which must be in `known`.

    Raises RuleError, beginning with the line, for any other value.
    """
    value = mapping[key]
    choices = tuple(known)
    if value not in choices:
        line = mapping.lines[key]
        choices_text = ", ".join(choices)
        hint = did_you_mean(str(value), choices) or "."
        raise RuleError(f"{line}: {key!r} is {value!r}; it must be one of {choices_text}{hint}")
    return value


def read_words(
    mapping: LocatedMapping, key: str, check: Callable[[str], str] = str
) -> tuple[str, ...]:
    """Return the word or list of words of a key, none where the key is missing.

    `check` returns each word as it is used, or raises RuleError.
    Raises RuleError, beginning with the line.
    """
    if key not in mapping:
        return ()
    value = mapping[key]
    line = mapping.lines[key]
    words = value if isinstance(value, list) else [value]
    if not words or not all(isinstance(word, str) and word for word in words):
        raise RuleError(f"{line}: {key!r} must be a word or a list of words, not {value!r}.")
    try:
        return tuple(check(word) for word in words)
    except RuleError as error:
        raise RuleError(f"{line}: {error}") from error


def parse_text_yaml(content: bytes) -> Any:
    """Return one YAML document as `LocatedMapping` mappings, lists and texts.

    Every scalar stays text. Raises RuleError, beginning with the line, for a repeated key, an
    alias, a tag or a second document, and yaml.YAMLError for invalid YAML.
    """
    events = iter(yaml.parse(content, Loader=_FAST_LOADER))
    document: Any = None
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            if document is not None:
                line = _event_line(event)
                raise RuleError(
                    f"{line}: a second document begins. Keep one document in this file."
                )
            document = _build_value(next(events), events)
    return document


def _build_value(event: yaml.Event, events: Iterator[yaml.Event]) -> Any:
    """Return the value that begins with an event."""
    if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None) is not None:
        line = _event_line(event)
        raise RuleError(f"{line}: tags and aliases are not supported. Write the value itself.")
    if isinstance(event, yaml.ScalarEvent):
        return event.value
    if isinstance(event, yaml.SequenceStartEvent):
        return _build_list(events)
    return _build_mapping(event, events)


def _build_list(events: Iterator[yaml.Event]) -> list[Any]:
    items: list[Any] = []
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            break
        items.append(_build_value(event, events))
    return items


def _build_mapping(start: yaml.Event, events: Iterator[yaml.Event]) -> LocatedMapping:
    mapping = LocatedMapping(_event_line(start))
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            break
        key = _build_value(event, events)
        line = _event_line(event)
        if not isinstance(key, str):
            raise RuleError(f"{line}: a key must be a word.")
        _require_new_key(mapping, key, line)
        mapping.lines[key] = line
        mapping[key] = _build_value(next(events), events)
    return mapping


def _event_line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
