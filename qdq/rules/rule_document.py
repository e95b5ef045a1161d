"""The YAML document of one rule: its keys, and the rule that it states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import onnx.defs

from qdq.errors import RuleError, did_you_mean
from qdq.files.strict_yaml import (
    LocatedMapping,
    read_choice,
    read_text,
    read_words,
    require_known_keys,
)
from qdq.quantizer import FORMATS
from qdq.rules.facts import EDGE_FACTS, NODE_FACTS, fact_parameters
from qdq.rules.rule import RATIO_AT_MOST, Rule, TargetCondition, Where

#: The keys of a rule, each with its meaning.
RULE_KEYS = {
    "rule": "The rule's name in kebab-case: the file's name, unless the file holds several rules.",
    "says": "The rule in one sentence.",
    "because": "The reason: what TensorRT does.",
    "see": "A document or issue that states it.",
    "evidence": "What was measured, or the source of the finding.",
    "where": "The edges: all lines must hold, and any word of a list.",
    "given": "The numbers that the facts in 'where' require; for share-scale, ratio-at-most.",
    "then": "The decision for these edges.",
    "using": "The number format, for 'then: quantize'.",
    "beats": "Rules that drop out where this one applies too; '*' means all.",
}
REQUIRED_KEYS = ("rule", "says", "where", "then")
_TEXT_KEYS = ("says", "because", "see", "evidence")

#: The keys of `where`.
WHERE_KEYS = {
    "into": "The consuming node: an ONNX operator, a domain.Operator, or a fact about nodes.",
    "from": "The node that produces the edge's tensor, in the same form.",
    "edge": "A fact about the edge itself.",
    "named": "A glob that matches the consuming node's name in full.",
    "tensor": "A glob that matches the tensor's name in full.",
    "target": "Conditions that one of the plan's targets meets.",
}

#: The keys of `target`.
TARGET_KEYS = {
    "sm_at_most": "The highest compute capability, times ten.",
    "sm_at_least": "The lowest compute capability, times ten.",
    "backend": "The compiler: rtx for TensorRT-RTX, trt for TensorRT.",
}

#: The decisions.
THENS = {
    "quantize": "Put a Q/DQ pair on the edge.",
    "leave-float": "Keep the edge in float.",
    "share-scale": "Give the quantized tensors that the nodes connect one scale.",
    "keep-fp32": "Compute the consuming node in float32 where the rest is cast to FP16 or BF16.",
}
BACKENDS = ("rtx", "trt")

#: Compute capability 1.0, times ten.
LEAST_SM = 10


def parse_rule(content: Any, line: int, path: Path) -> Rule:
    """Return the rule that a document states; raises RuleError that begins with the line."""
    if not isinstance(content, LocatedMapping):
        raise RuleError(f"{line}: a rule file is a mapping that begins with 'rule: NAME'.")
    require_known_keys(content, RULE_KEYS, REQUIRED_KEYS)
    name = read_text(content, "rule")
    texts = {key: read_text(content, key) for key in _TEXT_KEYS if key in content}
    then = read_choice(content, "then", THENS)
    where = _parse_where(content)
    return Rule(
        name=name,
        where=where,
        then=then,
        using=_read_format(content, then),
        given=_read_numbers(content, where, then),
        beats=read_words(content, "beats"),
        file=str(path),
        lines=(*content.lines.items(), *content["where"].lines.items()),
        **texts,
    )


def _parse_where(content: LocatedMapping) -> Where:
    lines = content["where"]
    if not isinstance(lines, LocatedMapping) or not lines:
        keys = ", ".join(WHERE_KEYS)
        raise _mistake(content, "where", f"'where' needs at least one of {keys}.")
    require_known_keys(lines, WHERE_KEYS)
    return Where(
        into=read_words(lines, "into", _check_node_word),
        from_=read_words(lines, "from", _check_node_word),
        edge=read_words(lines, "edge", _check_edge_word),
        named=read_words(lines, "named"),
        tensor=read_words(lines, "tensor"),
        target=_parse_target_condition(lines),
    )


def _check_node_word(word: str) -> str:
    """Return a word for nodes as it is; raises RuleError for an unknown one."""
    if word in NODE_FACTS or "." in word or onnx.defs.has(word):
        return word
    if word in EDGE_FACTS:
        raise RuleError(f"{word!r} is a fact about edges. Write it under 'edge'.")
    if word[:1].isupper():
        known = {schema.name for schema in onnx.defs.get_all_schemas()}
        hint = did_you_mean(word, known) or "."
        raise RuleError(
            f"{word!r} is not an ONNX operator{hint} "
            "Write an operator of another domain as domain.Operator."
        )
    hint = did_you_mean(word, NODE_FACTS) or "."
    raise RuleError(f"unknown fact {word!r}{hint} Run 'qdq facts' for a list.")


def _check_edge_word(word: str) -> str:
    """Return a word for edges as it is; raises RuleError for an unknown one."""
    if word in EDGE_FACTS:
        return word
    if word in NODE_FACTS or onnx.defs.has(word):
        raise RuleError(f"{word!r} is about nodes. Write it under 'into' or 'from'.")
    hint = did_you_mean(word, EDGE_FACTS) or "."
    raise RuleError(f"unknown fact {word!r}{hint} Run 'qdq facts' for a list.")


def _parse_target_condition(where: LocatedMapping) -> TargetCondition | None:
    if "target" not in where:
        return None
    condition = where["target"]
    if not isinstance(condition, LocatedMapping) or not condition:
        keys = ", ".join(TARGET_KEYS)
        raise _mistake(where, "target", f"'target' needs at least one of {keys}.")
    require_known_keys(condition, TARGET_KEYS)
    if "backend" in condition:
        read_choice(condition, "backend", BACKENDS)
    for key in ("sm_at_most", "sm_at_least"):
        if key in condition:
            _require_capability(condition, key)
    return TargetCondition(**condition)


def _require_capability(condition: LocatedMapping, key: str) -> None:
    value = condition[key]
    if type(value) is not int or value < LEAST_SM:
        problem = f"{key!r} is {value!r}. Write a compute capability times ten, such as 75."
        raise _mistake(condition, key, problem)


def _read_format(content: LocatedMapping, then: str) -> str:
    """Return the format's name; "" for decisions that have none."""
    if then != "quantize":
        if "using" in content:
            problem = "'using' is allowed with 'then: quantize' only. Remove it."
            raise _mistake(content, "using", problem)
        return ""
    if "using" not in content:
        formats = ", ".join(FORMATS)
        problem = f"'then: quantize' needs 'using'. Add it with one of {formats}."
        raise _mistake(content, "then", problem)
    return cast(str, read_choice(content, "using", FORMATS))


def _read_numbers(
    content: LocatedMapping, where: Where, then: str
) -> tuple[tuple[str, float], ...]:
    """Return the numbers under `given`: one per parameter of the facts, and perhaps the ratio."""
    required = _required_numbers(where)
    allowed = {*required, RATIO_AT_MOST} if then == "share-scale" else required
    numbers = content.get("given", LocatedMapping())
    if not isinstance(numbers, LocatedMapping):
        problem = "'given' must name numbers, such as {channels-below: 16}."
        raise _mistake(content, "given", problem)
    require_known_keys(numbers, sorted(allowed))
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            problem = f"{name!r} is {value!r}. Write a number above 0."
            raise _mistake(numbers, name, problem)
    missing = sorted(required.difference(numbers))
    if missing:
        names = ", ".join(missing)
        problem = f"the facts in 'where' require {names}. Add 'given: {{{missing[0]}: NUMBER}}'."
        raise _mistake(content, "where", problem)
    return tuple(sorted(numbers.items()))


def _required_numbers(where: Where) -> set[str]:
    names: set[str] = set()
    for word in (*where.into, *where.from_, *where.edge):
        fact = NODE_FACTS.get(word) or EDGE_FACTS.get(word)
        if fact is not None:
            names.update(fact_parameters(fact))
    return names


def _mistake(content: LocatedMapping, key: str, problem: str) -> RuleError:
    """Return the error about the value of a key; it begins with the key's line."""
    line = content.lines[key]
    return RuleError(f"{line}: {problem}")
