"""Labels of pictures: the class of each, from its folder or from a file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qdq.arrays import Array
from qdq.errors import DataError, first_line
from qdq.files.command_files import note_input

#: The array of a sample that holds the class of each of its pictures.
LABEL = "label"

#: The array of a sample that holds the names of all class folders.
CLASS_NAMES = "class_names"

#: The word for no labels, whatever the folders are.
LABELS_OFF = "off"

_LEAST_CLASSES = 2
_COLUMNS = 2

_FORMS = (
    "Write lines 'PICTURE,CLASS' into a .csv, 'PICTURE CLASS' into a .txt, or an object "
    "{PICTURE: CLASS} into a .json, with classes as numbers from 0."
)


class PictureLabels(msgspec.Struct, frozen=True):
    """The classes of the pictures of a folder, numbers from 0."""

    folder: Path
    #: The class by the path relative to the folder, the file name, or the file name without its
    #: suffix. None where there are no labels.
    classes: Mapping[str, int] | None
    #: The names of the folders that the classes come from; none for a file of labels.
    class_names: tuple[str, ...] = ()
    #: The file of labels.
    file: Path | None = None

    def make_arrays(self, pictures: Sequence[Path]) -> dict[str, Array]:
        """Return the arrays of labels of a sample of some pictures; none without labels.

        Raises DataError for a picture without a class.
        """
        if self.classes is None:
            return {}
        classes = [self._find_class(picture) for picture in pictures]
        arrays: dict[str, Array] = {LABEL: np.array(classes, np.int64)}
        if self.class_names:
            arrays[CLASS_NAMES] = np.array(self.class_names)
        return arrays

    def _find_class(self, picture: Path) -> int:
        assert self.classes is not None
        path = picture.relative_to(self.folder).as_posix()
        for name in (path, picture.name, picture.stem):
            if name in self.classes:
                return self.classes[name]
        raise DataError(f"{self.file}: no line holds the class of {path!r}. Add one.")


def open_labels(folder: Path, pictures: Sequence[Path], labels: str | Path | None) -> PictureLabels:
    """Return the labels of the pictures of a folder: those of a file, or the class folders.

    There are class folders where every picture is in a subfolder, and at least two subfolders hold
    pictures. A class is the position of its folder in the order of the names, as in torchvision's
    ImageFolder; empty folders count. Raises DataError for a file that cannot be read.
    """
    if labels == LABELS_OFF:
        return PictureLabels(folder, None)
    if labels is not None:
        file = Path(labels)
        return PictureLabels(folder, _read_labels(file), file=file)
    paths = [picture.relative_to(folder) for picture in pictures]
    holders = {path.parts[0] for path in paths}
    if any(len(path.parts) == 1 for path in paths) or len(holders) < _LEAST_CLASSES:
        return PictureLabels(folder, None)
    subfolders = {path.name for path in folder.iterdir() if path.is_dir()}
    visible = {name for name in subfolders if not name.startswith(".")}
    names = sorted(holders | visible)
    numbers = {name: number for number, name in enumerate(names)}
    classes = {path.as_posix(): numbers[path.parts[0]] for path in paths}
    return PictureLabels(folder, classes, tuple(names))


def label_files(labels: str | Path | None) -> tuple[Path, ...]:
    """Return the file of labels, if there is one."""
    return () if labels is None or labels == LABELS_OFF else (Path(labels),)


def _read_labels(file: Path) -> dict[str, int]:
    """Return the class of each picture that a file names."""
    note_input(file)
    if file.suffix not in _READERS:
        raise DataError(f"{file}: labels of this kind are unknown. {_FORMS}")
    try:
        text = file.read_text(encoding="utf-8-sig")
        rows = list(_READERS[file.suffix](text))
    except (OSError, ValueError, csv.Error, msgspec.DecodeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise DataError(f"{file}: the labels cannot be read: {reason}. {_FORMS}") from error
    classes: dict[str, int] = {}
    for location, picture, value in rows:
        number = _to_class(value)
        if number is None:
            raise DataError(f"{file}{location}: the class of {picture!r} is {value!r}. {_FORMS}")
        name = picture.replace("\\", "/").removeprefix("./")
        if classes.setdefault(name, number) != number:
            raise DataError(
                f"{file}{location}: picture {picture!r} has class {number} here and "
                f"{classes[name]} above. Remove one of them."
            )
    if not classes:
        raise DataError(f"{file}: the file holds no labels. {_FORMS}")
    return classes


#: The end of a location in the file, a picture, and the value that should be its class.
_Row = tuple[str, str, Any]


def _read_csv(text: str) -> Iterator[_Row]:
    """Yield the rows of two columns; a first row whose class is no number is a heading."""
    for number, cells in enumerate(csv.reader(text.splitlines()), 1):
        if not cells:
            continue
        if len(cells) != _COLUMNS:
            raise ValueError(f"line {number} has {len(cells)} columns")
        picture, value = (cell.strip() for cell in cells)
        if number > 1 or _to_class(value) is not None:
            yield f":{number}", picture, value


def _read_text(text: str) -> Iterator[_Row]:
    """Yield the lines, whose last word is the class."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.rsplit(None, 1)
        if not words:
            continue
        if len(words) != _COLUMNS:
            raise ValueError(f"line {number} holds one word")
        yield f":{number}", words[0].strip(), words[1]


def _read_json(text: str) -> Iterable[_Row]:
    classes = msgspec.json.decode(text)
    if not isinstance(classes, dict):
        raise ValueError("the file holds no object")
    return [("", picture, value) for picture, value in classes.items()]


def _to_class(value: Any) -> int | None:
    """Return a class as a number from 0, None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else None


_READERS = {".csv": _read_csv, ".txt": _read_text, ".json": _read_json}
