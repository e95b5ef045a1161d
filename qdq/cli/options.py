"""Options and printing that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from qdq.calibration import DEFAULT_METHOD, WEIGHTS
from qdq.errors import PlanError, UsageError
from qdq.profiles import Profile, parse_profile
from qdq.reporting import Section, sections_text, to_json
from qdq.rule import RuleSet
from qdq.rulefile import DEFAULT_SET, load_rules
from qdq.target import Target, parse_target

F = TypeVar("F", bound=Callable[..., Any])

#: A file argument; existence is checked by the loader, whose message says more.
FILE = click.Path(path_type=Path)


def rules_option(function: F) -> F:
    """Add ``--rules``."""
    return click.option(
        "--rules", "rule_sets", multiple=True, metavar="SET|FOLDER|FILE", help=f"Rule set, folder or file; repeat to overlay.  [default: {DEFAULT_SET}]"
    )(function)


def target_option(function: F) -> F:
    """Add ``--target``."""
    return click.option("--target", "targets", multiple=True, metavar="TARGET", help="What to plan or build for, such as rtx:sm86; repeat for several.")(
        function
    )


def data_option(function: F) -> F:
    """Add ``--data`` and ``--batch``."""
    function = click.option("--batch", type=click.IntRange(min=1), help="Samples to feed at once, where the model's batch is dynamic and --data is one .npz.")(
        function
    )
    return click.option("--data", metavar="D", help="Folder of .npz files, one .npz, a Polygraphy data-loader script, or 'noise' to try things out.")(function)


def method_option(function: F) -> F:
    """Add ``--method`` and ``--weights``."""
    function = click.option(
        "--weights", type=click.Choice(WEIGHTS), help="How scales of weights are chosen; shift, the default but for --method max, changes outputs least."
    )(function)
    return click.option("--method", default=DEFAULT_METHOD, show_default=True, help="How ranges are chosen: max, mse, entropy, percentile or percentile:99.9.")(
        function
    )


def leave_float_option(function: F) -> F:
    """Add ``--leave-float`` and ``--allow-unmatched``."""
    function = click.option("--allow-unmatched", is_flag=True, help="Accept globs that match nothing.")(function)
    return click.option("--leave-float", multiple=True, metavar="GLOB", help="Keep the nodes of these names in float; repeat for several.")(function)


def output_option(function: F) -> F:
    """Add ``-o`` and ``--force``."""
    function = click.option("--force", is_flag=True, help="Replace files that exist.")(function)
    return click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="File to write.")(function)


def format_option(function: F) -> F:
    """Add ``--format``."""
    return click.option("--format", "layout", type=click.Choice(["text", "json"]), default="text", show_default=True, help="For people or for programs.")(
        function
    )


def shapes_option(function: F) -> F:
    """Add ``--shapes``."""
    return click.option(
        "--shapes",
        "--shape",
        "shapes",
        multiple=True,
        metavar="INPUT=MIN/OPT/MAX",
        help="Shapes to plan for, as x=1x3x224x224 or three of them, and to build engines for at OPT.  [default: the model's; to build, the first sample's]",
    )(function)


def thresholds_option(function: F) -> F:
    """Add ``--min-snr``, ``--min-cosine`` and ``--min-top1``."""
    function = click.option("--min-top1", type=float, metavar="SHARE", help="Least top-1 agreement of class scores, such as 0.95.")(function)
    function = click.option("--min-cosine", type=float, help="Least cosine of every output.")(function)
    return click.option("--min-snr", type=float, metavar="DB", help="Least signal-to-noise ratio of every output.")(function)


def refuse_idle_thresholds(ctx: click.Context) -> None:
    """Raise UsageError where a threshold is passed to a command that is not asked to validate."""
    for name in ("min_snr", "min_cosine", "min_top1"):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')} judges a validation; pass --validate too")


def targets_of(texts: Iterable[str]) -> tuple[Target, ...]:
    """Return the targets that ``--target`` names."""
    return tuple(parse_target(text) for text in texts)


def rules_of(names: Sequence[str]) -> RuleSet:
    """Return the rules that ``--rules`` names, or the default set."""
    return load_rules(names or (DEFAULT_SET,))


def profiles_of(texts: Iterable[str]) -> tuple[Profile, ...]:
    """Return the profiles that ``--shapes`` names; raises UsageError for other spellings and for an input that is named twice."""
    profiles = tuple(parse_profile(text) for text in texts)
    names = [profile.input for profile in profiles]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--shapes names the input {name!r} twice; give min, opt and max in one")
    return profiles


@contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """Put the names of plan and scales files before a PlanError that is raised inside."""
    try:
        yield
    except PlanError as error:
        raise PlanError(f"{', '.join(map(str, paths))}: {error}") from error


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "samples") -> Iterator[Callable[..., None]]:
    """Give a callback that counts on standard error while it is a terminal, out of `total` or of the number it is given."""
    shown = sys.stderr.isatty()

    def advance(done: int, of: int | None = total) -> None:
        if shown:
            click.echo(f"\r{label}: {done}{f' of {of}' if of else ''} {unit}", err=True, nl=False)

    try:
        yield advance
    finally:
        if shown:
            click.echo("\r\033[K", err=True, nl=False)


def show(layout: str, record: Any, parts: list[Section]) -> None:
    """Print a record as JSON, or its sections as text."""
    click.echo(to_json(record) if layout == "json" else sections_text(parts), nl=False)
