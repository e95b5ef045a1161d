"""The files of a page of the documentation: pictures, samples, models and the like, made anew."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from qdq.cli import main
from tests.support.paths import NETWORKS

#: The samples of `make_few_samples`, and the pictures of `make_colors`.
FEW = 8

#: The classes of the pictures of `make_colors`.
CLASSES = ("bird", "cat")


def make_digits(folder: Path) -> None:
    """Write pictures of digits: 64 in ``photos/``, 100 in a folder of ``val/`` for each class."""
    calibration = np.load(NETWORKS / "digits-calibration.npz")["image"]
    for number, image in enumerate(calibration):
        _write_picture(folder / "photos" / f"{number:03}.png", image)
    evaluation = np.load(NETWORKS / "digits-evaluation.npz")
    for number in range(100):
        label = evaluation["label"][number]
        _write_picture(
            folder / "val" / str(label) / f"{number:03}.png", evaluation["image"][number]
        )


def _write_picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(path)


def make_samples(folder: Path) -> None:
    """Write the calibration digits as ``samples/NUMBER.npz``, one sample per file."""
    (folder / "samples").mkdir()
    for number, image in enumerate(np.load(NETWORKS / "digits-calibration.npz")["image"]):
        np.savez(folder / "samples" / f"{number:03}.npz", image=image[None])


def make_few_samples(folder: Path) -> None:
    """Write a few digits as ``samples/NUMBER.npz``, each with its image and its label."""
    (folder / "samples").mkdir(parents=True)
    evaluation = np.load(NETWORKS / "digits-evaluation.npz")
    for number in range(FEW):
        image, label = evaluation["image"][number][None], evaluation["label"][number][None]
        np.savez(folder / "samples" / f"{number:03}.npz", image=image, label=label)


def make_zoo(folder: Path) -> None:
    """Write the same digits into ``data/model``."""
    make_few_samples(folder / "data")
    (folder / "data" / "samples").rename(folder / "data" / "model")


def make_colors(folder: Path) -> None:
    """Write a classifier of pictures in colour under several names, with samples and pictures for it.

    These are ``samples/NUMBER.npz`` with `image` and `label`, ``data.npy`` with all images, ``photos/``, ``val/`` with
    a folder for each class, and ``val.csv`` with the classes.
    """
    rng = np.random.default_rng(0)
    model = _make_classifier(rng).SerializeToString()
    for name in ("net", "model", "resnet50", "yolo", "yolox"):
        (folder / f"{name}.onnx").write_bytes(model)
    (folder / "samples").mkdir()
    images = rng.random((FEW, 3, 32, 32), np.float32)
    np.save(folder / "data.npy", images)
    rows = ["picture,class"]
    for number, image in enumerate(images):
        label = number % len(CLASSES)
        np.savez(folder / "samples" / f"{number}.npz", image=image[None], label=np.array([label]))
        _write_picture(folder / "photos" / f"{number}.png", image)
        _write_picture(folder / "val" / CLASSES[label] / f"{number}.png", image)
        rows.append(f"{number}.png,{label}")
    (folder / "val.csv").write_text("\n".join(rows) + "\n")


def _make_classifier(rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], "stem", strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "v"], ["c"], "body", strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"], "relu2"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"], "pool"),
        helper.make_node("Flatten", ["e"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "u"], ["logits"], "head"),
    ]
    weights = {"w": (8, 3, 3, 3), "v": (8, 8, 3, 3), "u": (8, len(CLASSES))}
    return _make_model(rng, nodes, weights, ("image", (3, 32, 32)), ("logits", len(CLASSES)))


def _make_model(
    rng: np.random.Generator,
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, tuple[int, ...]],
    source: tuple[str, tuple[int, ...]],
    result: tuple[str, int],
) -> onnx.ModelProto:
    """Return a model of seeded weights, with an open batch, from names and sizes."""
    initializers: list[TensorProto] = []
    for name, size in weights.items():
        values = rng.normal(size=size).astype(np.float32) / 3
        initializers.append(numpy_helper.from_array(values, name))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, ["batch", *source[1]])],
        [helper.make_tensor_value_info(result[0], TensorProto.FLOAT, ["batch", result[1]])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def make_wide(folder: Path) -> None:
    """Write ``model.onnx``, whose weights have blocks of 128 values, and samples for it."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "v"], ["y"], "second"),
    ]
    weights = {"w": (256, 256), "v": (256, 16)}
    model = _make_model(rng, nodes, weights, ("x", (256,)), ("y", 16))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "samples").mkdir()
    for number in range(FEW):
        np.savez(
            folder / "samples" / f"{number}.npz", x=rng.normal(size=(1, 256)).astype(np.float32)
        )


def make_cache(folder: Path) -> None:
    """Write ``net.cache``, a TensorRT calibration cache of ``net.onnx``."""
    source, scales = folder / "net.onnx", folder / "net.scales.json"
    plan = folder / "net.plan.yaml"
    data = str(NETWORKS / "digits-calibration.npz")
    _run_quietly("plan", str(source), "-o", str(plan))
    _run_quietly("calibrate", str(source), str(plan), "--data", data, "-o", str(scales))
    cache = str(folder / "net.cache")
    _run_quietly("ranges", "export", str(scales), "--format", "tensorrt-cache", "-o", cache)


def _run_quietly(*words: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    assert code == 0, words


def make_repository(folder: Path) -> None:
    """Make the folder a git repository without commits."""
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


SETUPS = {
    "digits": make_digits,
    "samples": make_samples,
    "few-samples": make_few_samples,
    "colors": make_colors,
    "zoo": make_zoo,
    "wide": make_wide,
    "cache": make_cache,
    "git": make_repository,
}
