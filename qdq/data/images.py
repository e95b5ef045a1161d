"""Folders of pictures as samples: a preset or a YAML file says how a picture becomes the model's input."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from qdq.arrays import Array
from qdq.data.input_specs import Indexed, InputSpec, Named, Specs, join_input_names
from qdq.errors import DataError, RuleError, did_you_mean, first_line
from qdq.files.strict_yaml import (
    LocatedMapping,
    read_choice,
    read_text,
    read_yaml,
    require_known_keys,
)

if TYPE_CHECKING:
    from PIL import Image

_PRESETS = Path(__file__).parent / "presets"

#: Suffixes of the files that are taken for pictures.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_FITS = ("crop", "letterbox", "stretch")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

#: What Pillow's transform knows; the others always smooth.
_UNSMOOTHED = ("nearest", "bilinear", "bicubic")
_CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
_LAYOUTS = ("nchw", "nhwc")
_IMAGE_RANK = 4


class Images(msgspec.Struct, frozen=True):
    """A folder of pictures, and the preset or file that says how they become the model's input."""

    folder: str | Path
    preprocess: str | Path


class Preprocess(msgspec.Struct, frozen=True):
    """How a picture becomes an input: ``(pixels * scale - mean) / std``, after it was fitted to the input's size."""

    fit: str
    #: Height and width, where the model does not fix them.
    size: tuple[int, int] | None = None
    #: For `crop`: the short side before the middle is cut out, for pictures of `size`.
    resize: int | None = None
    interpolation: str = "bilinear"
    #: Whether shrinking smooths, as Pillow does; OpenCV does not.
    antialias: bool = True
    #: For `letterbox`: the colour of the rest, one number for each channel, before scaling.
    fill: tuple[float, ...] = (0.0,)
    channels: str = "rgb"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    #: Where the model does not tell.
    layout: str | None = None
    #: The input that is fed, where the model does not tell.
    input: str | None = None


def preset_names() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in _PRESETS.glob("*.yaml"))


def preprocess_path(name: str | Path) -> Path:
    """Return the file of a shipped preset, or a user's; raises DataError where there is none."""
    if str(name) in preset_names():
        return _PRESETS / f"{name}.yaml"
    path = Path(name)
    if path.is_file():
        return path
    known = ", ".join(preset_names())
    raise DataError(
        f"unknown preprocessing {str(name)!r}: no file, and the presets are {known}{did_you_mean(str(name), preset_names())}"
    )


def read_preprocess(name: str | Path) -> Preprocess:
    """Return what a preset or file says; raises DataError with file and line for unknown keys and values of the wrong kind."""
    path = preprocess_path(name)
    try:
        content = read_yaml(path)
    except RuleError as error:
        raise DataError(str(error)) from error
    try:
        return msgspec.convert(_values(content), Preprocess)
    except RuleError as error:
        raise DataError(f"{path}:{error}") from error


def _values(content: Any) -> dict[str, Any]:
    if not isinstance(content, LocatedMapping):
        raise RuleError(
            f"1: a preprocess file is a mapping with some of {', '.join(('like', *_READERS))}"
        )
    require_known_keys(content, ("like", *_READERS))
    values = {key: reader(content, key) for key, reader in _READERS.items() if key in content}
    if "like" in content:
        values = (
            _values(read_yaml(_PRESETS / f"{read_choice(content, 'like', preset_names())}.yaml"))
            | values
        )
    if "fit" not in values:
        raise RuleError(
            f"{content.line}: the key 'fit' is missing; write one of {', '.join(_FITS)}, or 'like' and a preset"
        )
    _check_together(content, values)
    return values


def _check_together(content: LocatedMapping, values: dict[str, Any]) -> None:
    """Raise RuleError for keys that say nothing, or nothing that can be done, beside the others."""
    for key, fit in (("resize", "crop"), ("fill", "letterbox")):
        if key in content and values["fit"] != fit:
            raise RuleError(f"{content.lines[key]}: {key!r} is only for 'fit: {fit}'; leave it out")
    if (
        values["fit"] == "crop"
        and "resize" in values
        and ("size" not in values or values["resize"] < min(values["size"]))
    ):
        raise RuleError(
            f"{content.lines.get('resize', content.line)}: 'resize' is the short side before 'size' is cut out; give both, 'resize' the larger"
        )
    if (
        not values.get("antialias", True)
        and values.get("interpolation", "bilinear") not in _UNSMOOTHED
    ):
        raise RuleError(
            f"{content.lines.get('antialias', content.line)}: without 'antialias' the interpolation is one of {', '.join(_UNSMOOTHED)}"
        )
    if not all(0 <= colour <= 255 for colour in values.get("fill", ())):  # noqa: PLR2004 a level of eight bits
        raise RuleError(
            f"{content.lines['fill']}: 'fill' is {content['fill']!r}; write colours from 0 to 255"
        )
    count = _CHANNELS[values.get("channels", "rgb")]
    for key in ("mean", "std", "fill"):
        if len(values.get(key, ())) not in (0, 1, count):
            raise RuleError(
                f"{content.lines.get(key, content.line)}: {key!r} has {len(values[key])} numbers; write one, or one for each of {count} channels"
            )


def _choice(*known: str) -> Any:
    return lambda content, key: read_choice(content, key, known)


def _number(content: LocatedMapping, key: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        above, _, below = str(value).partition("/")
        number = float(above) / float(below or 1)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, ZeroDivisionError) as error:
        raise RuleError(
            f"{content.lines[key]}: {key!r} is {value!r}; write a number such as 0.5 or 1/255"
        ) from error
    return number


def _numbers(content: LocatedMapping, key: str) -> tuple[float, ...]:
    value = content[key]
    found = tuple(
        _number(content, key, number) for number in (value if isinstance(value, list) else [value])
    )
    if not found or (key == "std" and 0.0 in found):
        raise RuleError(
            f"{content.lines[key]}: {key!r} is {value!r}; write a number for each channel{', none of them 0' if key == 'std' else ''}"
        )
    return found


def _size(content: LocatedMapping, key: str) -> tuple[int, int]:
    value = content[key]
    found = value if isinstance(value, list) else [value, value]
    if len(found) != 2 or not all(type(side) is int and side > 0 for side in found):  # noqa: PLR2004 height and width
        raise RuleError(
            f"{content.lines[key]}: {key!r} is {value!r}; write pixels: one number, or [height, width]"
        )
    return found[0], found[1]


def _pixels(content: LocatedMapping, key: str) -> int:
    value = content[key]
    if type(value) is not int or value < 1:
        raise RuleError(f"{content.lines[key]}: {key!r} is {value!r}; write a number of pixels")
    return value


def _truth(content: LocatedMapping, key: str) -> bool:
    if not isinstance(content[key], bool):
        raise RuleError(f"{content.lines[key]}: {key!r} is {content[key]!r}; write true or false")
    return bool(content[key])


#: How the value of each key of a preprocess file is read.
_READERS: dict[str, Any] = {
    "fit": _choice(*_FITS),
    "size": _size,
    "resize": _pixels,
    "interpolation": _choice(*_INTERPOLATIONS),
    "antialias": _truth,
    "fill": _numbers,
    "channels": _choice(*_CHANNELS),
    "scale": lambda content, key: _number(content, key, content[key]),
    "mean": _numbers,
    "std": _numbers,
    "layout": _choice(*_LAYOUTS),
    "input": read_text,
}


class _Way(msgspec.Struct, frozen=True):
    """A preprocessing for one input of one model."""

    preprocess: Preprocess
    spec: InputSpec
    nchw: bool
    #: Height and width of the input.
    size: tuple[int, int]


def open_pictures(images: Images, specs: Specs, batch: int | None, model: str) -> Indexed:
    """Return the pictures of a folder and those below it, in the order of their paths, as samples of the model's batch, or of `batch`.

    Raises DataError where there are none, or where the model has no input for them.
    """
    folder = Path(images.folder)
    way = _way(read_preprocess(images.preprocess), specs, model, str(images.preprocess))
    if not folder.is_dir():
        raise DataError(
            f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; pass --images with a folder of pictures"
        )
    pictures = list_pictures(folder)
    if not pictures:
        raise DataError(
            f"{folder}: holds no pictures; their names end in {', '.join(sorted(SUFFIXES))}"
        )
    fixed = way.spec.shape[0]
    size = fixed or batch or 1
    if fixed and (over := len(pictures) % fixed):
        raise DataError(
            f"{folder}: holds {len(pictures)} pictures, which batches of {fixed} do not divide; leave out {over}"
        )

    def at(i: int) -> Named:
        chosen = pictures[i * size : (i + 1) * size]
        return f"{folder} sample {i}", {
            way.spec.name: np.stack([_input(way, path) for path in chosen])
        }

    name = (
        images.preprocess
        if str(images.preprocess) in preset_names()
        else Path(images.preprocess).name
    )
    return Indexed(f"{folder.name or folder} as {name}", -(-len(pictures) // size), at)


def list_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder and those below it; hidden files are none."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _way(preprocess: Preprocess, specs: Specs, model: str, name: str) -> _Way:
    spec = _fed(preprocess, specs, model, name)
    count = _CHANNELS[preprocess.channels]
    layouts = [layout for layout in _LAYOUTS if preprocess.layout in (None, layout)]
    fitting = [layout for layout in layouts if spec.shape[_axis(layout)] == count] or [
        layout for layout in layouts if spec.shape[_axis(layout)] is None
    ]
    if not fitting:
        raise DataError(
            f"{model}: input {spec.name!r} is {spec}, which is no picture with {count} channels as {name} gives them"
            "; write a preprocess file with 'channels' and 'layout' of the model"
        )
    nchw = fitting[0] == "nchw"
    height, width = spec.shape[2:] if nchw else spec.shape[1:3]
    if None in (height, width) and preprocess.size is None:
        raise DataError(
            f"{model}: input {spec.name!r} is {spec}, of no fixed size; write 'size' into {name}"
        )
    preset = preprocess.size or (0, 0)
    return _Way(preprocess, spec, nchw, (height or preset[0], width or preset[1]))


def _axis(layout: str) -> int:
    return layout.index("c")


def _fed(preprocess: Preprocess, specs: Specs, model: str, name: str) -> InputSpec:
    """Return the input that takes pictures; raises DataError where there is none, or others that nothing would feed."""
    wanted = preprocess.input
    if wanted is not None and wanted not in (known := [spec.name for spec in specs]):
        raise DataError(
            f"{name}: the model has no input {wanted!r}{did_you_mean(wanted, known)}; it has {join_input_names(specs)}"
        )
    fit = [spec for spec in specs if (spec.name == wanted if wanted else _takes_pictures(spec))]
    if len(fit) != 1 or np.dtype(fit[0].dtype).kind != "f" or len(fit[0].shape) != _IMAGE_RANK:
        found = ", ".join(f"{spec.name!r} {spec}" for spec in specs)
        raise DataError(
            f"{model}: no input, or several, takes pictures, four axes of floats with 1 or 3 channels: {found}; name it with 'input' in a preprocess file"
        )
    if len(specs) > 1:
        others = join_input_names(spec for spec in specs if spec is not fit[0])
        raise DataError(
            f"{model}: pictures feed only {fit[0].name!r}, and {others} would get nothing; pass --data with samples for all inputs"
        )
    return fit[0]


def _takes_pictures(spec: InputSpec) -> bool:
    return (
        np.dtype(spec.dtype).kind == "f"
        and len(spec.shape) == _IMAGE_RANK
        and any(spec.shape[_axis(layout)] in (1, 3) for layout in _LAYOUTS)
    )


def _input(way: _Way, path: Path) -> Array:
    """Return one picture as the model's input, without the batch axis; raises DataError where it cannot be read."""
    preprocess = way.preprocess
    pixels = np.asarray(_fitted(_open(path, preprocess.channels), way), np.float32)
    if pixels.ndim == 2:  # noqa: PLR2004 grey
        pixels = pixels[:, :, None]
    if preprocess.channels == "bgr":
        pixels = pixels[:, :, ::-1]
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # the sample that overflows is refused by its number
        values: Array = (
            pixels * np.float32(preprocess.scale) - np.array(preprocess.mean, np.float32)
        ) / np.array(preprocess.std, np.float32)
        return (values.transpose(2, 0, 1) if way.nchw else values).astype(way.spec.dtype)


def _open(path: Path, channels: str) -> Image.Image:
    """Return a picture in RGB or grey."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # standard error is for one line
            with Image.open(path) as picture:
                deep = picture.mode.startswith(("I", "F"))
                read = picture.convert("L" if channels == "gray" else "RGB")
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        MemoryError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(
            f"{path}: is no picture that can be read: {first_line(error)}; mend it or leave it out"
        ) from error
    if deep:
        raise DataError(
            f"{path}: has more than 8 bits a channel ({picture.mode}); convert it to 8 bits"
        )
    return read


def _fitted(picture: Image.Image, way: _Way) -> Image.Image:
    if way.preprocess.fit == "stretch":
        return _resized(picture, way.size, way.preprocess)
    return _cropped(picture, way) if way.preprocess.fit == "crop" else _letterboxed(picture, way)


def _cropped(picture: Image.Image, way: _Way) -> Image.Image:
    """Return the middle of a picture whose short side was resized, rounded as torchvision's Resize and CenterCrop do."""
    height, width = way.size
    resized = _resized(picture, _before_crop(picture, way), way.preprocess)
    top, left = round((resized.height - height) / 2.0), round((resized.width - width) / 2.0)
    return resized.crop((left, top, left + width, top + height))


def _before_crop(picture: Image.Image, way: _Way) -> tuple[int, int]:
    """Return the height and width that a picture gets before its middle is cut out."""
    height, width = way.size
    side = _short_side(way.preprocess, way.size)
    if height == width:
        short, long = sorted(picture.size)
        return (
            (side, side * long // short)
            if picture.height <= picture.width
            else (side * long // short, side)
        )
    ratio = max(height / picture.height, width / picture.width) * side / min(way.size)
    return max(round(picture.height * ratio), height), max(round(picture.width * ratio), width)


def _short_side(preprocess: Preprocess, size: tuple[int, int]) -> int:
    """Return the short side before cropping: that of the file, in proportion where the model's input has another size."""
    if preprocess.resize is None or preprocess.size is None:
        return min(size)
    return round(preprocess.resize * min(size) / min(preprocess.size))


def _letterboxed(picture: Image.Image, way: _Way) -> Image.Image:
    """Return the whole picture in the middle of the fill colour, rounded as Ultralytics' LetterBox does."""
    from PIL import Image

    height, width = way.size
    ratio = min(height / picture.height, width / picture.width)
    resized = _resized(
        picture,
        (max(round(picture.height * ratio), 1), max(round(picture.width * ratio), 1)),
        way.preprocess,
    )
    fill = tuple(round(colour) for colour in way.preprocess.fill)
    if picture.mode == "RGB":
        fill = (
            fill * 3 if len(fill) == 1 else fill[::-1] if way.preprocess.channels == "bgr" else fill
        )
    box = Image.new(picture.mode, (width, height), fill if picture.mode == "RGB" else fill[0])
    box.paste(
        resized,
        (round((width - resized.width) / 2 - 0.1), round((height - resized.height) / 2 - 0.1)),
    )
    return box


def _resized(picture: Image.Image, size: tuple[int, int], preprocess: Preprocess) -> Image.Image:
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
