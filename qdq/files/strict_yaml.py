"""YAML read strictly: keys are text and occur once, and every mapping knows its lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from qdq.errors import RuleError, did_you_mean
from qdq.files.command_files import note_input

try:  # libyaml's parser, where PyYAML was built with it
    from yaml import CSafeLoader as FastLoader
except ImportError:
    from yaml import SafeLoader as FastLoader  # type: ignore[assignment]


#: The most levels of a text that libyaml composes: it recurses on the stack of the process.
_MOST_LEVELS = 2000

#: The most characters of a file that is read as rules, cases or settings. Its parser is slow.
_MOST_CHARACTERS = 4_000_000

#: How many characters the aliases of a document may repeat.
_MOST_REPEATED = 100_000

#: The largest absolute value of a whole number: Python prints no number of thousands of digits.
_LARGEST_INTEGER = 1 << 63


#: Halves of characters in UTF-16, which a text by itself cannot hold.
_SURROGATE = re.compile("[\ud800-\udfff]")


class LocatedMapping(dict[str, Any]):
    """A YAML mapping with its line and the line of each key."""

    def __init__(self, line: int = 1) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}


class _StrictConstructor(SafeConstructor):
    """Constructor that rejects repeated keys and keys other than text, and records lines."""

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
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:
            # PyYAML raises these for dates and explicit tags that it cannot convert
            line = _start_line(node)
            type_name = node.tag.rpartition(":")[2]
            raise RuleError(
                f"{line}: YAML cannot read {node.value!r} as {type_name}. Put it in quotes."
            ) from error
        _require_usable_scalar(value, _start_line(node))
        return value


class _StrictLoader(_StrictConstructor, yaml.SafeLoader):
    """Loader for texts of any depth: beyond Python's limit it raises RecursionError."""


class _FastStrictLoader(_StrictConstructor, FastLoader):
    """Loader of five times the speed, for texts that cannot be deep: libyaml has no limit."""


def _construct_mapping(loader: Any, node: yaml.MappingNode) -> Any:
    return loader.construct_mapping(node)


for _loader in (_StrictLoader, _FastStrictLoader):
    _loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def _require_usable_scalar(value: Any, line: int) -> None:
    """Raise RuleError, beginning with the line, for a value that no message could print."""
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise RuleError(f"{line}: the number is too large. Write a smaller one.")
    if isinstance(value, str) and _SURROGATE.search(value):
        raise RuleError(f"{line}: the text holds half of a character. Write the whole one.")


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
        return _construct_documents(_read_characters(path))
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


def _read_characters(path: Path) -> str:
    """Return the text of a file; raises RuleError for one that is too large, such as a device."""
    with path.open(encoding="utf-8") as file:
        text = file.read(_MOST_CHARACTERS + 1)
    if len(text) > _MOST_CHARACTERS:
        raise RuleError(
            f"1: the file has more than {_MOST_CHARACTERS} characters. Split it into smaller ones."
        )
    return text


def _bound_depth(text: str) -> int:
    """Return a number of levels that the nodes of a YAML text cannot exceed.

    A bracket opens one. A block collection is indented more than the one around it, but for a
    sequence in a mapping (YAML 1.2, section 8.2.1).
    """
    widest = max(map(len, text.splitlines()), default=0)
    return text.count("[") + text.count("{") + 2 * widest


def _construct_documents(text: str) -> list[tuple[int, Any]]:
    loader = (_FastStrictLoader if _bound_depth(text) <= _MOST_LEVELS else _StrictLoader)(text)
    documents: list[tuple[int, Any]] = []
    while loader.check_node():
        node = loader.get_node()
        if node is None:
            break
        _limit_aliases(node)
        content = loader.construct_document(node)
        documents.append((_start_line(node), content))
    return documents


def _limit_aliases(document: yaml.Node) -> None:
    """Raise RuleError where the aliases of a document repeat too much, or one contains itself.

    A few hundred bytes of aliases of lists of aliases stand for more than any memory holds.
    """
    measure = _NodeMeasure()
    if measure.size(document) - measure.written > _MOST_REPEATED:
        raise RuleError(
            f"{_start_line(document)}: the aliases repeat more than {_MOST_REPEATED} characters. "
            "Write the values themselves."
        )


class _NodeMeasure:
    """Measures nodes in characters, those behind aliases as often as they are read."""

    def __init__(self) -> None:
        #: The characters of all nodes, each counted once.
        self.written = 0
        self._sizes: dict[yaml.Node, int | None] = {}

    def size(self, node: yaml.Node) -> int:
        """Return the characters of a node and of all in it."""
        if node not in self._sizes:
            self._sizes[node] = None
            own = len(node.value) + 1 if isinstance(node, yaml.ScalarNode) else 1
            self.written += own
            self._sizes[node] = own + sum(map(self.size, _list_children(node)))
        size = self._sizes[node]
        if size is None:
            raise RuleError(f"{_start_line(node)}: the value contains itself. Remove the alias.")
        return size


def _list_children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return []


def parse_package_yaml(text: str) -> Any:
    """Return the content of a YAML file of the package; raises yaml.YAMLError."""
    return yaml.load(text, Loader=FastLoader)


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
    events = iter(yaml.parse(content, Loader=FastLoader))
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
