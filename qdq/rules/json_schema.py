"""The JSON Schema of rule files, made from the tables that the loader reads them by, so that editors complete them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx.defs

from qdq.quantizer import FORMATS
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, fact_parameters
from qdq.rules.rule import RATIO_AT_MOST
from qdq.rules.rule_files import (
    BACKENDS,
    KEYS,
    LEAST_SM,
    REQUIRED_KEYS,
    TARGET_KEYS,
    THENS,
    WHERE_KEYS,
)

#: The file beside the rule sets, and the line that names it to editors, for a rule file in a set's folder.
SCHEMA_FILE = "schema.json"
SCHEMA_LINE = "# yaml-language-server: $schema="
_Schema = dict[str, Any]
_TEXT: _Schema = {"type": "string", "pattern": r"\S"}
_NAME: _Schema = {"type": "string", "minLength": 1}


def rule_schema() -> _Schema:
    """Return the JSON Schema (draft 7) of one rule; it holds for each document of a file of several."""
    kinds: dict[str, _Schema] = {
        "rule": {"type": "string", "pattern": r"^\S+$"},
        "where": _mapping(WHERE_KEYS, _where(), minProperties=1),
        "given": _mapping(
            given_words(),
            {word: {"type": "number", "exclusiveMinimum": 0} for word in given_words()},
        ),
        "then": _described(THENS),
        "using": _described({name: form.description for name, form in FORMATS.items()}),
        "beats": _words(_NAME),
    }
    schema = _mapping(
        KEYS, {key: kinds.get(key, _TEXT) for key in KEYS}, required=list(REQUIRED_KEYS)
    )
    quantizes = {"properties": {"then": {"const": "quantize"}}, "required": ["then"]}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A rule of qdq",
        "$comment": f"made by 'qdq rules schema', with the operators of onnx {onnx.__version__}",
        **schema,
        "if": quantizes,
        "then": {"required": ["using"]},
        "else": {"not": {"required": ["using"]}},
        "definitions": {"operator": {"enum": operators()}},
    }


def given_words() -> dict[str, str]:
    """Return the words that `given` may hold, each with what asks for it."""
    asked: dict[str, list[str]] = {RATIO_AT_MOST: ["then: share-scale"]}
    for word, fact in (*NODE_FACTS.items(), *EDGE_FACTS.items()):
        for parameter in fact_parameters(fact):
            asked.setdefault(parameter, []).append(word)
    return {
        parameter: f"Asked for by {', '.join(sorted(by))}."
        for parameter, by in sorted(asked.items())
    }


def operators() -> list[str]:
    """Return the names of ONNX's operators."""
    return sorted(
        {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    )


def _where() -> dict[str, _Schema]:
    about_nodes = _words(
        {
            "anyOf": [
                _described(_says(NODE_FACTS)),
                {"$ref": "#/definitions/operator"},
                {"type": "string", "pattern": r"\."},
            ]
        }
    )
    sm: _Schema = {"type": "integer", "minimum": LEAST_SM}
    return {
        "into": about_nodes,
        "from": about_nodes,
        "edge": _words(_described(_says(EDGE_FACTS))),
        "named": _words(_NAME),
        "tensor": _words(_NAME),
        "target": _mapping(
            TARGET_KEYS,
            {"sm_at_most": sm, "sm_at_least": sm, "backend": {"enum": list(BACKENDS)}},
            minProperties=1,
        ),
    }


def _says(facts: Mapping[str, Callable[..., bool]]) -> dict[str, str]:
    return {word: " ".join((fact.__doc__ or "").split()) for word, fact in sorted(facts.items())}


def _described(words: Mapping[str, str]) -> _Schema:
    return {"anyOf": [{"const": word, "description": says} for word, says in words.items()]}


def _words(word: _Schema) -> _Schema:
    return {"anyOf": [word, {"type": "array", "items": word, "minItems": 1}]}


def _mapping(says: Mapping[str, str], kinds: Mapping[str, _Schema], **more: Any) -> _Schema:
    properties = {key: {"description": says[key], **kinds[key]} for key in says}
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}
