"""Files of engine layers that cannot be used: one line, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

import qdq
from tests.support.cli_runner import refused, save, tiny_model

EXPORT = "Build the engine with trtexec --profilingVerbosity=detailed and export its layers again."
WRITES = "Pass a file that trtexec --exportLayerInfo or the engine inspector writes."
CASES = {
    "empty": (b"", f"the file is not JSON (Input data was truncated). {WRITES}"),
    "no JSON": (b"Layer(Reformat): x", f"the file is not JSON (JSON is malformed: invalid character (byte 0)). {WRITES}"),
    "no text": (b'"\xff\xfe"', "the file is not JSON ("),
    "deep": (b"[" * 100_000, "the file is not JSON ("),
    "a list": (b"[]", f"the file has no 'Layers'. {WRITES}"),
    "no layers": (b'{"Layers": []}', f"the file has no 'Layers'. {WRITES}"),
    "a profile": (b'{"Bindings": ["x"]}', f"the file has no 'Layers'. {WRITES}"),
    "names": (
        b'{"Layers": ["conv", "gemm"], "Bindings": ["x"]}',
        f"the layers are bare names: the engine was built without detailed profiling verbosity. {EXPORT}",
    ),
    "no name": (b'{"Layers": [{"LayerType": "Reformat"}]}', f"layer 0 has no Name. {EXPORT}"),
    "a number": (b'{"Layers": [7]}', f"layer 0 has no Name. {EXPORT}"),
    "names of tensors": (b'{"Layers": [{"Name": "conv", "Inputs": ["x"]}]}', f"layer 'conv' does not describe its inputs. {EXPORT}"),
    "tensors that are no list": (b'{"Layers": [{"Name": "conv", "Inputs": 3}]}', f"layer 'conv' does not describe its inputs. {EXPORT}"),
    "dimensions": (b'{"Layers": [{"Name": "conv", "Outputs": [{"Dimensions": "?"}]}]}', f"layer 'conv' does not describe its outputs. {EXPORT}"),
    "another model": (
        b'{"Layers": [{"Name": "Conv_0", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": []}]}',
        "no layer names a weighted node of model.int8.onnx. Pass the model that the engine was built from.",
    ),
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return save(tiny_model(), tmp_path / "model.onnx"), save(
        qdq.quantize(tiny_model(), "noise").model, tmp_path / "model.int8.onnx"
    )


@pytest.mark.parametrize("case", CASES)
def test_a_layer_file_that_cannot_be_used_is_refused(
    models: tuple[Path, Path], tmp_path: Path, case: str
) -> None:
    content, expected = CASES[case]
    path = tmp_path / "engine.json"
    path.write_bytes(content)

    message = refused(
        tmp_path, "validate", *models, "--layers", path, "--report", tmp_path / "report.json"
    )

    assert message.startswith(f"qdq: {path}: {expected}")


def test_a_layer_file_that_is_not_there_is_named(models: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "engine.json"

    assert (
        refused(tmp_path, "validate", *models, "--layers", path)
        == f"qdq: {path}: the file cannot be read: No such file or directory\n"
    )


def test_a_report_does_not_replace_the_layer_file(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "engine.json"
    path.write_text("{}")

    assert "engine.json" in refused(
        tmp_path, "validate", *models, "--layers", path, "--report", path, "--force"
    )
