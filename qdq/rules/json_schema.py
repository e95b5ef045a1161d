"""The JSON Schema of rule files, built from the loader's own tables, for completion in editors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx.defs

from qdq.quantizer import FORMATS
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, fact_parameters
from qdq.rules.rule import RATIO_AT_MOST
from qdq.rules.rule_document import (
    BACKENDS,
    LEAST_SM,
    REQUIRED_KEYS,
    RULE_KEYS,
    TARGET_KEYS,
    THENS,
    WHERE_KEYS,
)

#: The file next to the rules of a folder.
SCHEMA_FILE = "schema.json"

#: The first line of a rule file, before the schema's path, by which editors find it.
SCHEMA_LINE = "# yaml-language-server: $schema="

_Schema = dict[str, Any]
_TEXT: _Schema = {"type": "string", "pattern": r"\S"}
_NAME: _Schema = {"type": "string", "minLength": 1}
_POSITIVE: _Schema = {"type": "number", "exclusiveMinimum": 0}


def rule_schema() -> _Schema:
    """Return the JSON Schema (draft 7) of one rule: of each document in a rule file."""
    rule = _mapping(RULE_KEYS, _key_schemas(), required=list(REQUIRED_KEYS))
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A rule of qdq",
        "$comment": f"made by 'qdq rules schema', with the operators of onnx {onnx.__version__}",
        **rule,
        "if": {"properties": {"then": {"const": "quantize"}}, "required": ["then"]},
        "then": {"required": ["using"]},
        "else": {"not": {"required": ["using"]}},
        "definitions": {"operator": {"enum": operators()}},
    }


def given_words() -> dict[str, str]:
    """Return the words that `given` may hold, each with the facts that require it."""
    required_by: dict[str, list[str]] = {RATIO_AT_MOST: ["then: share-scale"]}
    for word, fact in (*NODE_FACTS.items(), *EDGE_FACTS.items()):
        for parameter in fact_parameters(fact):
            required_by.setdefault(parameter, []).append(word)
    descriptions = {}
    for parameter, users in sorted(required_by.items()):
        descriptions[parameter] = f"Used by {', '.join(sorted(users))}."
    return descriptions


def operators() -> list[str]:
    """Return the names of ONNX's operators, sorted."""
    names: set[str] = set()
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            names.add(schema.name)
    return sorted(names)


def _key_schemas() -> dict[str, _Schema]:
    """Return the schema of each key of a rule."""
    numbers = given_words()
    formats = {name: form.description for name, form in FORMATS.items()}
    schemas: dict[str, _Schema] = dict.fromkeys(RULE_KEYS, _TEXT)
    schemas["rule"] = {"type": "string", "pattern": r"^\S+$"}
    schemas["where"] = _mapping(WHERE_KEYS, _where_schemas(), minProperties=1)
    schemas["given"] = _mapping(numbers, dict.fromkeys(numbers, _POSITIVE))
    schemas["then"] = _one_of(THENS)
    schemas["using"] = _one_of(formats)
    schemas["beats"] = _word_or_list(_NAME)
    return schemas


def _where_schemas() -> dict[str, _Schema]:
    node_fact = _one_of(_fact_descriptions(NODE_FACTS))
    edge_fact = _one_of(_fact_descriptions(EDGE_FACTS))
    operator = {"$ref": "#/definitions/operator"}
    operator_of_domain = {"type": "string", "pattern": r"\."}
    node_word = {"anyOf": [node_fact, operator, operator_of_domain]}
    return {
        "into": _word_or_list(node_word),
        "from": _word_or_list(node_word),
        "edge": _word_or_list(edge_fact),
        "named": _word_or_list(_NAME),
        "tensor": _word_or_list(_NAME),
        "target": _target_schema(),
    }


def _target_schema() -> _Schema:
    capability: _Schema = {"type": "integer", "minimum": LEAST_SM}
    backend = {"enum": list(BACKENDS)}
    schemas = {"sm_at_most": capability, "sm_at_least": capability, "backend": backend}
    return _mapping(TARGET_KEYS, schemas, minProperties=1)


def _fact_descriptions(facts: Mapping[str, Callable[..., bool]]) -> dict[str, str]:
    descriptions = {}
    for word, fact in sorted(facts.items()):
        docstring = fact.__doc__ or ""
        descriptions[word] = " ".join(docstring.split())
    return descriptions


def _one_of(descriptions: Mapping[str, str]) -> _Schema:
    """Return the schema of one of some words, each with a description."""
    schemas: list[_Schema] = []
    for word, text in descriptions.items():
        schema = {"const": word, "description": text}
        schemas.append(schema)
    return {"anyOf": schemas}


def _word_or_list(word: _Schema) -> _Schema:
    several = {"type": "array", "items": word, "minItems": 1}
    return {"anyOf": [word, several]}


def _mapping(
    descriptions: Mapping[str, str], schemas: Mapping[str, _Schema], **keywords: Any
) -> _Schema:
    """Return the schema of a mapping with described keys and no others."""
    properties = {}
    for key, description in descriptions.items():
        properties[key] = {"description": description, **schemas[key]}
    return {"type": "object", "properties": properties, "additionalProperties": False, **keywords}
