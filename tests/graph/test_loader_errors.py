"""Models that cannot be read or quantized: one line that says why and what to do, and nothing written."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.cli_runner import contents, refused, run, samples, save, tiny_model
from tests.support.lfs import POINTER
from tests.support.paths import NETWORKS

#: The version of onnx.
ONNX = tuple(map(int, onnx.__version__.split(".")[:2]))

DIGITS = NETWORKS / "digits_cnn.onnx"
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00\x00\x00\x01\x00\x08\x06\x00\x00\x00"

Change = Callable[[onnx.ModelProto], object]


def quantize(folder: Path, model: Path, *more: object) -> str:
    """Return the refusal of `qdq quantize` for a model in `folder`, run with data that fits `tiny_model`."""
    data = samples(folder / "samples")
    return refused(folder, "quantize", model, "-o", folder / "out.onnx", "--data", data, *more)


def changed(folder: Path, change: Change) -> Path:
    """Return the path of a tiny model that was changed."""
    model = tiny_model()
    change(model)
    return save(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("content", "message_part"),
    [
        (b"hello, this is text\n", "is not an ONNX file (20 bytes). Export or download it again."),
        (PNG, "is not an ONNX file"),
        (b"PK\x03\x04\x14\x00\x00\x00", "is not an ONNX file"),
        (b"", "is not an ONNX model (no IR version or opset). Export or download it again."),
        (b"\x08", "is truncated or damaged (1 bytes). Export or download it again."),
        (b"\x08\x08", "is not an ONNX model (no IR version or opset)"),
        (POINTER, "is a Git LFS pointer, not the model itself. Run 'git lfs pull' first."),
    ],
    ids=["text", "PNG", "zip", "empty", "one-byte", "two-bytes", "LFS-pointer"],
)
def test_a_file_that_is_no_model_is_named_with_what_it_is(
    tmp_path: Path, content: bytes, message_part: str
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    assert f"qdq: {path}: the file {message_part}" in quantize(tmp_path, path)


@pytest.mark.parametrize("part", [0.001, 0.25, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("original", ["digits", "tiny"])
def test_a_file_cut_short_is_called_truncated(tmp_path: Path, original: str, part: float) -> None:
    content = DIGITS.read_bytes() if original == "digits" else tiny_model().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(len(content) * part)])

    assert f"qdq: {path}: the file is truncated or damaged" in quantize(tmp_path, path)


@pytest.mark.parametrize("missing", [1, 2, 3, 5, 10, 40])
def test_a_file_that_lacks_its_last_bytes_is_refused(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(DIGITS.read_bytes()[:-missing])

    assert f"qdq: {path}: the file is truncated or damaged" in quantize(tmp_path, path)


def test_bytes_gone_wrong_never_give_a_traceback(tmp_path: Path) -> None:
    original = tiny_model().SerializeToString()
    for seed in range(60):
        rng = random.Random(seed)
        content = bytearray(original)
        for _ in range(4):
            content[rng.randrange(400)] = rng.randrange(256)
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        for command in (
            ["plan", path],
            ["check", path],
            ["strip", path, "-o", tmp_path / "out.onnx", "--force"],
        ):
            code, _, err = run(*command)

            assert code in (0, 1) or (
                code == 2 and err.startswith("qdq: ") and err.count("\n") == 1
            ), (seed, command, err)


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "MODEL", "-o", "OUT", "--data", "noise"],
        ["plan", "MODEL"],
        ["explain", "MODEL", "conv"],
        ["strip", "MODEL", "-o", "OUT"],
        ["check", "MODEL"],
        ["validate", "MODEL", "GOOD", "--data", "noise"],
        ["validate", "GOOD", "MODEL", "--data", "noise"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    ("kind", "message_part"),
    [("missing", "no such file"), ("folder", "Is a directory"), ("text", "is not an ONNX file")],
)
def test_every_command_that_reads_models_refuses(
    tmp_path: Path, command: list[str], kind: str, message_part: str
) -> None:
    path = tmp_path / "model.onnx"
    if kind == "folder":
        path.mkdir()
    if kind == "text":
        path.write_text("hello, this is text\n")
    arguments = {
        "MODEL": path,
        "GOOD": save(tiny_model(), tmp_path / "good.onnx"),
        "OUT": tmp_path / "out.onnx",
    }

    message = refused(tmp_path, *(arguments.get(word, word) for word in command))

    assert f"qdq: {path}: " in message
    assert message_part in message


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "MODEL", "PLAN", "-o", "OUT", "--data", "noise"],
        ["apply", "MODEL", "PLAN", "SCALES", "-o", "OUT"],
    ],
)
def test_commands_that_take_a_plan_refuse_a_missing_model(
    tmp_path: Path, command: list[str]
) -> None:
    good, plan, scales = (
        save(tiny_model(), tmp_path / "good.onnx"),
        tmp_path / "plan.yaml",
        tmp_path / "scales.json",
    )
    run("plan", good, "-o", plan)
    run("calibrate", good, plan, "-o", scales, "--data", "noise")
    arguments = {
        "MODEL": tmp_path / "gone.onnx",
        "PLAN": plan,
        "SCALES": scales,
        "OUT": tmp_path / "out",
    }

    assert f"qdq: {tmp_path / 'gone.onnx'}: no such file" in refused(
        tmp_path, *(arguments.get(word, word) for word in command)
    )


def with_external(folder: Path, location: str, data: bytes | None = None, **more: object) -> Path:
    """Write a tiny model whose Gemm weight lies at `location`, and `data` (its values where None) into weights.bin."""
    model = tiny_model()
    weight = next(t for t in model.graph.initializer if t.name == "gemm.weight")
    values = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": len(values), **more}.items():
        weight.external_data.add(key=key, value=str(value))
    inner = folder / "inner"
    inner.mkdir(exist_ok=True)
    (inner / "weights.bin").write_bytes(values if data is None else data)
    return save(model, inner / "model.onnx")


@pytest.mark.parametrize(
    ("location", "more", "message_part"),
    [
        (
            "gone.bin",
            {},
            "external data file 'gone.bin' of tensor 'gemm.weight' is missing. Put it beside the model.",
        ),
        (".", {}, "external data file '.' of tensor 'gemm.weight' is missing"),
        (
            "../outside.bin",
            {},
            "tensor 'gemm.weight' points to '../outside.bin', outside the model's folder. Save the model with its data beside it.",
        ),
        ("sub/../../outside.bin", {}, "outside the model's folder"),
        (
            "/etc/hostname",
            {},
            "tensor 'gemm.weight' points to '/etc/hostname', outside the model's folder",
        ),
        (
            "weights.bin",
            {"offset": 4096},
            "external data file 'weights.bin' ends before tensor 'gemm.weight': it is truncated. Download or export it again.",
        ),
        pytest.param(
            "weights.bin",
            {"offset": -4},
            "external data of tensor 'gemm.weight' cannot be found",
            marks=pytest.mark.skipif(
                ONNX < (1, 21), reason="onnx accepts the offset before 1.21, and fails later"
            ),
        ),
        (
            "weights.bin",
            {"offset": "many"},
            "external data of tensor 'gemm.weight' cannot be found",
        ),
        ("w" * 300, {}, "external data of tensor 'gemm.weight' cannot be found"),
        ("loop.bin", {}, "external data"),
    ],
    ids=[
        "missing",
        "folder",
        "above",
        "above-through-below",
        "absolute",
        "offset-past-end",
        "negative",
        "no-number",
        "too-long-a-name",
        "link-to-itself",
    ],
)
def test_external_data_that_cannot_be_read_is_named_with_its_tensor(
    tmp_path: Path, location: str, more: dict[str, object], message_part: str
) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(10_000))
    model = with_external(tmp_path, location, **more)
    (model.parent / "loop.bin").symlink_to("loop.bin")

    message = quantize(tmp_path, model)

    assert f"qdq: {model}: " in message
    assert message_part in message


def test_external_data_behind_a_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(10_000))
    model = with_external(tmp_path, "link.bin")
    (model.parent / "link.bin").symlink_to(tmp_path / "outside.bin")

    for command in (
        ["plan", model],
        ["check", model],
        ["strip", model, "-o", tmp_path / "out.onnx"],
    ):
        assert (
            f"qdq: {model}: tensor 'gemm.weight' points to 'link.bin', outside the model's folder"
            in refused(tmp_path, *command)
        )


@pytest.mark.parametrize(
    ("kept", "length"),
    [(100, None), (0, None), (100, "")],
    ids=["cut", "empty", "cut-and-length-unsaid"],
)
def test_external_data_that_is_too_short_is_refused(
    tmp_path: Path, kept: int, length: str | None
) -> None:
    model = with_external(
        tmp_path, "weights.bin", bytes(kept), **({} if length is None else {"length": length})
    )

    message = quantize(tmp_path, model)

    assert "model.onnx" in message
    assert "gemm.weight" in message


def test_external_data_is_not_overwritten_and_no_part_is_written_without_force(
    tmp_path: Path,
) -> None:
    model = with_external(tmp_path, "weights.bin")
    other = tmp_path / "weights.bin"
    other.write_bytes(b"someone else's")

    message = quantize(tmp_path, model, "--report", tmp_path / "report.md")

    assert (
        f"qdq: {other}: the file exists, and the model's external data goes there. Pass --force to replace it, or choose another folder."
        in message
    )


IS_INPUT = "the output is the input, and inputs are never changed. Pass another file."
IS_COPY = (
    "the model and the external data weights.bin are the same file."
    " Pass another file for one of them."
)


@pytest.mark.parametrize(
    ("output", "fact"),
    [("inner/weights.bin", IS_INPUT), ("weights.bin", IS_COPY)],
    ids=["the-file", "its-copy"],
)
def test_the_output_cannot_be_the_external_data(tmp_path: Path, output: str, fact: str) -> None:
    model = with_external(tmp_path, "weights.bin")

    message = refused(
        tmp_path, "quantize", model, "-o", tmp_path / output, "--data", "noise", "--force"
    )

    assert f"qdq: {tmp_path / output}: {fact}" in message


def test_external_data_goes_along_to_another_folder_readable_by_all_that_may_read_the_model(
    tmp_path: Path,
) -> None:
    model = with_external(tmp_path, "weights.bin")
    before = contents(model.parent)

    code, _, _ = run("quantize", model, "-o", tmp_path / "out.onnx", "--data", "noise")

    assert code == 0
    assert contents(model.parent) == before
    assert (tmp_path / "weights.bin").read_bytes() == (model.parent / "weights.bin").read_bytes()
    assert (tmp_path / "weights.bin").stat().st_mode == (tmp_path / "out.onnx").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["inner", "out.onnx", "weights.bin"]


@pytest.mark.parametrize("opset", [6, 1, 0, -1])
@pytest.mark.parametrize("command", ["quantize", "plan", "check"])
def test_an_opset_below_7_is_too_old(tmp_path: Path, command: str, opset: int) -> None:
    path = changed(tmp_path, lambda m: setattr(m.opset_import[0], "version", opset))
    more = ["-o", tmp_path / "out.onnx", "--data", "noise"] if command == "quantize" else []

    assert (
        f"qdq: {path}: opset {opset} is too old. Export the model with opset 7 or newer."
        in refused(tmp_path, command, path, *more)
    )


def test_an_opset_that_is_not_there_yet_is_refused_by_name(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda m: setattr(m.opset_import[0], "version", 99))

    message = quantize(tmp_path, path)
    newest = re.fullmatch(
        r"qdq: model.onnx: ONNX Runtime cannot run it: its opset is newer than (\d+), the last .*\. Export it with opset .*\n",
        message,
    )
    assert newest is not None
    assert 20 < int(newest[1]) < 99


@pytest.mark.parametrize("command", ["quantize", "plan", "check", "strip"])
def test_operators_of_onnx_without_an_opset_of_onnx_are_refused(
    tmp_path: Path, command: str
) -> None:
    path = changed(tmp_path, lambda m: setattr(m.opset_import[0], "domain", "com.microsoft"))
    more = {
        "quantize": ["-o", tmp_path / "out.onnx", "--data", "noise"],
        "strip": ["-o", tmp_path / "out.onnx"],
    }.get(command, [])

    message = refused(tmp_path, command, path, *more)

    assert (
        message
        == f"qdq: {path}: node conv (Conv) is an operator of ONNX, but the model imports no opset of ONNX. Export it again.\n"
    )


@pytest.mark.parametrize("command", ["plan", "calibrate"])
def test_a_quantized_model_is_sent_to_strip(tmp_path: Path, command: str) -> None:
    good, quantized, plan = (
        save(tiny_model(), tmp_path / "good.onnx"),
        tmp_path / "quantized.onnx",
        tmp_path / "plan.yaml",
    )
    assert run("quantize", good, "-o", quantized, "--data", "noise")[0] == 0
    run("plan", good, "-o", plan)
    more = {
        "calibrate": [plan, "-o", tmp_path / "s.json", "--data", "noise"],
    }

    message = refused(tmp_path, command, quantized, *more.get(command, []))

    assert "quantized.onnx" in message
    assert ("qdq strip" in message) == (command != "calibrate")  # whose plan is for another model
    assert ("plan again" in message) == (command == "calibrate")


@pytest.mark.parametrize(
    "operator",
    ["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"],
)
def test_other_kinds_of_quantized_model_are_recognised(tmp_path: Path, operator: str) -> None:
    schema = onnx.defs.get_schema(operator, 17, "")
    node = helper.make_node(
        operator, ["conv.weight"] * schema.max_input, [f"new{i}" for i in range(schema.min_output)]
    )
    path = changed(tmp_path, lambda m: m.graph.node.append(node))

    assert f"qdq: {path}: the model is quantized already (1 nodes such as {operator})" in refused(
        tmp_path, "plan", path
    )


def last_weight(values: float) -> Change:
    """Return the change that gives the Gemm weight these values."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer[2].CopyFrom(
            numpy_helper.from_array(np.full((5, 216), values, np.float32), "gemm.weight")
        )

    return change


@pytest.mark.parametrize(
    ("change", "message_part"),
    [
        (
            lambda m: m.graph.ClearField("node"),
            "is truncated or empty: its graph has no nodes. Export or download it again.",
        ),
        (
            lambda m: m.graph.node[0].ClearField("input"),
            "is damaged: node conv (Conv) has 0 inputs, but the operator needs 2. Export or download it again.",
        ),
        (
            lambda m: m.graph.node[1].ClearField("output"),
            "is damaged: node relu (Relu) has 0 outputs, but the operator returns 1",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", [1, 2])),
            "is damaged: node conv (Conv) has 'group' as INTS",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", 0)),
            "is damaged: node conv (Conv) has 'group' 0, but it must be at least 1",
        ),
        (
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", [1, -1])),
            "is damaged: node conv (Conv) has 'strides' 1, -1, but it must be at least 1",
        ),
        (
            lambda m: setattr(m.opset_import[0], "version", 1 << 62),
            f"is damaged: it imports version {1 << 62} of an opset",
        ),
        (
            lambda m: m.graph.node[1].ClearField("op_type"),
            "onnx.checker rejects the model: Field 'op_type' of 'node' is required to be non-empty. Export it again",
        ),
        (
            lambda m: setattr(m.graph.node[1], "op_type", "Reloo"),
            "ONNX Runtime lacks the operator of node relu (Reloo), on which these planned tensors depend:",
        ),
        (
            lambda m: m.graph.initializer.pop(0),
            "however input 'conv.weight' of node: name: conv OpType: Conv is not output of any previous nodes. Export it again",
        ),
        (lambda m: setattr(m.graph.initializer[0], "raw_data", b"1234"), "conv.weight"),
        (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "conv.weight"),
        (
            last_weight(np.inf),
            "weight 'gemm.weight' holds NaN or Inf. Export the model again, or pass --leave-float 'gemm'",
        ),
        (last_weight(np.nan), "weight 'gemm.weight' holds NaN or Inf"),
        (lambda m: m.graph.input[0].ClearField("type"), "input 'x' is no tensor of a known type"),
        (
            lambda m: m.graph.input.append(
                helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
            ),
            "input 's' is no tensor of a known type",
        ),
        (
            lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2),
            "input 'x' has shape [1, 4, 8, 8]",
        ),
    ],
)
def test_a_damaged_graph_is_refused_with_the_place_of_the_damage(
    tmp_path: Path, change: Change, message_part: str
) -> None:
    path = changed(tmp_path, change)

    message = quantize(tmp_path, path)

    assert message_part in message
    assert "model.onnx" in message or "0.npz" in message


def test_operators_that_onnx_does_not_know_can_be_planned_and_checked(tmp_path: Path) -> None:
    plugin = helper.make_node("EfficientNMS_TRT", ["y"], ["z"], name="nms")
    path = changed(tmp_path, lambda m: m.graph.node.append(plugin))

    assert run("plan", path)[0] == 0
    assert run("check", path)[0] == 1


def test_weights_so_large_that_their_squares_overflow_quantize_without_a_word_on_standard_error(
    tmp_path: Path,
) -> None:
    path = changed(tmp_path, last_weight(1e30))

    code, _, err = run("quantize", path, "-o", tmp_path / "out.onnx", "--data", "noise")

    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("attributes", "scale", "beside"),
    [
        ({"axis": 9}, np.ones(5), False),
        ({"axis": 1}, np.ones(5), False),
        ({"axis": 1, "block_size": 50}, np.ones((5, 2)), False),
        ({"axis": 0}, np.ones(5), True),
    ],
    ids=["axis-that-is-not-there", "axis-of-another-length", "blocks-too-few", "data-gone"],
)
@pytest.mark.parametrize("command", ["strip", "check"])
def test_stored_integers_that_cannot_become_floats_are_named(
    tmp_path: Path, command: str, attributes: dict[str, int], scale: np.ndarray, beside: bool
) -> None:
    model = tiny_model()
    model.opset_import[0].version, model.ir_version = 21, 10
    integers = numpy_helper.from_array(np.ones((5, 216), np.int8), "integers")
    if beside:
        integers.raw_data = b"too few"
    del model.graph.initializer[2]
    model.graph.initializer.extend(
        [integers, numpy_helper.from_array(scale.astype(np.float32), "scale")]
    )
    model.graph.node.insert(
        0,
        helper.make_node("DequantizeLinear", ["integers", "scale"], ["gemm.weight"], **attributes),
    )
    path = save(model, tmp_path / "model.onnx")

    if (
        command == "check"
        and (attributes["axis"] == 9 or len(scale) != (5, 216)[attributes["axis"]])
        and scale.ndim == 1
    ):
        code, text, _ = run("check", path)
        assert (code, "scale-count" in text) == (
            1,
            True,
        )  # the parser refuses it: a finding, and no reason to stop
        return
    message = refused(
        tmp_path, command, path, *(["-o", tmp_path / "out.onnx"] if command == "strip" else [])
    )

    assert "qdq: model.onnx: the " in message
    assert "'integers'" in message


@pytest.mark.parametrize("command", ["plan", "check", "diff"])
def test_the_name_of_an_attribute_that_is_not_text_is_damage(tmp_path: Path, command: str) -> None:
    model = tiny_model()
    model.graph.node[0].attribute.append(helper.make_attribute("@@@@", 1))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"@@@@", b"\xff\xfe\xff\xfe"))
    models = [path, path] if command == "diff" else [path]
    message = refused(tmp_path, command, *models)
    assert "is damaged: node #0 holds a name that is not text" in message


@pytest.mark.parametrize("dims", [(0, 4, 3, 3), (6, 0, 3, 3), (6, 4, 0, 3), (6,)])
def test_a_weight_without_values_or_axes_stays_in_float(
    tmp_path: Path, dims: tuple[int, ...]
) -> None:
    weight = numpy_helper.from_array(np.zeros(dims, np.float32), "conv.weight")
    path = changed(tmp_path, lambda m: m.graph.initializer[0].CopyFrom(weight))
    code, out, err = run("plan", path)
    assert code == 0, err
    assert "conv[" not in out.partition("Left in float")[0]
    assert run("quantize", path, "-o", tmp_path / "out.onnx", "--data", "noise")[0] == 2


def test_a_negative_size_of_an_input_is_one_that_is_not_known(tmp_path: Path) -> None:
    """ONNX's inference ends the process at a Slice of such a tensor."""
    model = tiny_model()
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    batch.dim_value = -1
    bounds = [
        numpy_helper.from_array(np.array([position]), name)
        for name, position in (("begin", 0), ("end", 9))
    ]
    model.graph.initializer.extend(bounds)
    model.graph.node.insert(0, helper.make_node("Slice", ["x", "begin", "end"], ["s"], name="cut"))
    model.graph.node[1].input[0] = "s"
    path = save(model, tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"
    code, _, err = run("quantize", path, "-o", out, "--data", samples(tmp_path / "samples"))
    assert code == 0, err
