"""Changes to the values of YAML and JSON: other types, lost and doubled keys, odd numbers."""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Container = dict[Any, Any] | list[Any]

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-42, 3.5e38, 1e308, float("nan"), float("inf"),
    -float("inf"), 1 << 31, 1 << 63, 1 << 70, -(1 << 63), "", " ", "x", "0", "-1", "1e5", "nan",
    "null", "a\nb", "a\0b", "\x1b[31mred", "\u2028", "\ud7ff", "*", "[", "{}", "%s%n", "../x",
    "/etc/passwd", "tensorrt", "FLOAT", "INT8", "Conv", "x" * 3000, [], [[]], [None], {}, {"": ""},
    {"a": {"b": {}}}, [0] * 50, datetime.date(2020, 1, 1), b"bytes", [1, "a", None],
)  # fmt: skip


def mutate_yaml(content: bytes, rng: random.Random, count: int = 1) -> bytes:
    """Return a YAML file with some values changed."""
    documents = [_Root(document) for document in yaml.load_all(content, _LOADER)]
    for _ in range(count):
        _mutate_document(rng.choice(documents), rng)
    values = [document.value for document in documents]
    flow = rng.choice((None, None, True, False))
    dumped: str = yaml.dump_all(
        values, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=flow
    )
    return dumped.encode("utf-8", "surrogatepass")


def mutate_json(content: bytes, rng: random.Random, count: int = 1) -> bytes:
    """Return a JSON file with some values changed."""
    return json.dumps(mutate_value(json.loads(content), rng, count), default=str).encode()


def mutate_value(value: Any, rng: random.Random, count: int = 1) -> Any:
    """Return nested lists and mappings with some values changed."""
    document = _Root(value)
    for _ in range(count):
        _mutate_document(document, rng)
    return document.value


class _Root:
    """A document, in a list of one, so that it can be replaced like any value."""

    def __init__(self, value: Any) -> None:
        self.holder: list[Any] = [value]

    @property
    def value(self) -> Any:
        return self.holder[0] if self.holder else None


def _mutate_document(document: _Root, rng: random.Random) -> None:
    containers = list(_containers(document.holder))
    container = rng.choice(containers)
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    if keys:
        rng.choice(VALUE_MUTATIONS)(container, rng.choice(keys), rng, containers)
    else:
        _add(container, None, rng, containers)


def _containers(value: Any) -> Iterator[Container]:
    if isinstance(value, (dict, list)):
        yield value
        for item in list(value.values() if isinstance(value, dict) else value):
            yield from _containers(item)


def _replace(container: Any, key: Any, rng: random.Random, _all: list[Container]) -> None:
    container[key] = rng.choice(ODD_VALUES)


def _lose(container: Any, key: Any, _rng: random.Random, _all: list[Container]) -> None:
    del container[key]


def _rename(container: Any, key: Any, rng: random.Random, _all: list[Container]) -> None:
    value = container[key]
    if isinstance(container, dict):
        del container[key]
        text = str(key)
        odd = (text[:-1], text + "s", text.upper(), "", 0, None, True, 1.5, text + "\n")
        container[rng.choice(odd)] = value


def _add(container: Any, _key: Any, rng: random.Random, _all: list[Container]) -> None:
    value = rng.choice(ODD_VALUES)
    if isinstance(container, dict):
        container[rng.choice(("extra", "", "rule", "name", 7, None))] = value
    else:
        container.append(value)


def _repeat(container: Any, key: Any, rng: random.Random, _all: list[Container]) -> None:
    value = container[key]
    if isinstance(container, list):
        container.extend([value] * rng.choice((1, 2, 100)))
    else:
        container[f"{key}2"] = value


def _wrap(container: Any, key: Any, rng: random.Random, _all: list[Container]) -> None:
    value = container[key]
    container[key] = rng.choice(([value], {"value": value}, [value, value], str(value)))


def _take_from_elsewhere(
    container: Any, key: Any, rng: random.Random, containers: list[Container]
) -> None:
    other = rng.choice(containers)
    values = list(other.values()) if isinstance(other, dict) else list(other)
    scalars = [value for value in values if not isinstance(value, (dict, list))]
    if scalars:
        container[key] = rng.choice(scalars)


def _scale_number(container: Any, key: Any, rng: random.Random, _all: list[Container]) -> None:
    value = container[key]
    if isinstance(value, (int, float)):
        container[key] = value * rng.choice((-1, 0, 2, 1000, 1e-30, 1e30))
    elif isinstance(value, str) and value:
        at = rng.randrange(len(value))
        container[key] = value[:at] + rng.choice(("", "x", " ", "\n", "0", ",", "é")) + value[at:]


def _nest(container: Any, key: Any, rng: random.Random, _all: list[Container]) -> None:
    value = container[key]
    for _ in range(rng.choice((3, 30))):
        value = [value]
    container[key] = value


VALUE_MUTATIONS: tuple[Callable[[Any, Any, random.Random, list[Container]], None], ...] = (
    _replace,
    _replace,
    _lose,
    _rename,
    _add,
    _repeat,
    _wrap,
    _take_from_elsewhere,
    _take_from_elsewhere,
    _scale_number,
    _nest,
)
