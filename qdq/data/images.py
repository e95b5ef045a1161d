"""Folders of pictures as samples: each picture is read, fitted and scaled for the model's input."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from qdq.arguments import to_path
from qdq.arrays import Array
from qdq.data.input_specs import Indexed, InputSpec, Named, Specs, join_input_names
from qdq.data.labels import open_labels
from qdq.data.preprocessing import (
    CHANNEL_COUNTS,
    LAYOUTS,
    Preprocess,
    preset_names,
    read_preprocess,
)
from qdq.errors import DataError, did_you_mean, first_line
from qdq.files.command_files import note_input
from qdq.optional_packages import require_package

if TYPE_CHECKING:
    from PIL import Image

#: Suffixes of the files that are taken for pictures.
PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
)
_IMAGE_RANK = 4
_GREY_RANK = 2


class Images(msgspec.Struct, frozen=True):
    """A folder of pictures, the preset or file of their preprocessing, and their labels."""

    folder: str | Path
    preprocess: str | Path
    #: A file of classes by picture, or "off". None for the folders of the classes, if there are
    #: any.
    labels: str | Path | None = None

    def __post_init__(self) -> None:
        to_path(self.folder, "Images.folder")
        to_path(self.preprocess, "Images.preprocess")
        if self.labels is not None:
            to_path(self.labels, "Images.labels")


class _PictureInput(msgspec.Struct, frozen=True):
    """A preprocessing for one input of one model."""

    preprocess: Preprocess
    spec: InputSpec
    nchw: bool
    #: Height and width of the input.
    size: tuple[int, int]


def open_pictures(images: Images, specs: Specs, batch: int | None, model: str) -> Indexed:
    """Return the pictures of a folder and its subfolders as samples, in the order of their paths.

    A sample holds the batch that the model fixes, or `batch` pictures where that is dynamic, and
    their labels if there are any. Raises DataError where there are no pictures, where the model has
    no input for them, or where the labels cannot be read.
    """
    preprocess = read_preprocess(images.preprocess)
    picture_input = _find_picture_input(preprocess, specs, model, str(images.preprocess))
    folder = Path(images.folder)
    pictures = _require_pictures(folder)
    fixed_batch = picture_input.spec.shape[0]
    size = fixed_batch or batch or 1
    if fixed_batch:
        _require_whole_batches(folder, len(pictures), fixed_batch)
    picture_labels = open_labels(folder, pictures, images.labels)

    def read(i: int) -> Named:
        paths = pictures[i * size : (i + 1) * size]
        values = np.stack([_read_input(picture_input, path) for path in paths])
        sample = {**picture_labels.make_arrays(paths), picture_input.spec.name: values}
        return f"{folder} sample {i}", sample

    is_preset = str(images.preprocess) in preset_names()
    preprocess_name = images.preprocess if is_preset else Path(images.preprocess).name
    count = -(-len(pictures) // size)
    return Indexed(f"{folder.name or folder} as {preprocess_name}", count, read)


def _require_whole_batches(folder: Path, count: int, batch: int) -> None:
    """Raise DataError where the batch that the model fixes does not divide the pictures."""
    excess = count % batch
    if excess:
        raise DataError(
            f"{folder}: the folder holds {count} pictures, which batches of {batch} "
            f"do not divide. Remove {excess}."
        )


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder and its subfolders, by path; hidden files are left out."""
    return sorted(path for path in folder.rglob("*") if _is_picture(path))


def _is_picture(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return path.suffix.lower() in PICTURE_SUFFIXES and not is_hidden and path.is_file()


def _require_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        fact = "this is a file" if folder.exists() else "there is no such folder"
        raise DataError(f"{folder}: {fact}. Pass --images with a folder of pictures.")
    pictures = list_pictures(folder)
    if not pictures:
        raise DataError(
            f"{folder}: the folder holds no pictures. "
            f"Their names end in {', '.join(sorted(PICTURE_SUFFIXES))}."
        )
    return pictures


def _find_picture_input(
    preprocess: Preprocess, specs: Specs, model: str, name: str
) -> _PictureInput:
    """Return the input that takes the pictures, with its layout and size."""
    spec = _find_spec(preprocess, specs, model, name)
    nchw = _find_layout(preprocess, spec, model, name) == "nchw"
    height, width = spec.shape[2:] if nchw else spec.shape[1:3]
    if preprocess.size is None and (height is None or width is None):
        raise DataError(
            f"{model}: input {spec.name!r} is {spec}, of no fixed size. Write 'size' into {name}."
        )
    file_height, file_width = preprocess.size or (0, 0)
    return _PictureInput(preprocess, spec, nchw, (height or file_height, width or file_width))


def _find_layout(preprocess: Preprocess, spec: InputSpec, model: str, name: str) -> str:
    """Return the layout whose channel axis has the right size, or an unknown one."""
    channels = CHANNEL_COUNTS[preprocess.channels]
    layouts = [layout for layout in LAYOUTS if preprocess.layout in (None, layout)]
    for size in (channels, None):
        for layout in layouts:
            if spec.shape[_channel_axis(layout)] == size:
                return layout
    raise DataError(
        f"{model}: input {spec.name!r} is {spec}, but {name} makes {channels} channels. "
        "Write a preprocess file with 'channels' and 'layout' of the model."
    )


def _channel_axis(layout: str) -> int:
    return layout.index("c")


def _find_spec(preprocess: Preprocess, specs: Specs, model: str, name: str) -> InputSpec:
    """Return the input that takes pictures.

    Raises DataError where there is none, or where others would get nothing.
    """
    candidates = _find_candidates(preprocess.input, specs, name)
    if len(candidates) != 1 or not _is_image_batch(candidates[0]):
        inputs = ", ".join(f"{spec.name!r} {spec}" for spec in specs)
        raise DataError(
            f"{model}: no input, or several, takes pictures, four axes of floats with 1 or 3 "
            f"channels: {inputs}. Name it with 'input' in a preprocess file."
        )
    spec = candidates[0]
    if len(specs) > 1:
        others = join_input_names(other for other in specs if other is not spec)
        raise DataError(
            f"{model}: pictures feed only {spec.name!r}, and {others} would get nothing. "
            "Pass --data with samples for all inputs."
        )
    return spec


def _find_candidates(input_name: str | None, specs: Specs, name: str) -> list[InputSpec]:
    """Return the input of a name, or without one all inputs that look like pictures."""
    if input_name is None:
        return [spec for spec in specs if _has_picture_shape(spec)]
    known = [spec.name for spec in specs]
    if input_name not in known:
        raise DataError(
            f"{name}: the model has no input {input_name!r}{did_you_mean(input_name, known)} "
            f"It has {join_input_names(specs)}."
        )
    return [spec for spec in specs if spec.name == input_name]


def _is_image_batch(spec: InputSpec) -> bool:
    return np.dtype(spec.dtype).kind == "f" and len(spec.shape) == _IMAGE_RANK


def _has_picture_shape(spec: InputSpec) -> bool:
    if not _is_image_batch(spec):
        return False
    return any(spec.shape[_channel_axis(layout)] in (1, 3) for layout in LAYOUTS)


def _read_input(picture_input: _PictureInput, path: Path) -> Array:
    """Return one picture as the model's input, without the batch axis.

    Raises DataError where it cannot be read.
    """
    preprocess = picture_input.preprocess
    picture = _fit(_open(path, preprocess.channels), picture_input)
    pixels = np.asarray(picture, np.float32)
    if pixels.ndim == _GREY_RANK:
        pixels = pixels[:, :, None]
    if preprocess.channels == "bgr":
        pixels = pixels[:, :, ::-1]
    # A sample that overflows is refused later, with its number.
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.array(preprocess.mean, np.float32)
        std = np.array(preprocess.std, np.float32)
        values: Array = (pixels * np.float32(preprocess.scale) - mean) / std
        if picture_input.nchw:
            values = values.transpose(2, 0, 1)
        return values.astype(picture_input.spec.dtype)


def _open(path: Path, channels: str) -> Image.Image:
    """Return a picture in RGB or grey."""
    require_package("PIL")
    from PIL import Image

    note_input(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # standard error is for one line
            with Image.open(path) as picture:
                is_deep = picture.mode.startswith(("I", "F"))
                converted = picture.convert("L" if channels == "gray" else "RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        MemoryError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(
            f"{path}: the picture cannot be read: {first_line(error)}. Fix or remove it."
        ) from error
    if is_deep:
        raise DataError(
            f"{path}: the picture has more than 8 bits per channel ({picture.mode}). "
            "Convert it to 8 bits."
        )
    return converted


def _fit(picture: Image.Image, picture_input: _PictureInput) -> Image.Image:
    preprocess = picture_input.preprocess
    if preprocess.fit == "stretch":
        return _resize(picture, picture_input.size, preprocess)
    if preprocess.fit == "crop":
        return _crop(picture, picture_input)
    return _letterbox(picture, picture_input)


def _crop(picture: Image.Image, picture_input: _PictureInput) -> Image.Image:
    """Return the middle of a picture whose short side was resized.

    Rounded as in torchvision's Resize and CenterCrop.
    """
    height, width = picture_input.size
    size_before_crop = _size_before_crop(picture, picture_input)
    resized = _resize(picture, size_before_crop, picture_input.preprocess)
    top = round((resized.height - height) / 2.0)
    left = round((resized.width - width) / 2.0)
    return resized.crop((left, top, left + width, top + height))


def _size_before_crop(picture: Image.Image, picture_input: _PictureInput) -> tuple[int, int]:
    """Return the height and width of a picture before its middle is cut out."""
    height, width = picture_input.size
    side = _short_side(picture_input.preprocess, picture_input.size)
    if height == width:
        short, long = sorted(picture.size)
        long_side = side * long // short
        return (side, long_side) if picture.height <= picture.width else (long_side, side)
    ratio = max(height / picture.height, width / picture.width) * side / min(height, width)
    return max(round(picture.height * ratio), height), max(round(picture.width * ratio), width)


def _short_side(preprocess: Preprocess, size: tuple[int, int]) -> int:
    """Return the short side before cropping.

    It is the file's, in proportion where the model's input has another size.
    """
    if preprocess.resize is None or preprocess.size is None:
        return min(size)
    return round(preprocess.resize * min(size) / min(preprocess.size))


def _letterbox(picture: Image.Image, picture_input: _PictureInput) -> Image.Image:
    """Return the whole picture in the middle of the fill colour.

    Rounded as in Ultralytics' LetterBox.
    """
    from PIL import Image

    height, width = picture_input.size
    ratio = min(height / picture.height, width / picture.width)
    inner_height = max(round(picture.height * ratio), 1)
    inner_width = max(round(picture.width * ratio), 1)
    resized = _resize(picture, (inner_height, inner_width), picture_input.preprocess)
    fill = _fill_colour(picture_input.preprocess, picture.mode)
    box = Image.new(picture.mode, (width, height), fill)
    left = round((width - resized.width) / 2 - 0.1)
    top = round((height - resized.height) / 2 - 0.1)
    box.paste(resized, (left, top))
    return box


def _fill_colour(preprocess: Preprocess, mode: str) -> int | tuple[int, ...]:
    """Return the frame's colour in the mode of a picture, which is RGB or grey."""
    fill = tuple(round(colour) for colour in preprocess.fill)
    if mode != "RGB":
        return fill[0]
    if len(fill) == 1:
        return fill * 3
    return fill[::-1] if preprocess.channels == "bgr" else fill


def _resize(picture: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
    """Return a picture of a height and width."""
    from PIL import Image

    height, width = size
    method = Image.Resampling[preprocess.interpolation.upper()]
    if preprocess.antialias:
        return picture.resize((width, height), method)
    steps = (picture.width / width, 0, 0, 0, picture.height / height, 0)
    transform: Any = picture.transform
    sampled: Image.Image = transform((width, height), Image.Transform.AFFINE, steps, method)
    return sampled
