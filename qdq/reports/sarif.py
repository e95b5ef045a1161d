"""Findings as SARIF 2.1.0 and as workflow commands of GitHub.

SARIF is the Static Analysis Results Interchange Format of OASIS.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from qdq.checking.catalogue import ERROR, PROBLEMS, WARNING, Problem
from qdq.checking.finding import Finding
from qdq.checking.selection import fingerprint, relative_posix_path
from qdq.printable import escape_unprintable
from qdq.reports.json_output import encode_json

SARIF_VERSION = "2.1.0"
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

#: The base of relative paths: the folder that the command ran in.
_ROOT = "%SRCROOT%"
_COMMANDS = {ERROR: "error", WARNING: "warning"}

_Json = dict[str, Any]


class CheckedModel(msgspec.Struct, frozen=True):
    """The findings in one model, or the reason why it could not be checked."""

    #: The path, as the command was given it.
    model: str
    findings: tuple[Finding, ...] = ()
    #: Why the model could not be checked, one sentence; else empty.
    failure: str = ""
    #: The changes that `--fix` made, one sentence per change.
    fixed: tuple[str, ...] = ()
    #: The file that `--fix` wrote; absent where it changes models in place.
    output: str | msgspec.UnsetType = msgspec.UNSET
    #: The changes that `--fix` would make, one line per change; absent without `--diff`.
    would_fix: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


def to_sarif(models: Iterable[CheckedModel], version: str) -> str:
    """Return a SARIF log with one run.

    Every code is a rule, every finding a result, and every model that could not be checked a
    notification.
    """
    rule_indices = {code: i for i, code in enumerate(PROBLEMS)}
    results: list[_Json] = []
    notifications: list[_Json] = []
    for checked in models:
        for finding in checked.findings:
            results.append(_make_result(checked.model, finding, rule_indices[finding.code]))
        if checked.failure:
            notifications.append(_make_notification(checked))
    rules = [_make_rule(problem) for problem in PROBLEMS.values()]
    run = {
        "tool": {"driver": {"name": "qdq", "semanticVersion": version, "rules": rules}},
        "invocations": [_make_invocation(notifications)],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    log = {"$schema": _SCHEMA, "version": SARIF_VERSION, "runs": [run]}
    return encode_json(log, indent=1)


def to_github(checked: CheckedModel) -> list[str]:
    """Return the findings in one model as workflow commands, which GitHub shows beside the file.

    See "Setting a message" in GitHub's documentation of workflow commands.
    """
    file = _escape_property(checked.model)
    lines = []
    if checked.failure:
        lines.append(f"::error file={file},title=qdq::{_escape_data(checked.failure)}")
    for finding in checked.findings:
        command = _COMMANDS.get(finding.severity, "notice")
        title = _escape_property(f"qdq {finding.code}")
        message = _escape_data(_finding_text(finding))
        lines.append(f"::{command} file={file},title={title}::{message}")
    return lines


def _make_invocation(notifications: list[_Json]) -> _Json:
    return {
        "executionSuccessful": not notifications,
        "toolExecutionNotifications": notifications,
    }


def _make_notification(checked: CheckedModel) -> _Json:
    return {
        "level": "error",
        "message": {"text": escape_unprintable(checked.failure)},
        "locations": [{"physicalLocation": _make_location(checked.model)}],
    }


def _make_rule(problem: Problem) -> _Json:
    name = "".join(map(str.capitalize, problem.code.split("-")))
    text = _join_sentences(problem.cost, problem.fix)
    page = problem.page
    markdown = f"{text}\n\n[{page}]({page})"
    return {
        "id": problem.code,
        "name": name,
        "shortDescription": {"text": problem.title},
        "fullDescription": {"text": text},
        "helpUri": page,
        "help": {"text": text, "markdown": markdown},
        "defaultConfiguration": {"level": problem.severity},
        "properties": {"page": page},
    }


def _make_result(model: str, finding: Finding, rule_index: int) -> _Json:
    location: _Json = {"physicalLocation": _make_location(model)}
    if finding.node:
        name = finding.node.rpartition("/")[2] or finding.node
        logical = {"name": name, "fullyQualifiedName": finding.node, "kind": "element"}
        location["logicalLocations"] = [logical]
    return {
        "ruleId": finding.code,
        "ruleIndex": rule_index,
        "level": finding.severity,
        "message": {"text": escape_unprintable(_finding_text(finding))},
        "locations": [location],
        "partialFingerprints": {"qdqFinding/v1": fingerprint(finding)},
    }


def _make_location(model: str) -> _Json:
    file = Path(model)
    path = relative_posix_path(file, Path())
    if path.startswith("../") or Path(path).is_absolute():
        uri = file.absolute().as_uri()
        return {"artifactLocation": {"uri": uri}}
    uri = quote(os.fsencode(path))
    return {"artifactLocation": {"uri": uri, "uriBaseId": _ROOT}}


def _finding_text(finding: Finding) -> str:
    """Return a finding as two sentences: the place with the problem, and the fix."""
    text = _join_sentences(finding.problem, finding.fix)
    return f"{finding.where}: {text}" if finding.where else text


def _join_sentences(fact: str, fix: str) -> str:
    fact = _end_sentence(fact)
    fix = _end_sentence(fix)
    return f"{fact} Fix: {fix}"


def _end_sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _escape_data(text: str) -> str:
    lines = []
    for line in text.split("\n"):
        parts = [escape_unprintable(part).replace("%", "%25") for part in line.split("\r")]
        lines.append("%0D".join(parts))
    return "%0A".join(lines)


def _escape_property(text: str) -> str:
    text = _escape_data(text)
    return text.replace(":", "%3A").replace(",", "%2C")
