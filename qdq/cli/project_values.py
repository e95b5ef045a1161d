"""Keys of the project file: which option each gives a default to, and how its value is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from qdq.calibration.methods import parse_method
from qdq.checking.selection import parse_codes, parse_per_file_ignores
from qdq.cli.shares import OFF, parse_share
from qdq.data.feeds import NOISE
from qdq.data.labels import LABELS_OFF
from qdq.data.preprocessing import preset_names
from qdq.data.scripts import is_script
from qdq.errors import UsageError
from qdq.graph.float_types import parse_float_type
from qdq.graph.shape_profiles import parse_profile
from qdq.metrics.metric_files import load_metric
from qdq.metrics.score_drop import to_drop
from qdq.precision.cast_model import ENDS, SCALES, require_choice
from qdq.rules.rule_files import rules_path
from qdq.rules.shipped import shipped_sets
from qdq.target import parse_target


class Key(msgspec.Struct, frozen=True):
    """One key of the project file."""

    #: Name of the option that it gives a default to.
    option: str
    #: Returns the default from the project's folder and the value in the file. Raises QdqError for
    #: a value of the wrong kind.
    read: Callable[[Path, Any], Any]


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"the value is {value!r}. Write a text.")
    return value


def _read_texts(value: Any) -> list[str]:
    """Return a list of texts; one text alone is a list of one."""
    texts = value if isinstance(value, list) else [value]
    are_texts = all(isinstance(text, str) and text for text in texts)
    if not texts or not are_texts:
        raise UsageError(f"the value is {value!r}. Write a text or a list of texts.")
    return texts


def _resolve_path(folder: Path, text: str) -> str:
    """Return a path of the project file, relative to the current folder if it is inside it."""
    path = folder / text
    current = Path.cwd()
    if path.is_relative_to(current):
        return str(path.relative_to(current))
    return str(path)


def _read_path(folder: Path, value: Any) -> str:
    return _resolve_path(folder, _read_text(value))


def _read_paths(folder: Path, value: Any) -> list[str]:
    return [_resolve_path(folder, text) for text in _read_texts(value)]


def _read_rules(folder: Path, value: Any) -> list[str]:
    shipped = shipped_sets()
    names = []
    for text in _read_texts(value):
        name = text if text in shipped else _resolve_path(folder, text)
        rules_path(name)
        names.append(name)
    return names


def _read_targets(_: Path, value: Any) -> list[str]:
    return [str(parse_target(text)) for text in _read_texts(value)]


def _read_shapes(_: Path, value: Any) -> list[str]:
    return [str(parse_profile(text)) for text in _read_texts(value)]


def _read_globs(_: Path, value: Any) -> list[str]:
    return _read_texts(value)


def _read_data(folder: Path, value: Any) -> str:
    text = _read_text(value)
    return text if text == NOISE else _resolve_path(folder, text)


def _read_preprocess(folder: Path, value: Any) -> str:
    text = _read_text(value)
    return text if text in preset_names() else _resolve_path(folder, text)


def _read_labels(folder: Path, value: Any) -> str:
    text = _read_text(value)
    return text if text == LABELS_OFF else _resolve_path(folder, text)


def _read_metric(folder: Path, value: Any) -> str:
    """Return a metric, its file relative to the project; the file is run by commands only."""
    text = _read_text(value)
    if is_script(text):
        return _resolve_path(folder, text)
    load_metric(text)
    return text


def _read_drop(_: Path, value: Any) -> str:
    return str(to_drop(value, "the value"))


def _read_method(_: Path, value: Any) -> str:
    text = _read_text(value)
    parse_method(text)
    return text


def _read_integer(value: Any, kind: str, least: int) -> int:
    if type(value) is not int or value < least:
        raise UsageError(f"the value is {value!r}. Write {kind}, at least {least}.")
    return value


def _read_sample_count(_: Path, value: Any) -> int:
    return _read_integer(value, "a whole number of samples", 1)


def _read_seed(_: Path, value: Any) -> int:
    return _read_integer(value, "a whole number", 0)


def _read_truth(_: Path, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"the value is {value!r}. Write true or false.")
    return value


def _read_number(_: Path, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"the value is {value!r}. Write a number.")
    return float(value)


def _read_guard(_: Path, value: Any) -> str:
    text = OFF if value is False else _read_text(value)
    if text != OFF:
        parse_share(text, "the value", f" or {OFF}")
    return text


def _read_share(_: Path, value: Any) -> str:
    text = _read_text(value)
    parse_share(text, "the value", "")
    return text


def _read_float(_: Path, value: Any) -> str:
    return parse_float_type(_read_text(value), "float").name


def _read_scales(_: Path, value: Any) -> str:
    return require_choice(_read_text(value), SCALES, "scales")


def _read_ends(_: Path, value: Any) -> str:
    return require_choice(_read_text(value), ENDS, "io")


def _read_layer_count(_: Path, value: Any) -> int:
    return _read_integer(value, "a whole number of layers", 1)


def _read_select(_: Path, value: Any) -> list[str]:
    return _read_codes(value, "select")


def _read_ignore(_: Path, value: Any) -> list[str]:
    return _read_codes(value, "ignore")


def _read_codes(value: Any, option: str) -> list[str]:
    codes = _read_texts(value)
    parse_codes(codes, option)
    return codes


def _read_per_file_ignores(_: Path, value: Any) -> tuple[tuple[str, frozenset[str]], ...]:
    """Return the codes that are ignored in the files of each glob, relative to the project."""
    if not isinstance(value, dict):
        raise UsageError(
            f"the value is {value!r}. Write a glob of paths and the codes to ignore in them, "
            "as 'legacy/*.onnx': [uint8]."
        )
    return parse_per_file_ignores({glob: _read_texts(codes) for glob, codes in value.items()})


#: The keys outside of tables.
PROJECT_KEYS: Mapping[str, Key] = {
    "rules": Key("rule_sets", _read_rules),
    "targets": Key("targets", _read_targets),
    "data": Key("data", _read_data),
    "method": Key("method", _read_method),
    "batch": Key("batch", _read_sample_count),
    "images": Key("images", _read_path),
    "preprocess": Key("preprocess", _read_preprocess),
    "labels": Key("labels", _read_labels),
    "samples": Key("samples", _read_sample_count),
    "seed": Key("seed", _read_seed),
    "leave_float": Key("leave_float", _read_globs),
    "float": Key("float_type", _read_float),
    "scales": Key("scales", _read_scales),
    "io": Key("io", _read_ends),
    "keep_fp32": Key("keep_fp32", _read_globs),
    "allow_unmatched": Key("allow_unmatched", _read_truth),
    "metric": Key("metric", _read_metric),
    "guard": Key("guard", _read_guard),
    "keep_float": Key("keep_float", _read_share),
    "float_first": Key("float_first", _read_layer_count),
    "shapes": Key("shapes", _read_shapes),
    "ort_library": Key("ort_library", _read_paths),
}

#: The tables, and the keys in each.
TABLES: Mapping[str, Mapping[str, Key]] = {
    "thresholds": {
        "snr_db": Key("min_snr", _read_number),
        "cosine": Key("min_cosine", _read_number),
        "top1_agreement": Key("min_top1", _read_number),
        "metric": Key("min_metric", _read_number),
        "max_drop": Key("max_drop", _read_drop),
    },
    "check": {
        "select": Key("select", _read_select),
        "ignore": Key("ignore", _read_ignore),
        "baseline": Key("baseline", _read_path),
        "per-file-ignores": Key("per_file_ignores", _read_per_file_ignores),
    },
}

#: All that may be at the top of the project file.
TOP_KEYS = (*PROJECT_KEYS, *TABLES)
