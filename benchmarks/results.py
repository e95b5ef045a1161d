"""Quantize a folder of real models with the default rules and write what came out as Markdown.

    pip install pillow tokenizers scipy scikit-image        # what the tasks need
    python benchmarks/results.py --shared ../shared > docs/results.md

`--shared` names a folder with `models/` and `tasks/`; each task scores one family of models and
gives calibration samples that are disjoint from those it scores.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort
from harness import markdown_head, markdown_row

import qdq
from qdq.runtime.session import exact_options

SAMPLES = 32
METHODS = ("auto", "mse", "percentile", "entropy", "max")
#: Draws of calibration samples.
DRAWS = 4
TARGET = qdq.parse_target("rtx:sm86")
#: The task of each model; those not named are compared with their float original on photos.
TASKS = {
    "ppocrv4_rec": "ocr_rec",
    "minilm_l6_legacy": "minilm_retrieval",
    "ppocrv2_cls": "textline_cls",
    "silero_vad_16k_sequence": "vad",
}
PAGES = "ppocrv4_det"
SCORES = {"ocr_rec": "exact", "minilm_retrieval": "recall@1", "textline_cls": "acc", "vad": "auc"}

ENGINE = (
    "model",
    "weighted nodes in INT8, of promised",
    "MB moved, float -> INT8",
    "kernels",
    "strips to its input",
    "promises broken",
)

#: A signal-to-noise ratio above this, in dB, compares a model with itself.
EXACT = 200

Feed = dict[str, Any]

HEAD = f"""# Results

Real models, quantized with the default rules and {SAMPLES} calibration samples, and scored on
samples that calibration never saw. Engines are TensorRT-RTX's for {TARGET}, compiled without a
GPU. Made by

    python benchmarks/results.py --shared ../shared > docs/results.md

The first table has the INT8 model's score for each calibration method, the second what the engine
makes of it, which no method changes.

Scores: `exact`, the share of text lines read without a mistake; `recall@1`, of docstring halves;
`acc`, of text direction; `auc`, of speech frames; `top-1 agreement` and `dB` (signal-to-noise),
against the float model on 200 photo crops; `text pixel F1`, against the float model on 24 rendered
pages. Calibration samples were drawn {DRAWS} times, the same for all methods; the mean stands here
with its standard error. The scored samples are the same each time: of shares their number adds a
standard error of one to three points, which hardly matters between methods. Agreement means little
for models that are no classifiers (supres_x3_core, yolox_nano).

Promises broken: TensorRT-RTX has no INT8 transposed convolution, so the two of ppocrv4_det run in
float; planned with `--target rtx:sm86` they are left in float and nothing is broken.
"""


class Subject:
    """One model with its calibration samples and its score."""

    def __init__(self, path: Path, tasks: Any) -> None:
        self.path, self.name = path, path.stem
        self.tasklib = tasks("tasklib")
        self.task: ModuleType = tasks(TASKS.get(self.name, "photos"))
        self.session = self.tasklib.session(str(path))
        self.ocr = tasks("ocr_rec")

    def calibration(self, draw: int = 0) -> list[Feed]:
        if self.name == PAGES:
            return [{"x": page(self.ocr, 1000 + 100 * draw + i)} for i in range(SAMPLES)]
        if self.name in TASKS:
            return list(self.task.feeds(self.session, SAMPLES * DRAWS)[draw::DRAWS])
        return list(self.task.feeds(self.session, SAMPLES, 1 + 100 * draw, str(self.path)))

    def score(self, model: Path, *, exact: bool = False) -> dict[str, float]:
        """Return the task's figures for a model file, computed as it is written where `exact`."""
        session = open_exact(model) if exact else self.tasklib.session(str(model))
        if self.name == PAGES:
            return text_masks(self.session, session, [page(self.ocr, i) for i in range(24)])
        if self.name in TASKS:
            result = self.task.evaluate(session, str(model))
            return {SCORES[self.task.__name__]: result[SCORES[self.task.__name__]]}
        result = self.task.compare(self.session, session, str(self.path))
        return {"top-1 agreement": result["top1_agree"], "dB": result["snr_db"]}


def open_exact(model: Path) -> ort.InferenceSession:
    """Return a session of one thread, as the tasks', that computes every Q and DQ."""
    options = exact_options()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def page(ocr: ModuleType, seed: int) -> Any:
    """Return a 640x640 page of rendered lines, normalised as PP-OCR's detector wants it."""
    sheet, y = np.full((640, 640, 3), 230, np.uint8), 8
    for image, _ in ocr.lines(14, seed):
        height, width = image.shape[:2]
        if y + height > 632:
            break
        sheet[y : y + height, 8 : 8 + min(width, 624)] = image[:, :624]
        y += height + 10
    pixels = sheet[:, :, ::-1].astype(np.float32) / 255
    normal = (pixels - np.array([0.485, 0.456, 0.406], np.float32)) / np.array(
        [0.229, 0.224, 0.225], np.float32
    )
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], np.float32)


def text_masks(ours: Any, theirs: Any, pages: list[Any]) -> dict[str, float]:
    """Return the F1 of the text pixels (probability above .3) against the float model's."""
    both = only = 0
    for x in pages:
        a, b = (session.run(None, {"x": x})[0] > 0.3 for session in (ours, theirs))
        both, only = both + int((a & b).sum()), only + int((a ^ b).sum())
    return {"text pixel F1": 2 * both / max(2 * both + only, 1)}


def methods_row(subject: Subject, folder: Path) -> tuple[str, ...]:
    """Return the scores of a model in float and by each method, calibrated on the same samples."""
    scores: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for draw in range(DRAWS):
        ranges = qdq.observe(subject.path, qdq.plan(subject.path), subject.calibration(draw))
        for method in METHODS:
            result = qdq.quantize(subject.path, None, method=method, given=ranges)
            out = folder / f"{subject.name}.{method}.onnx"
            qdq.save(result.model, result.source, out, force=True)
            scores[method].append(subject.score(out))
    return (
        subject.name,
        spelled([subject.score(subject.path)]),
        *(spelled(scores[method]) for method in METHODS),
    )


def engine_row(subject: Subject, folder: Path) -> tuple[str, ...]:
    """Return what the engine makes of a model, quantized by the first method."""
    out = folder / f"{subject.name}.{METHODS[0]}.onnx"
    (engine,) = qdq.validate(
        subject.path, out, data=subject.calibration()[:1], targets=[TARGET]
    ).engines
    same = qdq.strip(out).SerializeToString(deterministic=True) == qdq.load(
        subject.path
    ).model.SerializeToString(deterministic=True)
    kept = (
        f"{sum(v.int8 for v in engine.layers)} of {sum(v.promised for v in engine.layers)}"
        if not engine.failure
        else "does not build"
    )
    broken = (
        "; ".join(
            f"{b.node} ({b.actual.removeprefix('but the engine runs it as ')})"
            for b in engine.broken_promises
        )
        or "-"
    )
    moved = f"{engine.float_bytes / 1e6:.1f} -> {engine.bytes / 1e6:.1f}"
    return (
        subject.name,
        kept,
        moved,
        f"{engine.float_kernels} -> {engine.kernels}",
        "yes" if same else "NO",
        broken,
    )


def spelled(scores: list[dict[str, float]]) -> str:
    """Return the means of figures with their names, of dB with the standard error of the mean."""
    means = {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}
    errors = {
        name: float(np.std([score[name] for score in scores], ddof=1) / len(scores) ** 0.5)
        for name in means
        if len(scores) > 1
    }
    digits = {name: 2 if name == "dB" else 3 for name in means}
    figures = {
        name: f"{value:.{digits[name]}f}"
        + (f" ± {errors[name]:.{digits[name]}f}" if errors else "")
        for name, value in means.items()
    }
    return ", ".join(
        f"{name} {'-' if means[name] > EXACT else figure}" for name, figure in figures.items()
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of models")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.shared / "tasks"))
    print(HEAD)
    paths = [
        p
        for p in sorted((arguments.shared / "models").glob("*.onnx"))
        if not arguments.only or p.stem in arguments.only
    ]
    subjects = [Subject(path, importlib.import_module) for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        table(("model", "float", *METHODS), methods_row, subjects, Path(folder))
        table(
            (
                "model",
                "weighted nodes in INT8, of promised",
                "MB moved, float -> INT8",
                "kernels",
                "strips to its input",
                "promises broken",
            ),
            engine_row,
            subjects,
            Path(folder),
        )


def table(
    headers: tuple[str, ...],
    make_row: Callable[[Subject, Path], tuple[str, ...]],
    subjects: list[Subject],
    folder: Path,
) -> None:
    """Print a table of one row for each model."""
    print(markdown_head(headers))
    for subject in subjects:
        print(markdown_row(make_row(subject, folder)), flush=True)
    print()


if __name__ == "__main__":
    main()
