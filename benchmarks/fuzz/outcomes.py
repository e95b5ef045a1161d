"""What became of the items of a campaign: counted, merged, written as JSON and Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import markdown_head, markdown_row

WORKED, FINDINGS, REFUSED, FAILED = "worked", "findings", "refused", "failed"

#: Failures of one sort that keep their details.
_KEPT = 5


class Outcome(NamedTuple):
    """What became of one item with one command."""

    seed: int
    #: Kind of file, or invariant.
    group: str
    #: The command; "read" for the library's reader.
    command: str
    kind: str
    #: Of a failure: what was violated, alike for all failures of one sort, and the details.
    fault: str = ""
    details: str = ""


class Summary:
    """Counts and failures of a campaign."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.seeds: list[tuple[int, int]] = []
        self.items: Counter[str] = Counter()
        self.ends: Counter[tuple[str, str, str]] = Counter()
        self.faults: dict[tuple[str, str, str], list[Outcome]] = {}
        self.fault_counts: Counter[tuple[str, str, str]] = Counter()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count the outcomes of one item."""
        for group in {outcome.group for outcome in outcomes}:
            self.items[group] += 1
        for outcome in outcomes:
            self.ends[outcome.group, outcome.command, outcome.kind] += 1
            if outcome.kind == FAILED:
                key = (outcome.group, outcome.command, outcome.fault)
                self.fault_counts[key] += 1
                kept = self.faults.setdefault(key, [])
                if len(kept) < _KEPT:
                    kept.append(outcome)

    def merge(self, other: Summary) -> None:
        """Add the counts and failures of another part of the same campaign."""
        self.seeds += other.seeds
        self.items += other.items
        self.ends += other.ends
        self.fault_counts += other.fault_counts
        for key, outcomes in other.faults.items():
            self.faults[key] = (self.faults.get(key, []) + outcomes)[:_KEPT]

    def to_json(self) -> str:
        content = {
            "mode": self.mode,
            "seeds": self.seeds,
            "items": dict(sorted(self.items.items())),
            "ends": [[*key, count] for key, count in sorted(self.ends.items())],
            "faults": [
                {"key": key, "count": self.fault_counts[key], "outcomes": outcomes}
                for key, outcomes in sorted(self.faults.items())
            ],
        }
        return json.dumps(content, indent=1) + "\n"


def read_summary(path: Path) -> Summary:
    """Return the summary in a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text())
    summary = Summary(content["mode"])
    summary.seeds = [(start, stop) for start, stop in content["seeds"]]
    summary.items.update(content["items"])
    for group, command, kind, count in content["ends"]:
        summary.ends[group, command, kind] = count
    for fault in content["faults"]:
        key = tuple(fault["key"])
        summary.fault_counts[key] = fault["count"]
        summary.faults[key] = [Outcome(*outcome) for outcome in fault["outcomes"]]
    return summary


def describe_counts(summary: Summary) -> str:
    """Return a Markdown table: how many items of each kind, and how they ended."""
    first = "kind of file" if summary.mode == "files" else "invariant"
    kinds = (WORKED, FINDINGS, REFUSED, FAILED)
    headers = (first, "tried", "commands", *kinds, "sorts of failure")
    rows = []
    for group in sorted(summary.items):
        ends = [_count(summary, group, kind) for kind in kinds]
        sorts = len({key for key in summary.faults if key[0] == group})
        rows.append((group, summary.items[group], sum(ends), *ends, sorts))
    return _table(headers, rows)


def _count(summary: Summary, group: str, kind: str) -> int:
    counts = [n for key, n in summary.ends.items() if (key[0], key[2]) == (group, kind)]
    return sum(counts)


def describe_faults(summary: Summary) -> str:
    """Return a Markdown list of the sorts of failure with their seeds and details."""
    lines: list[str] = []
    for key in sorted(summary.faults, key=lambda key: -summary.fault_counts[key]):
        outcomes, (group, command, fault) = summary.faults[key], key
        seeds = ", ".join(str(outcome.seed) for outcome in outcomes)
        lines.append(f"- {group}, {command}: {fault} ({summary.fault_counts[key]}; seeds {seeds})")
        lines += [f"      {line}" for line in outcomes[0].details.strip().splitlines()[-12:]]
    return "\n".join(lines)


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    return "\n".join((markdown_head(headers), *map(markdown_row, rows)))
