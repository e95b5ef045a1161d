"""External data in the attributes of nodes: of Constants in the graph, in bodies and in functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

import qdq
from qdq.graph.source import canonical_bytes
from tests.support.cli_runner import refused, run
from tests.support.graphs import Array, build, node, noise, value

KERNEL = noise(4, 3, 3, 3, seed=1)
CONV = {"x": [1, 3, 6, 6]}, {"y": [1, 4, 4, 4]}


class ExternalFile:
    """A file of external data beside a model."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "data.bin"
        self.path.write_bytes(b"")

    def store(self, name: str, array: Array) -> TensorProto:
        """Return a tensor whose values are in the file."""
        tensor = numpy_helper.from_array(array, name)
        content = self.path.read_bytes()
        self.path.write_bytes(content + tensor.raw_data)
        set_external_data(tensor, self.path.name, len(content), len(tensor.raw_data))
        tensor.ClearField("raw_data")
        return tensor

    def constant(self, name: str, array: Array) -> onnx.NodeProto:
        """Return a Constant whose value is in the file."""
        return node("Constant", [], name, value=self.store(f"{name}_value", array))


def in_graph(file: ExternalFile) -> onnx.ModelProto:
    return build([file.constant("k", KERNEL), node("Conv", ["x", "k"], "y")], *CONV)


def transposed(file: ExternalFile) -> onnx.ModelProto:
    nodes = [
        file.constant("t", KERNEL.T.copy()),
        node("Transpose", ["t"], "k"),
        node("Conv", ["x", "k"], "y"),
    ]
    return build(nodes, *CONV)


def in_function(file: ExternalFile) -> onnx.ModelProto:
    nodes = [file.constant("k", KERNEL), node("Conv", ["a", "k"], "b")]
    imports = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Block", ["a"], ["b"], nodes, imports)
    call = node("Block", ["x"], "y", domain="local")
    return build([call], *CONV, domains={"local": 1}, functions=[function])


def of_old_opset(file: ExternalFile) -> onnx.ModelProto:
    return build([file.constant("k", KERNEL), node("Conv", ["x", "k"], "y")], *CONV, opset=11, ir=6)


def in_folded_branch(file: ExternalFile) -> onnx.ModelProto:
    branches = {}
    for name in ("then", "else"):
        constant = file.constant(f"{name}_k", KERNEL if name == "then" else -KERNEL)
        output = value(f"{name}_k", KERNEL.shape)
        branches[f"{name}_branch"] = helper.make_graph([constant], name, [], [output])
    nodes = [node("If", ["yes"], "k", **branches), node("Conv", ["x", "k"], "y")]
    return build(nodes, *CONV, {"yes": np.array(True)})


PLACES = pytest.mark.parametrize(
    "place", [in_graph, transposed, in_function, of_old_opset, in_folded_branch]
)


@PLACES
def test_the_scales_are_those_of_the_stored_constant(tmp_path: Path, place: object) -> None:
    assert callable(place)
    path = tmp_path / "model.onnx"
    onnx.save(place(ExternalFile(tmp_path)), path)
    plain = build([node("Conv", ["x", "k"], "y")], *CONV, {"k": KERNEL})
    expected = {len(p.scales): p.scales for p in qdq.quantize(plain, "noise").scales.by_pair}
    actual = {len(p.scales): p.scales for p in qdq.quantize(path, "noise").scales.by_pair}
    assert actual == expected
    assert set(actual) == {1, 4}


@PLACES
def test_the_data_goes_along_to_another_folder(tmp_path: Path, place: object) -> None:
    assert callable(place)
    path, folder = tmp_path / "model.onnx", tmp_path / "elsewhere"
    folder.mkdir()
    onnx.save(place(ExternalFile(tmp_path)), path)
    output = folder / "q.onnx"
    assert run("quantize", path, "-o", output, "--data", "noise")[0] == 0
    assert (folder / "data.bin").read_bytes() == (tmp_path / "data.bin").read_bytes()
    code, text, _ = run("validate", path, output, "--data", "noise", "--min-snr", "25")
    assert code == 0, text
    assert run("strip", output, "-o", folder / "float.onnx")[0] == 0
    stripped = onnx.load(folder / "float.onnx", load_external_data=False)
    assert canonical_bytes(stripped) == canonical_bytes(qdq.load(path).model)


def test_a_constant_in_a_body_is_read(tmp_path: Path) -> None:
    file = ExternalFile(tmp_path)
    branches = {}
    for name in ("then", "else"):
        nodes = [file.constant(f"{name}_k", KERNEL), node("Conv", ["x", f"{name}_k"], f"{name}_y")]
        output = value(f"{name}_y", [1, 4, 4, 4])
        branches[f"{name}_branch"] = helper.make_graph(nodes, name, [], [output])
    model = build([node("If", ["c"], "y", **branches)], *CONV)
    model.graph.input.append(value("c", [1], TensorProto.BOOL))
    onnx.save(model, tmp_path / "model.onnx")
    data = [{"x": noise(1, 3, 6, 6), "c": np.array([choice])} for choice in (True, False)]
    result = qdq.quantize(tmp_path / "model.onnx", data, method="max")
    largest = np.abs(KERNEL).max(axis=(1, 2, 3)) / 127
    kernels = [pair.scales for pair in result.scales.by_pair if len(pair.scales) > 1]
    assert np.allclose(kernels, [largest, largest])


@pytest.mark.parametrize("is_flat", [True, False])
def test_a_sparse_constant_is_read(tmp_path: Path, is_flat: bool) -> None:
    file = ExternalFile(tmp_path)
    indices = np.array([1, 6] if is_flat else [[0, 1], [1, 2]], np.int64)
    values = file.store("values", np.array([127.0, -254.0], np.float32))
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "at"), [2, 4])
    nodes = [
        node("Constant", [], "k", sparse_value=sparse),
        node("MatMul", ["x", "k"], "y"),
    ]
    onnx.save(build(nodes, {"x": [1, 2]}, {"y": [1, 4]}), tmp_path / "model.onnx")
    result = qdq.quantize(tmp_path / "model.onnx", "noise")
    (weight,) = (pair for pair in result.scales.by_pair if pair.tensor == "k")
    assert weight.scales[1:3] == (1.0, 2.0)


def test_missing_data_of_a_constant_is_named(tmp_path: Path) -> None:
    file = ExternalFile(tmp_path)
    onnx.save(in_function(file), tmp_path / "model.onnx")
    file.path.unlink()
    message = refused(tmp_path, "plan", tmp_path / "model.onnx")
    assert "external data file 'data.bin' of tensor 'k_value' is missing" in message
