"""The kinds of files that qdq reads: whole examples, mutations, the reader and the commands."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fuzz import seed_files
from fuzz.array_mutations import mutate_npy, mutate_npz
from fuzz.byte_mutations import mutate_bytes
from fuzz.model_mutations import mutate_model
from fuzz.range_mutations import mutate_ranges
from fuzz.value_mutations import mutate_json, mutate_yaml

Mutator = Callable[[bytes, random.Random, int], bytes]
Command = tuple[str, ...]

#: In commands, the name of the damaged file and of an output.
FILE, OUT = "FILE", "OUT"


class FileKind(NamedTuple):
    """A kind of file."""

    name: str
    #: Share of the mutants, relative to the other kinds.
    weight: float
    #: Name of the damaged file in the working folder.
    file: str
    #: Whole files that the mutations start from.
    examples: Callable[[Path], list[bytes]]
    mutators: tuple[Mutator, ...]
    #: What the library reads the file with.
    read: Callable[[Path], object]
    #: Commands that read the file; `light` ones take a few milliseconds.
    light: tuple[Command, ...]
    commands: tuple[Command, ...]


def _read_model(path: Path) -> object:
    import qdq
    from qdq.graph.index import GraphIndex

    return GraphIndex(qdq.load(path))


def _read_plan(path: Path) -> object:
    from qdq.planning.plan_file import read_plan

    return read_plan(path)


def _read_scales(path: Path) -> object:
    from qdq.calibration.scales import read_scales

    return read_scales(path)


def _read_given(path: Path) -> object:
    import qdq

    return qdq.read_given(path)


def _read_ranges(path: Path) -> object:
    from qdq.ranges.range_file import read_ranges

    return read_ranges(path)


def _read_checkpoint(path: Path) -> object:
    from qdq.ranges.range_file import read_checkpoint

    return read_checkpoint(path)


def _read_layers(path: Path) -> object:
    from qdq.engines.layer_file import read_layer_file
    from qdq.target import parse_target

    return read_layer_file(path, parse_target("trt:sm80"), {"conv": "conv"})


def _read_baseline(path: Path) -> object:
    from qdq.checking.baseline import read_baseline

    return read_baseline(path)


def _read_rules(path: Path) -> object:
    from qdq.rules.rule_files import read_rules

    return read_rules(path)


def _read_cases(path: Path) -> object:
    from qdq.testing.case_files import read_cases

    return read_cases(path, "no-late-relu")


def _read_preset(path: Path) -> object:
    from qdq.data.preprocessing import read_preprocess

    return read_preprocess(path)


def _read_project(path: Path) -> object:
    from qdq.cli.project_file import find_project

    return find_project(path.parent)


def _read_samples(path: Path) -> object:
    import qdq
    from qdq.data.feeds import open_feeds
    from qdq.graph.index import GraphIndex

    index = GraphIndex(qdq.load(path.parent / "model.onnx"))
    return list(open_feeds(index, str(path)))


def _read_nothing(path: Path) -> object:
    return path


def _companions(*names: str) -> Callable[[Path], list[bytes]]:
    return lambda folder: [(folder / name).read_bytes() for name in names]


def _shipped_rules(folder: Path) -> list[bytes]:
    from qdq.rules.shipped import shipped_rules_folder

    rules = [seed_files.RULE.encode()]
    for path in sorted((shipped_rules_folder() / "tensorrt").glob("*.yaml")):
        name, content = path.stem.encode(), path.read_bytes()
        rules.append(content.replace(b"rule: " + name, b"rule: no-late-relu", 1))
    return rules


def _checkpoints(folder: Path) -> list[bytes]:
    from qdq.ranges.range_file import Checkpoint, encode_ranges, read_ranges

    return [encode_ranges(Checkpoint("run", (read_ranges(folder / "all.ranges"),)))]


_YAML: tuple[Mutator, ...] = (mutate_yaml, mutate_yaml, mutate_bytes)
_JSON: tuple[Mutator, ...] = (mutate_json, mutate_json, mutate_bytes)
_GIVEN_COMMANDS = (
    ("calibrate", "model.onnx", "plan.yaml", "--ranges", FILE, "-o", OUT),
    ("calibrate", "model.onnx", "plan.yaml", "--ranges", FILE, "--data", "noise", "-o", OUT),
    ("quantize", "model.onnx", "--ranges", FILE, "-o", OUT),
)


def _export_commands() -> tuple[Command, ...]:
    layouts = ("tensorrt-cache", "yaml", "json")
    return tuple(("ranges", "export", FILE, "--format", f, "-o", OUT) for f in layouts)


def _sample_kind(name: str, file: str, examples: Any, mutators: Any, option: str) -> FileKind:
    commands = (
        ("calibrate", "model.onnx", "plan.yaml", option, FILE, "-o", OUT),
        ("quantize", "model.onnx", option, FILE, "-o", OUT),
        ("validate", "model.onnx", "int8.onnx", option, FILE),
    )
    return FileKind(name, 0.5, file, examples, mutators, _read_samples, (), commands)


_MODEL = FileKind(
    "model",
    6.0,
    "damaged.onnx",
    lambda folder: seed_files.models(),
    (mutate_model, mutate_model, mutate_model, mutate_bytes),
    _read_model,
    (
        ("strip", FILE, "-o", OUT),
        ("diff", FILE, "int8.onnx"),
        ("ranges", "export", FILE, "--format", "yaml", "-o", OUT),
    ),
    (
        ("check", FILE),
        ("check", FILE),
        ("check", FILE, "--fix"),
        ("check", FILE, "--format", "sarif"),
        ("check", FILE, "--target", "trt:sm80", "--format", "json"),
        ("plan", FILE, "-o", OUT),
        ("plan", FILE, "--target", "rtx:sm86", "--format", "json"),
        ("explain", FILE, "conv"),
        ("quantize", FILE, "--data", "noise", "-o", OUT),
        ("quantize", FILE, "--ranges", "given.yaml", "-o", OUT),
        (
            "quantize",
            FILE,
            "--data",
            "noise",
            "--rules",
            "tensorrt-fp8",
            "--target",
            "rtx:sm89",
            "-o",
            OUT,
        ),
        ("quantize", FILE, "--data", "data.npz", "-o", OUT),
        ("validate", "model.onnx", FILE, "--data", "noise", "--target", "trt:sm80"),
        ("validate", FILE, "int8.onnx", "--data", "noise"),
        ("strip", FILE, "-o", OUT, "--ranges", "OUT.yaml"),
        ("quantize", "model.onnx", "--ranges", FILE, "-o", OUT),
    ),
)

KINDS: Mapping[str, FileKind] = {
    kind.name: kind
    for kind in (
        _MODEL,
        FileKind(
            "plan", 1.5, "damaged.yaml", _companions("plan.yaml"), _YAML, _read_plan,
            (("apply", "model.onnx", FILE, "scales.json", "-o", OUT),),
            (
                ("plan", "model.onnx", "--diff", FILE),
                ("calibrate", "model.onnx", FILE, "--data", "noise", "-o", OUT),
                ("calibrate", "model.onnx", FILE, "--ranges", "given.cache", "-o", OUT),
            ),
        ),
        FileKind(
            "scales", 1.0, "damaged.json", _companions("scales.json"), _JSON, _read_scales,
            (("apply", "model.onnx", "plan.yaml", FILE, "-o", OUT), *_export_commands()),
            _GIVEN_COMMANDS,
        ),
        FileKind(
            "ranges (YAML)", 1.0, "damaged.yaml", _companions("given.yaml"), _YAML, _read_given,
            _export_commands(), _GIVEN_COMMANDS,
        ),
        FileKind(
            "ranges (JSON)", 1.0, "damaged.json", _companions("given.json"), _JSON, _read_given,
            _export_commands(), _GIVEN_COMMANDS,
        ),
        FileKind(
            "calibration cache", 1.0, "damaged.cache", _companions("given.cache"),
            (mutate_bytes,), _read_given, _export_commands(), _GIVEN_COMMANDS,
        ),
        FileKind(
            "observed ranges", 0.5, "damaged.ranges", _companions("all.ranges"),
            (mutate_ranges, mutate_ranges, mutate_bytes), _read_ranges,
            (("ranges", "merge", FILE, "-o", OUT), *_export_commands()), _GIVEN_COMMANDS,
        ),
        FileKind(
            "checkpoint", 0.3, "resumed.json.checkpoint", _checkpoints,
            (mutate_ranges, mutate_bytes), _read_checkpoint, (),
            (("calibrate", "model.onnx", "plan.yaml", "--data", "noise", "--resume", "-o",
              "resumed.json"),),
        ),
        FileKind(
            "engine layers", 1.0, "damaged.json", _companions("layers.json"), _JSON, _read_layers,
            (),
            (("validate", "model.onnx", "int8.onnx", "--target", "trt:sm80", "--layers", FILE),),
        ),
        FileKind(
            "baseline", 0.5, "damaged.json", _companions("baseline.json"), _JSON, _read_baseline,
            (), (("check", "int8.onnx", "--baseline", FILE),),
        ),
        FileKind(
            "rule", 1.0, "no-late-relu.yaml", _shipped_rules, _YAML, _read_rules,
            (("rules", "list", "tensorrt", FILE),),
            (
                ("plan", "model.onnx", "--rules", "tensorrt", "--rules", FILE),
                ("check", "int8.onnx", "--rules", "tensorrt", "--rules", FILE),
                ("rules", "show", "no-late-relu", "--rules", "tensorrt", "--rules", FILE),
            ),
        ),
        FileKind(
            "rule cases", 0.7, "rules/cases/no-late-relu.yaml",
            _companions("rules/cases/no-late-relu.yaml"), _YAML, _read_cases, (),
            (("test", "rules", "--no-engines"),),
        ),
        FileKind(
            "preset", 0.7, "damaged.yaml", _companions("preset.yaml"), _YAML, _read_preset, (),
            (("calibrate", "model.onnx", "plan.yaml", "--images", "pics", "--preprocess", FILE,
              "-o", OUT),),
        ),
        FileKind(
            "project file", 0.7, "qdq.yaml", lambda _: [seed_files.PROJECT.encode()], _YAML,
            _read_project, (), (("check", "int8.onnx"), ("plan", "model.onnx", "-o", OUT)),
        ),
        FileKind(
            "pyproject.toml", 0.3, "pyproject.toml",
            lambda _: [seed_files.TOML_PROJECT.encode()], (mutate_bytes,), _read_project, (),
            (("check", "int8.onnx"), ("plan", "model.onnx", "-o", OUT)),
        ),
        _sample_kind("samples (npz)", "damaged.npz", _companions("data.npz"),
                     (mutate_npz, mutate_npz, mutate_bytes), "--data"),
        _sample_kind("samples (npy)", "damaged.npy", _companions("data.npy"),
                     (mutate_npy, mutate_npy, mutate_bytes), "--data"),
        _sample_kind("samples (JSON)", "damaged.json", _companions("inputs.json"), _JSON, "--data"),
        FileKind(
            "picture", 0.3, "pics/a.png",
            lambda _: [seed_files.picture(kind) for kind in ("PNG", "JPEG", "BMP")],
            (mutate_bytes,), _read_nothing, (),
            (("calibrate", "model.onnx", "plan.yaml", "--images", "pics", "--preprocess",
              "preset.yaml", "-o", OUT),),
        ),
    )
}  # fmt: skip


def choose_kind(rng: random.Random, names: Sequence[str] = ()) -> FileKind:
    """Return a kind, drawn by weight."""
    kinds = [KINDS[name] for name in names] or list(KINDS.values())
    return rng.choices(kinds, [kind.weight for kind in kinds])[0]
