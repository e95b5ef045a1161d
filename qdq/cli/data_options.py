"""Options that choose the samples which a command runs."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.cli.options import collect_options, is_on_command_line
from qdq.data.feeds import NOISE, DataLike, Feeds, Subset, data_files, open_feeds
from qdq.data.images import Images
from qdq.data.preprocessing import preset_names
from qdq.errors import UsageError
from qdq.files.command_files import note_input
from qdq.graph.index import GraphIndex

#: The options that choose samples. Any of them may come from the project file.
_DATA_OPTIONS = ("data", "images", "preprocess", "labels", "samples", "seed")


class DataOptions(msgspec.Struct, frozen=True):
    """The samples that a command runs."""

    #: None without --data and --images.
    source: DataLike | None
    #: Entries per sample; None for the model's batch.
    batch: int | None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the samples are read from."""
        return data_files(self.source)

    def open_feeds(self, index: GraphIndex, optional: bool) -> Feeds | None:
        """Return the samples for a model; None where they are optional and there are none.

        Raises DataError where they are required and there are none.
        """
        if optional and self.source is None:
            return None
        return open_feeds(index, self.source, self.batch)


class _Source(msgspec.Struct, frozen=True):
    """The values of the options that choose samples."""

    data: str | None
    images: str | None
    preprocess: str | None
    labels: str | None
    samples: int | None
    seed: int | None


def _collect_data(
    data: str | None,
    images: str | None,
    preprocess: str | None,
    samples: int | None,
    seed: int | None,
    batch: int | None,
) -> DataOptions:
    return _collect(_Source(data, images, preprocess, None, samples, seed), batch)


def _collect_labelled_data(  # noqa: PLR0913 the options
    *,
    data: str | None,
    images: str | None,
    preprocess: str | None,
    labels: str | None,
    samples: int | None,
    seed: int | None,
    batch: int | None,
) -> DataOptions:
    return _collect(_Source(data, images, preprocess, labels, samples, seed), batch)


def _collect(source: _Source, batch: int | None) -> DataOptions:
    ctx = click.get_current_context()
    typed = frozenset(name for name in _DATA_OPTIONS if is_on_command_line(ctx, name))
    source = _drop_project_source(source, typed)
    _require_consistent(source, typed)
    options = DataOptions(_select_data(source), batch)
    for path in options.files:
        note_input(path)
    return options


def _drop_project_source(source: _Source, typed: frozenset[str]) -> _Source:
    """Return the options without the project file's data, if the other kind is passed."""
    if "images" in typed and "data" not in typed:
        return msgspec.structs.replace(source, data=None)
    if "data" in typed and "images" not in typed:
        return msgspec.structs.replace(source, images=None)
    return source


def _require_consistent(source: _Source, typed: frozenset[str]) -> None:
    """Raise UsageError for options that exclude or require each other."""
    if source.data and source.images:
        raise UsageError("--data and --images exclude each other. Pass one of them.")
    if source.images and not source.preprocess:
        presets = ", ".join(preset_names())
        raise UsageError(
            f"--images needs --preprocess. Pass {presets}, or a YAML file that specifies "
            "how a picture becomes the model's input."
        )
    if "preprocess" in typed and not source.images:
        raise UsageError(
            "--preprocess specifies how pictures become inputs. "
            "Pass --images with a folder of pictures."
        )
    if "labels" in typed and not source.images:
        raise UsageError(
            "--labels holds the classes of pictures. Pass --images with a folder of pictures; "
            "samples of --data hold their classes as an array 'label'."
        )
    if "seed" in typed and not source.samples and source.data != NOISE:
        raise UsageError("--seed picks samples at random. Pass --samples with their number.")
    picks_samples = "samples" in typed or "seed" in typed
    if picks_samples and not source.data and not source.images:
        raise UsageError("--samples and --seed pick samples. Pass --data or --images.")


def _select_data(source: _Source) -> DataLike | None:
    data: DataLike | None = source.data
    if source.images and source.preprocess:
        data = Images(source.images, source.preprocess, source.labels)
    if data is None or (not source.samples and source.seed is None):
        return data
    return Subset(data, source.samples, source.seed)


_SOURCE_OPTIONS = (
    click.option(
        "--data",
        metavar="D",
        help="Folder of .npz or .npy files, one .npz or .npy file, inputs saved by Polygraphy, "
        "a data-loader script, or 'noise' for a trial run.",
    ),
    click.option("--images", metavar="DIR", help="Folder of pictures, instead of --data."),
    click.option(
        "--preprocess",
        metavar="HOW|FILE",
        help="Conversion of pictures into inputs: imagenet, yolo or a YAML file (qdq docs data).",
    ),
)

_labels_option = click.option(
    "--labels",
    metavar="FILE|off",
    help="Classes of the pictures for --metric: .csv, .txt or .json of picture and class; "
    "default: a folder for each class, if there are any.",
)

_CHOICE_OPTIONS = (
    click.option(
        "--samples",
        type=click.IntRange(min=1),
        metavar="N",
        help="Run at most N samples, evenly spaced; the first N of scripts and JSON.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        metavar="S",
        help="Pick --samples at random, reproducibly; default: evenly spaced.",
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        help="Entries or pictures per sample, where the model's batch is dynamic. "
        "Applies to one .npz or .npy file and to --images.",
    ),
)

#: Adds the options that choose samples, which the command receives as one `data`.
data_options = collect_options(_collect_data, *_SOURCE_OPTIONS, *_CHOICE_OPTIONS, name="data")

#: The same options, and ``--labels``.
labelled_data_options = collect_options(
    _collect_labelled_data, *_SOURCE_OPTIONS, _labels_option, *_CHOICE_OPTIONS, name="data"
)
