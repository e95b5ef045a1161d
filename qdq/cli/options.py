"""Options and printing that several commands share."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from qdq.calibration import DEFAULT_METHOD, WEIGHTS
from qdq.errors import PlanError, UsageError
from qdq.feeds import NOISE, DataLike, Feeds, Subset, open_feeds
from qdq.givenfiles import read_given
from qdq.givenranges import GivenRanges
from qdq.images import Images, preset_names
from qdq.index import GraphIndex
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


#: The options that `data_option` makes one `data` of.
_DATA = ("data", "images", "preprocess", "samples", "seed")


def data_option(function: F) -> F:
    """Add ``--data``, ``--images``, ``--preprocess``, ``--samples`` and ``--seed``, of which the command gets one `data`, and ``--batch``."""

    @functools.wraps(function)
    def command(*args: Any, **given: Any) -> Any:
        return function(*args, **{**{k: v for k, v in given.items() if k not in _DATA}, "data": _data(click.get_current_context(), given)})

    options = (
        click.option(
            "--data", metavar="D", help="Folder of .npz or .npy files, one .npz or .npy, Polygraphy's saved inputs or data-loader script, or 'noise' for a try."
        ),
        click.option("--images", metavar="DIR", help="Instead of --data: a folder of pictures."),
        click.option("--preprocess", metavar="HOW|FILE", help="How pictures become inputs: imagenet, yolo or a YAML file (docs/data.md)."),
        click.option("--samples", type=click.IntRange(min=1), metavar="N", help="At most N samples, spread evenly; of scripts and JSON the first N."),
        click.option("--seed", type=click.IntRange(min=0), metavar="S", help="With --samples: a random choice, which S makes the same again."),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            help="Entries or pictures in a sample, where the model's batch is dynamic: for one .npz or .npy, and --images.",
        ),
    )
    for option in reversed(options):
        option(command)
    return cast(F, command)


def _data(ctx: click.Context, given: Mapping[str, Any]) -> DataLike | None:
    """Return the data that the options name; one that is given wins over the project file's other kind."""
    typed = {name for name in _DATA if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    data, images = (None if other in typed and own not in typed else given[own] for own, other in (("data", "images"), ("images", "data")))
    if data and images:
        raise UsageError("--data and --images exclude each other; pass one of them")
    if images and not given["preprocess"]:
        raise UsageError(f"--images needs --preprocess: {', '.join(preset_names())}, or a YAML file that says how a picture becomes the model's input")
    if "preprocess" in typed and not images:
        raise UsageError("--preprocess says how pictures become inputs; pass --images with a folder of them")
    if "seed" in typed and not given["samples"] and data != NOISE:
        raise UsageError("--seed chooses samples; pass --samples with how many")
    if {"samples", "seed"} & typed and not data and not images:
        raise UsageError("--samples and --seed choose samples; pass --data or --images")
    chosen: DataLike | None = Images(images, given["preprocess"]) if images else data
    return Subset(chosen, given["samples"], given["seed"]) if chosen is not None and (given["samples"] or given["seed"] is not None) else chosen


def method_option(function: F) -> F:
    """Add ``--method`` and ``--weights``."""
    function = click.option(
        "--weights", type=click.Choice(WEIGHTS), help="How scales of weights are chosen; shift, the default but for --method max, changes outputs least."
    )(function)
    return click.option("--method", default=DEFAULT_METHOD, show_default=True, help="How ranges are chosen: max, mse, entropy, percentile or percentile:99.9.")(
        function
    )


def ranges_option(function: F) -> F:
    """Add ``--ranges``."""
    return click.option(
        "--ranges",
        type=FILE,
        metavar="FILE",
        help="Ranges that take the place of calibrated ones: YAML or JSON by hand, a TensorRT calibration cache, scales, or a quantized model.",
    )(function)


#: Options that mean nothing where no data is run; of weights only ``shift``.
_ABOUT_DATA = ("method", "batch", "weights", "min_snr", "min_cosine", "min_top1")


def given_ranges(ctx: click.Context, ranges: Path | None, data: DataLike | None) -> GivenRanges | None:
    """Return the ranges that ``--ranges`` names, None without it; raises UsageError for options that ask for data where there is none."""
    if ranges is None:
        return None
    for name in _ABOUT_DATA if data is None else ():
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and (name != "weights" or ctx.params[name] == "shift"):
            option = f"--{name.replace('_', '-')}{' shift' if name == 'weights' else ''}"
            raise UsageError(f"{option} is about data, and --ranges alone runs none; pass --data or --images too, or leave it out")
    return read_given(ranges)


def feeds_of(index: GraphIndex, data: DataLike | None, batch: int | None, given: GivenRanges | None) -> Feeds | None:
    """Return the samples that the options name; None where there are none, and ranges are given instead."""
    return None if data is None and given else open_feeds(index, data, batch)


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
    """Give a callback that counts on standard error while it is a terminal, out of `total` or of the number it is given.

    Behind the count stand the time left, as long as what is done took, and the most memory that the process has held.
    """
    shown, began = sys.stderr.isatty(), time.monotonic()

    def advance(done: int, of: int | None = total) -> None:
        if shown:
            left = [_duration((time.monotonic() - began) / done * (of - done))] if of and done else []
            held = [f"{memory} MB at most"] if (memory := _most_memory()) else []
            count = f"{label}: {done}{f' of {of}' if of else ''} {unit}"
            click.echo(f"\r{', '.join([count, *left, *held])}\033[K", err=True, nl=False)

    try:
        yield advance
    finally:
        if shown:
            click.echo("\r\033[K", err=True, nl=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s left" if minutes else f"{rest} s left"


def _most_memory() -> int:
    """Return the most memory that this process has held, in MB; 0 where the system does not tell, as on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 1_000_000


def show(layout: str, record: Any, parts: list[Section]) -> None:
    """Print a record as JSON, or its sections as text."""
    click.echo(to_json(record) if layout == "json" else sections_text(parts), nl=False)
