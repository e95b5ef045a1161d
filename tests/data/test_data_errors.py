"""Calibration data that is missing or does not fit the model: the file, the input and what to do about it."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qdq.data.feeds import open_feeds
from qdq.data.sample_files import DATA_FORMS
from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from tests.support.cli_runner import refused, run, samples, save, tiny_model
from tests.support.sample_values import values, with_two_inputs


def spoilt(value: float) -> np.ndarray:
    """Return three samples, of which the second holds one value that is not finite."""
    array = values(3)
    array[1, 0, 0, 0] = value
    return array


def quantize(
    folder: Path, data: object, *more: object, model: onnx.ModelProto | None = None
) -> str:
    """Return the refusal of `qdq quantize` for a tiny model with some data."""
    path = save(model or tiny_model(), folder / "model.onnx")
    return refused(folder, "quantize", path, "-o", folder / "out.onnx", "--data", data, *more)


def npz(folder: Path, **arrays: np.ndarray) -> Path:
    """Write arrays into one .npz and return its path."""
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def with_batch(size: int) -> onnx.ModelProto:
    """Return the tiny model with a fixed batch."""
    model = tiny_model()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return model


@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_no_data_is_answered_with_the_kinds_there_are(tmp_path: Path, command: str) -> None:
    model, plan = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "plan.yaml"
    run("plan", model, "-o", plan)

    message = refused(
        tmp_path,
        command,
        model,
        *([plan] if command == "calibrate" else []),
        "-o",
        tmp_path / "out",
    )

    assert (
        message
        == f"qdq: model.onnx: there is no calibration data. {DATA_FORMS} '--data noise' is only for trying things out.\n"
    )


@pytest.mark.parametrize("command", ["quantize", "calibrate", "validate"])
@pytest.mark.parametrize("name", ["gone", "gone.npz"])
def test_a_path_that_is_not_there_is_named(tmp_path: Path, command: str, name: str) -> None:
    model, plan = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "plan.yaml"
    run("plan", model, "-o", plan)
    more = {
        "quantize": ["-o", tmp_path / "out"],
        "calibrate": [plan, "-o", tmp_path / "out"],
        "validate": [model],
    }[command]

    message = refused(tmp_path, command, model, *more, "--data", tmp_path / name)

    assert message == f"qdq: {tmp_path / name}: there is no such file or folder. {DATA_FORMS}\n"


def test_an_empty_folder_is_answered_with_what_to_write(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    folder.mkdir()
    (folder / "notes.txt").write_text("x")

    assert (
        quantize(tmp_path, folder)
        == f"qdq: {folder}: the folder holds no .npz files, .npy files or inputs that Polygraphy saved. Write one .npz per sample, its arrays named 'x'.\n"
    )


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2")

    assert (
        quantize(tmp_path, tmp_path / "data.csv")
        == f"qdq: {tmp_path / 'data.csv'}: this kind of data is unknown. {DATA_FORMS}\n"
    )


def damaged(good: bytes, kind: str) -> bytes:
    """Return a good, compressed .npz with something wrong."""
    return {
        "empty": b"",
        "text": b"hello, this is text\n",
        "half": good[: len(good) // 2],
        "end-gone": good[:-5],
        "zeros-inside": good[:200] + bytes(100) + good[300:],
        "bit-flipped": good[:60] + bytes([good[60] ^ 255]) + good[61:],
        "unknown-compression": good.replace(
            b"\x08\x00\x00\x00\x21\x00", b"\x63\x00\x00\x00\x21\x00"
        ),
        "one-array": b"\x93NUMPY\x01\x00",
    }[kind]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (
            "empty",
            "this is no .npz file, or a truncated one. Write it with numpy.savez(path, INPUT=array)",
        ),
        ("text", "this is no .npz file, or a truncated one"),
        ("half", "this is no .npz file, or a truncated one"),
        ("end-gone", "this is no .npz file, or a truncated one"),
        ("zeros-inside", "input 'x' cannot be read"),
        ("bit-flipped", "input 'x' cannot be read"),
        ("unknown-compression", "input 'x' cannot be read"),
        (
            "one-array",
            "the file holds a single array without a name. Write it with numpy.savez(path, INPUT=array)",
        ),
    ],
)
@pytest.mark.parametrize("in_folder", [True, False], ids=["in-a-folder", "alone"])
def test_a_damaged_npz_is_named(tmp_path: Path, kind: str, says: str, in_folder: bool) -> None:
    folder = samples(tmp_path / "samples")
    path = folder / "1.npz"
    np.savez_compressed(path, x=values())
    path.write_bytes(damaged(path.read_bytes(), kind))

    message = quantize(tmp_path, folder if in_folder else path)

    assert f"qdq: {path}: {says}" in message


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"x": np.array([{}, 1], dtype=object)},
            ": input 'x' cannot be read: Object arrays cannot be loaded when allow_pickle=False. Save it again as numbers",
        ),
        (
            {"image": values()},
            ": the sample has no array for input 'x'; it holds 'image'. Name arrays after inputs",
        ),
        (
            {"xx": values(), "label": np.zeros(1)},
            ": the sample has no array for input 'x'; it holds 'xx', 'label'. Did you mean 'xx'? Name arrays after inputs",
        ),
        ({}, ": the sample has no array for input 'x'; it holds nothing. Name arrays after inputs"),
        (
            {"x": values()[0, 0]},
            " sample 0: input 'x' has shape [1, 8], the model needs float32[?, 4, 8, 8]",
        ),
        (
            {"x": values(2)[:, :3]},
            " sample 0: input 'x' has shape [1, 3, 8, 8], the model needs float32[?, 4, 8, 8]",
        ),
        (
            {"x": values(2).transpose(0, 2, 3, 1)},
            " sample 0: input 'x' has shape [1, 8, 8, 4], the model needs float32[?, 4, 8, 8]",
        ),
        (
            {"x": values().astype(np.float64)},
            " sample 0: input 'x' holds float64, the model needs float32. Convert it with .astype('float32')",
        ),
        (
            {"x": (values() * 10).astype(np.uint8)},
            " sample 0: input 'x' holds uint8, the model needs float32. Convert it with .astype('float32')",
        ),
        ({"x": np.array(["a"])}, " sample 0: input 'x' holds <U1, the model needs float32"),
        (
            {"x": values().astype(np.complex64)},
            " sample 0: input 'x' holds complex64, the model needs float32",
        ),
        ({"x": spoilt(np.nan)}, " sample 1: input 'x' holds NaN or Inf. Fix the data"),
        ({"x": spoilt(np.inf)}, " sample 1: input 'x' holds NaN or Inf. Fix the data"),
        ({"x": spoilt(-np.inf)}, " sample 1: input 'x' holds NaN or Inf. Fix the data"),
        ({"x": values(0)}, ": the data holds no samples"),
        ({"x": np.float32(3)}, ": the data holds no samples"),
        ({"x": values()[:, :, :0]}, " sample 0: input 'x' has shape [1, 4, 0, 8]"),
    ],
)
def test_arrays_that_do_not_fit_are_named_with_sample_and_input(
    tmp_path: Path, arrays: dict[str, np.ndarray], says: str
) -> None:
    path = npz(tmp_path, **arrays)

    message = quantize(tmp_path, path)

    assert f"{path.name}{says}" in message


def test_a_folder_is_read_to_its_end_before_anything_is_written(tmp_path: Path) -> None:
    folder = samples(tmp_path / "samples", 3)
    np.savez(folder / "2.npz", x=spoilt(np.nan)[1:2])

    assert (
        quantize(tmp_path, folder)
        == f"qdq: {folder / '2.npz'}: input 'x' holds NaN or Inf. Fix the data.\n"
    )


def test_an_empty_sample_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = samples(tmp_path / "samples", 2)
    np.savez(folder / "1.npz", x=values(0))

    assert (
        quantize(tmp_path, folder)
        == f"qdq: {folder / '1.npz'}: input 'x' is empty. Remove the sample.\n"
    )


def test_a_second_input_that_is_not_in_the_data_is_named(tmp_path: Path) -> None:
    message = quantize(
        tmp_path,
        npz(tmp_path, x=values(), bais=np.zeros((1, 5), np.float32)),
        model=with_two_inputs(),
    )

    assert (
        "data.npz: the sample has no array for input 'bias'; it holds 'x', 'bais'. Did you mean 'bais'?"
        in message
    )


def test_inputs_with_different_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, x=values(3), bias=np.zeros((2, 5), np.float32))

    message = quantize(tmp_path, path, model=with_two_inputs())

    assert (
        message
        == f"qdq: {path}: its arrays hold different numbers of samples: {{'x': 3, 'bias': 2}}. Axis 0 counts samples. Make them equal.\n"
    )


@pytest.mark.parametrize("kind", ["npz", "folder", "noise"])
def test_batch_cannot_change_a_batch_that_the_model_fixes(tmp_path: Path, kind: str) -> None:
    data = {
        "npz": npz(tmp_path, x=values(4)),
        "folder": samples(tmp_path / "samples"),
        "noise": "noise",
    }[kind]

    message = quantize(tmp_path, data, "--batch", 2, model=with_batch(1))

    assert (
        message
        == "qdq: model.onnx: the model's batch is fixed at 1, --batch 2 cannot change it. Remove --batch.\n"
    )


def test_batch_cannot_change_the_one_input_of_several_that_is_fixed(tmp_path: Path) -> None:
    model = with_two_inputs()
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1
    path = npz(tmp_path, x=values(4), bias=np.zeros((4, 5), np.float32))

    message = quantize(tmp_path, path, "--batch", 2, model=model)

    assert (
        message
        == f"qdq: {path}: input 'bias': the model's batch is fixed at 1, --batch 2 cannot change it. Remove --batch.\n"
    )


@pytest.mark.parametrize("batch", ["1", "2"])
def test_batch_may_repeat_what_the_model_fixes(tmp_path: Path, batch: str) -> None:
    model = save(with_batch(int(batch)), tmp_path / "model.onnx")

    assert (
        run(
            "quantize",
            model,
            "-o",
            tmp_path / "out.onnx",
            "--data",
            npz(tmp_path, x=values(4)),
            "--batch",
            batch,
        )[0]
        == 0
    )


def test_samples_that_do_not_fill_the_last_batch_of_a_fixed_size_are_refused(
    tmp_path: Path,
) -> None:
    message = quantize(tmp_path, npz(tmp_path, x=values(3)), model=with_batch(2))

    assert "data.npz: input 'x' has 3 entries, which batches of 2 do not divide. Remove " in message


@pytest.mark.parametrize("batch", ["0", "-1", "two", "1.5"])
def test_batch_must_be_a_number_from_one(tmp_path: Path, batch: str) -> None:
    assert "--batch" in quantize(tmp_path, "noise", "--batch", batch)


LOOP = "import numpy as np\ndef load_data():\n    yield "


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("", ": the script has no function load_data(). Define it, or pass"),
        ("load_data = 3\n", ": the script has no function load_data()"),
        ("def load_data(:\n", ": the script failed: SyntaxError: "),
        (
            "import no_such_module_anywhere\n",
            ": the script failed: ModuleNotFoundError: No module named 'no_such_module_anywhere'. Fix the script.",
        ),
        ("raise SystemExit(3)\n", ": the script failed: SystemExit: 3. Fix the script."),
        (
            "def load_data():\n    raise RuntimeError('the disk\\nis gone')\n",
            ": the script failed: RuntimeError: the disk. Fix the script.",
        ),
        (
            "def load_data():\n    raise KeyError('load_data')\n",
            ": the script failed: KeyError: 'load_data'. Fix the script.",
        ),
        (
            "def load_data():\n    import sys\n    sys.exit()\n",
            ": the script failed: SystemExit: SystemExit. Fix the script.",
        ),
        (
            "def load_data(count):\n    yield {}\n",
            ": the script failed: TypeError: load_data() missing 1 required positional argument",
        ),
        (
            "def load_data():\n    return None\n",
            ": the script failed: TypeError: 'NoneType' object is not iterable",
        ),
        ("def load_data():\n    return []\n", ": the data holds no samples"),
        (
            f"{LOOP}3\n",
            " sample 0: the sample is of type int. Each sample must map input names to arrays",
        ),
        (
            f"{LOOP}np.zeros((1, 4, 8, 8), np.float32)\n",
            " sample 0: the sample is of type ndarray. Each sample must map input names to arrays",
        ),
        (
            "def load_data():\n    return {'x': 1}\n",
            " sample 0: the sample is of type str. Each sample must map input names to arrays",
        ),
        (f"{LOOP}{{1: 2}}\n", " sample 0: the sample has no array for input 'x'; it holds '1'"),
        (f"{LOOP}{{}}\n", " sample 0: the sample has no array for input 'x'; it holds nothing"),
        (f"{LOOP}{{'x': 'text'}}\n", " sample 0: input 'x' holds <U4, the model needs float32"),
        (f"{LOOP}{{'x': [[1], [2, 3]]}}\n", " sample 0: input 'x' cannot be read"),
        (
            f"{LOOP}{{'x': np.ones((1, 4, 8, 8), np.float32)}}\n    yield {{'x': np.ones((1, 4, 8, 9), np.float32)}}\n",
            " sample 1: input 'x' has shape [1, 4, 8, 9]",
        ),
    ],
)
def test_a_data_loader_script_that_fails_is_named_with_what_it_raised(
    tmp_path: Path, script: str, says: str
) -> None:
    path = tmp_path / "loader.py"
    path.write_text(script)

    assert f"loader.py{says}" in quantize(tmp_path, path)


def test_a_function_of_a_script_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "loader.py"
    path.write_text(
        LOOP.replace("load_data", "batches") + "{'x': np.ones((1, 4, 8, 8), np.float32)}\n"
    )
    model = save(tiny_model(), tmp_path / "model.onnx")

    assert (
        f"qdq: {path}: the script has no function load_data(). Define it, or pass {path}:FUNCTION"
        in quantize(tmp_path, path)
    )
    assert run("quantize", model, "-o", tmp_path / "out.onnx", "--data", f"{path}:batches")[0] == 0


def test_a_script_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "qdq_beside.py").write_text(
        "import numpy as np\nx = np.ones((1, 4, 8, 8), np.float32)\n"
    )
    path = tmp_path / "loader.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom qdq_beside import x\n\n@dataclass\nclass A:\n    a: 'int' = 1\n\ndef load_data():\n    yield {'x': x}\n"
    )

    assert (
        run(
            "quantize",
            save(tiny_model(), tmp_path / "model.onnx"),
            "-o",
            tmp_path / "out.onnx",
            "--data",
            path,
        )[0]
        == 0
    )


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_script_that_is_not_there_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "loader.py"
    if kind == "folder":
        path.mkdir()

    assert (
        f"qdq: {path}: {'there is no such data-loader script' if kind == 'missing' else 'the folder holds no .npz files'}"
        in quantize(tmp_path, path)
    )


def test_noise_works_and_every_report_says_that_it_was_noise(tmp_path: Path) -> None:
    model, report = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "report.json"

    code, out, err = run(
        "quantize", model, "-o", tmp_path / "out.onnx", "--data", "noise", "--report", report
    )

    assert (code, err) == (0, "")
    assert "calibrated on noise: the scales mean nothing for real inputs" in out
    assert json.loads(report.read_text())["scales"]["data"] == "noise"
    assert any(
        p.key == "qdq.data" and p.value == "noise (8 samples)"
        for p in onnx.load(tmp_path / "out.onnx").metadata_props
    )


@pytest.mark.parametrize("method", ["max", "mse", "percentile"])
@pytest.mark.parametrize(("operator", "data"), [("Log", "samples"), ("Sqrt", "noise")])
def test_nan_that_arises_inside_the_model_is_named_with_its_tensor(
    tmp_path: Path, operator: str, data: str, method: str
) -> None:
    model = tiny_model()
    model.graph.node[1].op_type = operator
    source = samples(tmp_path / "samples") if data == "samples" else data

    message = quantize(tmp_path, source, "--method", method, model=model)

    where = tmp_path / "samples" / "0.npz" if data == "samples" else "noise sample 0"
    assert (
        message
        == f"qdq: {where}: tensor 'f' becomes NaN or Inf. Fix the data or keep the tensor's readers in float.\n"
    )


def test_nan_inside_the_model_is_accepted_where_its_reader_stays_in_float(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[1].op_type = "Log"
    path = save(model, tmp_path / "model.onnx")

    assert (
        run(
            "quantize",
            path,
            "-o",
            tmp_path / "out.onnx",
            "--data",
            "noise",
            "--leave-float",
            "gemm",
        )[0]
        == 0
    )


def test_a_sample_that_onnx_runtime_refuses_gives_one_line_in_all(tmp_path: Path) -> None:
    model = tiny_model()
    model.graph.node[2].op_type = "Reshape"
    model.graph.node[2].input.append("wrong")
    model.graph.initializer.append(helper.make_tensor("wrong", TensorProto.INT64, [2], [1, 216]))

    folder = tmp_path / "samples"
    folder.mkdir()
    np.savez(folder / "0.npz", x=values(2))

    assert "qdq: model.onnx: ONNX Runtime failed on a sample: " in quantize(
        tmp_path, folder, model=model
    )


def npy(path: Path, header: str, content: bytes = b"") -> Path:
    """Write a .npy file with any header."""
    padded = header.encode().ljust(1024, b" ") + b"\n"
    size = struct.pack("<H", len(padded))
    path.write_bytes(b"\x93NUMPY\x01\x00" + size + padded + content)
    return path


HEADERS = {
    "open bracket": "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4, 8, 8), 'x': (",
    "negative size": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4, 8, 8), }",
    "huge size": "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 8), }",
    "text for a size": "{'descr': '<f4', 'fortran_order': False, 'shape': ('x',), }",
    "no type": "{'descr': '<q9', 'fortran_order': False, 'shape': (4,), }",
    "no dict": "5",
    "nesting": "(" * 900,
    "nothing": "",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_numpy_cannot_read_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    path = npy(tmp_path / "data.npy", HEADERS[name], bytes(4096))
    message = quantize(tmp_path, path)
    assert message.startswith(f"qdq: {path}: numpy cannot read this .npy file: ")


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_inside_of_an_archive_is_named_too(tmp_path: Path, name: str) -> None:
    inner = npy(tmp_path / "x.npy", HEADERS[name], bytes(4096))
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "x.npy")
    inner.unlink()
    assert f"qdq: {path}: " in quantize(tmp_path, path)


def test_an_array_that_unpacks_to_more_than_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = npz(tmp_path, x=values(1))
    monkeypatch.setattr("qdq.data.sample_files.exceeds_memory", lambda size: size > 1000)
    message = quantize(tmp_path, path)
    assert f"{path}: x.npy unpacks to " in message
    assert "more than the memory of this machine" in message


@pytest.mark.parametrize("size", [(1 << 63) - 1, 1 << 40])
def test_noise_for_an_input_larger_than_the_memory_is_refused(tmp_path: Path, size: int) -> None:
    model = with_batch(size)
    assert "more than the memory of this machine" in quantize(tmp_path, "noise", model=model)
    feeds = open_feeds(GraphIndex(load(model)), "noise")
    with pytest.raises(DataError, match=r"noise: input 'x' .* more than the memory"):
        feeds.first()
