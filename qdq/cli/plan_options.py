"""Options of what a plan is made with: rules, targets, globs and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from qdq.cli.options import collect_options
from qdq.errors import UsageError
from qdq.files.command_files import note_input
from qdq.graph.shape_profiles import Profile, parse_profile
from qdq.planning.plan_request import PlanRequest, to_globs
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import RULE_SUFFIXES, load_rules
from qdq.rules.shipped import DEFAULT_SET
from qdq.target import Target, parse_target

_Command = TypeVar("_Command", bound="Callable[..., Any] | click.Command")


def _note_rule_files(
    ctx: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Record the user's rule files as inputs before the outputs are checked."""
    for name in names:
        path = Path(name)
        files = [path]
        for suffix in RULE_SUFFIXES:
            files += path.glob(f"*{suffix}")
        for file in files:
            note_input(file)
    return names


def make_rules_option(default: str) -> Callable[[_Command], _Command]:
    """Return the decorator that adds ``--rules``, which the command receives as `rule_sets`.

    `default` describes the rules of a command that is called without it.
    """
    return click.option(
        "--rules",
        "rule_sets",
        multiple=True,
        callback=_note_rule_files,
        metavar="SET|FOLDER|FILE",
        help=f"Rule set, folder or file; repeat to overlay several.  [default: {default}]",
    )


rules_option = make_rules_option(DEFAULT_SET)

#: Adds ``--target``, which the command receives as `targets`.
target_option = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="Target to plan or build for, such as rtx:sm86; repeat for several.",
)

#: Adds ``--shapes``.
shapes_option = click.option(
    "--shapes",
    "--shape",
    "shapes",
    multiple=True,
    metavar="INPUT=MIN/OPT/MAX",
    help="Shapes to plan for, as x=1x3x224x224 or three of them. Engines are built at OPT.  "
    "[default: the model's shapes; for builds, those of the first sample]",
)

_leave_float_option = click.option(
    "--leave-float",
    multiple=True,
    metavar="NODES",
    help="Keep nodes in float: a glob of names, op:OPERATOR or range:FIRST..LAST; repeat for "
    "several.",
)
_allow_unmatched_option = click.option(
    "--allow-unmatched", is_flag=True, help="Accept globs that match nothing."
)


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """Return the targets that ``--target`` names."""
    return tuple(parse_target(text) for text in texts)


def read_rule_sets(names: Sequence[str]) -> RuleSet:
    """Return the rules that ``--rules`` names, or the default set."""
    return load_rules(names or (DEFAULT_SET,))


def parse_profiles(texts: Iterable[str]) -> tuple[Profile, ...]:
    """Return the profiles that ``--shapes`` names.

    Raises UsageError for texts of another form, and for an input that is named twice.
    """
    profiles = tuple(parse_profile(text) for text in texts)
    names: set[str] = set()
    for profile in profiles:
        if profile.input in names:
            raise UsageError(
                f"--shapes names the input {profile.input!r} twice. "
                "Pass min, opt and max in one option."
            )
        names.add(profile.input)
    return profiles


class PlanOptions(msgspec.Struct, frozen=True):
    """What a plan is made with, as texts of the command line or the project file."""

    rule_sets: tuple[str, ...]
    targets: tuple[str, ...]
    leave_float: tuple[str, ...]
    allow_unmatched: bool
    shapes: tuple[str, ...]

    def parse(self, rules: RuleSet) -> PlanRequest:
        """Return the request for a plan by these rules; raises UsageError for invalid options."""
        return PlanRequest(
            rules,
            targets=parse_targets(self.targets),
            leave_float=to_globs(self.leave_float),
            allow_unmatched=self.allow_unmatched,
            profiles=parse_profiles(self.shapes),
        )


#: Adds the options of what a plan is made with, which the command receives as one `plan`.
plan_options = collect_options(
    PlanOptions,
    rules_option,
    target_option,
    _leave_float_option,
    _allow_unmatched_option,
    shapes_option,
    name="plan",
)
