"""Options and printing that several commands share."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from qdq.calibration.calibrator import KnownRanges
from qdq.calibration.methods import DEFAULT_METHOD, WEIGHT_METHODS
from qdq.calibration.range_sources import read_given
from qdq.data.feeds import NOISE, DataLike, Feeds, Subset, open_feeds
from qdq.data.images import Images, preset_names
from qdq.errors import PlanError, UsageError
from qdq.graph.index import GraphIndex
from qdq.graph.shape_profiles import Profile, parse_profile
from qdq.observers.collection import CHECKPOINT_INTERVAL, Observing
from qdq.ranges.tensor_ranges import Part, Ranges
from qdq.reports.json_output import to_json
from qdq.reports.sections import Section, sections_text
from qdq.rules.rule import RuleSet
from qdq.rules.rule_files import load_rules
from qdq.rules.shipped import DEFAULT_SET
from qdq.target import Target, parse_target

F = TypeVar("F", bound=Callable[..., Any])

#: A file argument; existence is checked by the loader, whose message says more.
FILE = click.Path(path_type=Path)


def rules_option(function: F) -> F:
    """Add ``--rules``."""
    return click.option(
        "--rules",
        "rule_sets",
        multiple=True,
        metavar="SET|FOLDER|FILE",
        help=f"Rule set, folder or file; repeat to overlay.  [default: {DEFAULT_SET}]",
    )(function)


def target_option(function: F) -> F:
    """Add ``--target``."""
    return click.option(
        "--target",
        "targets",
        multiple=True,
        metavar="TARGET",
        help="What to plan or build for, such as rtx:sm86; repeat for several.",
    )(function)


#: The options that `data_option` makes one `data` of.
_DATA = ("data", "images", "preprocess", "samples", "seed")


def data_option(function: F) -> F:
    """Add ``--data``, ``--images``, ``--preprocess``, ``--samples`` and ``--seed``, of which the command gets one `data`, and ``--batch``."""

    @functools.wraps(function)
    def command(*args: Any, **given: Any) -> Any:
        return function(
            *args,
            **{
                **{k: v for k, v in given.items() if k not in _DATA},
                "data": _data(click.get_current_context(), given),
            },
        )

    options = (
        click.option(
            "--data",
            metavar="D",
            help="Folder of .npz or .npy files, one .npz or .npy, Polygraphy's saved inputs or data-loader script, or 'noise' for a try.",
        ),
        click.option("--images", metavar="DIR", help="Instead of --data: a folder of pictures."),
        click.option(
            "--preprocess",
            metavar="HOW|FILE",
            help="How pictures become inputs: imagenet, yolo or a YAML file (docs/data.md).",
        ),
        click.option(
            "--samples",
            type=click.IntRange(min=1),
            metavar="N",
            help="At most N samples, spread evenly; of scripts and JSON the first N.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            metavar="S",
            help="With --samples: a random choice, which S makes the same again.",
        ),
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
    typed = {
        name for name in _DATA if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    data, images = (
        None if other in typed and own not in typed else given[own]
        for own, other in (("data", "images"), ("images", "data"))
    )
    if data and images:
        raise UsageError("--data and --images exclude each other; pass one of them")
    if images and not given["preprocess"]:
        raise UsageError(
            f"--images needs --preprocess: {', '.join(preset_names())}, or a YAML file that says how a picture becomes the model's input"
        )
    if "preprocess" in typed and not images:
        raise UsageError(
            "--preprocess says how pictures become inputs; pass --images with a folder of them"
        )
    if "seed" in typed and not given["samples"] and data != NOISE:
        raise UsageError("--seed chooses samples; pass --samples with how many")
    if {"samples", "seed"} & typed and not data and not images:
        raise UsageError("--samples and --seed choose samples; pass --data or --images")
    chosen: DataLike | None = Images(images, given["preprocess"]) if images else data
    return (
        Subset(chosen, given["samples"], given["seed"])
        if chosen is not None and (given["samples"] or given["seed"] is not None)
        else chosen
    )


def method_option(function: F) -> F:
    """Add ``--method`` and ``--weights``."""
    function = click.option(
        "--weights",
        type=click.Choice(WEIGHT_METHODS),
        help="How scales of weights are chosen; shift, the default but for --method max, changes outputs least.",
    )(function)
    return click.option(
        "--method",
        default=DEFAULT_METHOD,
        show_default=True,
        help="How ranges are chosen: auto, mse, entropy, percentile, percentile:99 or max.",
    )(function)


def ranges_option(function: F) -> F:
    """Add ``--ranges``."""
    return click.option(
        "--ranges",
        type=FILE,
        metavar="FILE",
        help="Ranges that take the place of calibrated ones: YAML or JSON by hand, a TensorRT calibration cache, scales, a quantized model, or observed ones.",
    )(function)


def given_ranges(
    ctx: click.Context, ranges: Path | None, data: DataLike | None
) -> KnownRanges | None:
    """Return the ranges that ``--ranges`` names, None without it; raises UsageError for options that ask for data where there is none."""
    if ranges is None:
        return None
    given = read_given(ranges)
    if data is not None:
        if isinstance(given, Ranges):
            raise UsageError(
                f"{ranges}: holds what samples gave, and runs none; leave out --data and --images, or merge other ranges into it"
            )
        return given
    for name in (*_ABOUT_DATA, *(() if isinstance(given, Ranges) else ("method", "weights"))):
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and (
            name != "weights" or ctx.params[name] == "shift"
        ):
            option = f"--{name.replace('_', '-')}{' shift' if name == 'weights' else ''}"
            raise UsageError(
                f"{option} is about data, and --ranges alone runs none; pass --data or --images too, or leave it out"
            )
    return given


def observed_in(path: Path | None, given: KnownRanges | None) -> tuple[Path, ...]:
    """Return the file of ``--ranges`` where it holds observed ranges: they must be of the very model, and an error names them."""
    return (path,) if path and isinstance(given, Ranges) else ()


def feeds_of(
    index: GraphIndex, data: DataLike | None, batch: int | None, given: bool
) -> Feeds | None:
    """Return the samples that the options name; None where there are none, and ranges are given instead."""
    return None if data is None and given else open_feeds(index, data, batch)


def save_ranges_option(function: F) -> F:
    """Add ``--save-ranges``."""
    return click.option(
        "--save-ranges",
        type=FILE,
        metavar="FILE",
        help="Also write what the tensors were seen to hold, to choose scales from again.",
    )(function)


#: The options that `observing_option` makes one `observing` of.
_OBSERVING = ("device", "max_memory", "workers", "scheduler", "resume", "checkpoint_every")

#: Options that mean nothing where no samples are run, beside those of `data_option`.
_ABOUT_DATA = (*_OBSERVING, "save_ranges", "batch", "min_snr", "min_cosine", "min_top1")

#: What an output's checkpoint is called behind its name, which is cut where that would exceed the 255 bytes that file systems take.
_CHECKPOINT, _MOST_BYTES, _CUT = ".checkpoint", 255, 60
_SHARD = re.compile(r"([1-9]\d*)/([1-9]\d*)")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?)B", re.IGNORECASE)
_UNITS = {
    "k": 10**3,
    "ki": 2**10,
    "m": 10**6,
    "mi": 2**20,
    "g": 10**9,
    "gi": 2**30,
    "t": 10**12,
    "ti": 2**40,
}


def observing_option(function: F) -> F:
    """Add the options of how samples are run, of which the command gets one `observing`; its checkpoint lies beside ``-o``."""

    @functools.wraps(function)
    def command(*args: Any, **given: Any) -> Any:
        return function(
            *args,
            **{
                **{k: v for k, v in given.items() if k not in _OBSERVING},
                "observing": _observing(given),
            },
        )

    options = (
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            help="What runs the samples: cpu, cuda, or cuda,cpu for CUDA where it is present.",
        ),
        click.option(
            "--max-memory",
            metavar="SIZE",
            help="Most memory to take, as 4GB: runs the samples again for tensors that would not fit.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            metavar="N",
            help="Share the samples among N processes (Dask).",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Share the samples among the workers of a Dask cluster, as tcp://host:8786.",
        ),
        click.option(
            "--resume",
            is_flag=True,
            help="Go on from the checkpoint that a run which was stopped left beside the output.",
        ),
        click.option(
            "--checkpoint-every",
            type=click.FloatRange(min=0),
            default=CHECKPOINT_INTERVAL,
            show_default=True,
            metavar="SECONDS",
            help="What a kill loses at most.",
        ),
    )
    for option in reversed(options):
        option(command)
    return cast(F, command)


def _observing(given: Mapping[str, Any]) -> Observing:
    if given["workers"] and given["scheduler"]:
        raise UsageError(
            "--workers starts processes here, --scheduler uses a cluster that runs; pass one of them"
        )
    output: Path = given["output"]
    fits = len(os.fsencode(output.name + _CHECKPOINT)) <= _MOST_BYTES
    checkpoint = output.with_name((output.name if fits else output.name[:_CUT]) + _CHECKPOINT)
    if not (given["resume"] or given["force"]) and os.path.exists(checkpoint):
        raise UsageError(
            f"{checkpoint}: is left of a run that was stopped; pass --resume to go on from it, or --force to begin anew"
        )
    return Observing(
        part=_part(given["shard"]) if given.get("shard") else Part(),
        device=given["device"],
        max_memory=_bytes(given["max_memory"]) if given["max_memory"] else None,
        checkpoint=checkpoint,
        resume=given["resume"],
        interval=given["checkpoint_every"],
        workers=given["workers"],
        scheduler=given["scheduler"],
    )


def _part(text: str) -> Part:
    found = _SHARD.fullmatch(text)
    if not found or int(found[1]) > int(found[2]):
        raise UsageError(f"--shard {text!r}: write which of how many, such as 2/8")
    return Part(int(found[1]), int(found[2]))


def _bytes(text: str) -> int:
    found = _MEMORY.fullmatch(text.strip())
    if not found:
        raise UsageError(f"--max-memory {text!r}: write a number and a unit, such as 4GB or 500MiB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def leave_float_option(function: F) -> F:
    """Add ``--leave-float`` and ``--allow-unmatched``."""
    function = click.option(
        "--allow-unmatched", is_flag=True, help="Accept globs that match nothing."
    )(function)
    return click.option(
        "--leave-float",
        multiple=True,
        metavar="GLOB",
        help="Keep the nodes of these names in float; repeat for several.",
    )(function)


def output_option(function: F) -> F:
    """Add ``-o`` and ``--force``."""
    function = click.option("--force", is_flag=True, help="Replace files that exist.")(function)
    return click.option(
        "-o", "--output", type=FILE, required=True, metavar="OUT", help="File to write."
    )(function)


def format_option(function: F) -> F:
    """Add ``--format``."""
    return click.option(
        "--format",
        "layout",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="For people or for programs.",
    )(function)


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
    function = click.option(
        "--min-top1",
        type=float,
        metavar="SHARE",
        help="Least top-1 agreement of class scores, such as 0.95.",
    )(function)
    function = click.option("--min-cosine", type=float, help="Least cosine of every output.")(
        function
    )
    return click.option(
        "--min-snr", type=float, metavar="DB", help="Least signal-to-noise ratio of every output."
    )(function)


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
            raise UsageError(
                f"--shapes names the input {name!r} twice; give min, opt and max in one"
            )
    return profiles


@contextmanager
def naming(*paths: Path) -> Iterator[None]:
    """Put the names of plan, scales and ranges files, where there are any, before a PlanError that is raised inside."""
    try:
        yield
    except PlanError as error:
        if not paths:
            raise
        raise PlanError(f"{', '.join(map(str, paths))}: {error}") from error


def show(layout: str, record: Any, parts: list[Section]) -> None:
    """Print a record as JSON, or its sections as text."""
    click.echo(to_json(record) if layout == "json" else sections_text(parts), nl=False)
