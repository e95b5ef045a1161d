"""Every form of data gives the same samples; some of them are chosen as documented; what cannot be fed is refused."""

from __future__ import annotations

import re
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from polygraphy.json import save_json

import qdq
from qdq.cli import progress
from qdq.data.feeds import DataLike, Feeds, open_feeds
from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from qdq.ranges.tensor_ranges import Ranges, size_extent
from tests.support.cli_runner import SHAPE, refused, run, save, tiny_model
from tests.support.sample_values import values, with_two_inputs

COUNT = 5
BIAS = np.arange(COUNT * 5, dtype=np.float32).reshape(COUNT, 5)


def feeds_of(
    data: DataLike, model: onnx.ModelProto | None = None, batch: int | None = None
) -> Feeds:
    """Return the samples of some data for a model, by default the tiny one."""
    return open_feeds(GraphIndex(qdq.load(model or tiny_model())), data, batch)


def firsts(feeds: Feeds) -> list[int]:
    """Return which of `numbered` each sample is."""
    return [int(feed["x"].flat[0]) for feed in feeds]


def numbered(count: int) -> list[dict[str, np.ndarray]]:
    """Return samples for the tiny model that hold their own number."""
    return [{"x": np.full((1, *SHAPE), i, np.float32)} for i in range(count)]


def saved(folder: Path, form: str) -> Path | str:
    """Write the samples `values(COUNT)` in a form and return what `--data` is to be."""
    x = values(COUNT)
    feeds = [{"x": x[i : i + 1]} for i in range(COUNT)]
    if form == "one.npy":
        np.save(folder / form, x)
    elif form == "one.npz":
        np.savez(folder / form, x=x)
    elif form == "list.json":
        save_json(feeds, str(folder / form))
    elif form == "loader.py":
        np.save(folder / "of_loader", x)
        (folder / form).write_text(
            f"import numpy as np\ndef load_data():\n    for a in np.load({str(folder / 'of_loader.npy')!r}):\n        yield {{'x': a[None]}}\n"
        )
    else:
        (folder / form).mkdir(parents=True)
        for i, feed in enumerate(feeds):
            if form == "json":
                save_json(feed, str(folder / form / f"{i:010d}.json"))
            elif form == "npz":
                np.savez(folder / form / f"{i}.npz", **feed)
            else:
                np.save(folder / form / f"{i}.npy", feed["x"])
    return folder / form.partition("/")[0]


FORMS = ["one.npy", "one.npz", "list.json", "json", "npz", "npy", "npy/x", "loader.py"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples_again_and_again(tmp_path: Path, form: str) -> None:
    feeds = feeds_of(saved(tmp_path, form))

    for _ in range(2):
        got = [feed["x"] for feed in feeds]
        assert np.array_equal(np.concatenate(got), values(COUNT))
        assert {x.shape for x in got} == {(1, *SHAPE)}
    assert feeds.count == (None if form in ("list.json", "json", "loader.py") else COUNT)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_calibrates_to_the_same_scales(tmp_path: Path, form: str) -> None:
    model = tiny_model()
    scales = qdq.calibrate(model, qdq.plan(model), saved(tmp_path, form), method="max")

    expected = qdq.calibrate(
        model, qdq.plan(model), [{"x": x[None]} for x in values(COUNT)], method="max"
    )
    assert scales.by_pair == expected.by_pair
    assert scales.samples == COUNT


@pytest.mark.parametrize("form", ["x.npy", "x/0.npy"])
def test_two_inputs_from_npy(tmp_path: Path, form: str) -> None:
    for name, array in (("x", values(COUNT)), ("bias", BIAS)):
        if form == "x.npy":
            np.save(tmp_path / name, array)
            continue
        (tmp_path / name).mkdir()
        for i in range(COUNT):
            np.save(tmp_path / name / f"{i}.npy", array[i : i + 1])

    got = list(feeds_of(tmp_path, with_two_inputs()))

    assert np.array_equal(np.concatenate([feed["x"] for feed in got]), values(COUNT))
    assert np.array_equal(np.concatenate([feed["bias"] for feed in got]), BIAS)


def test_batches_are_cut_from_one_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(COUNT))

    feeds = feeds_of(tmp_path / "a.npy", batch=2)

    assert [len(feed["x"]) for feed in feeds] == [2, 2, 1]
    assert feeds.sizes == {1, 2}


def test_the_batch_that_calibrated_is_written_beside_the_shapes_that_engines_are_built_for(
    tmp_path: Path,
) -> None:
    model, out, data = (
        save(tiny_model(), tmp_path / "model.onnx"),
        tmp_path / "out.onnx",
        saved(tmp_path, "one.npy"),
    )
    shapes = "x=1x4x8x8/8x4x8x8/32x4x8x8"

    code, text, _ = run(
        "quantize",
        model,
        "-o",
        out,
        "--data",
        data,
        "--batch",
        2,
        "--shapes",
        shapes,
        "--method",
        "max",
    )

    written = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert (code, written["qdq.batch"], written["qdq.shapes"]) == (0, "1 to 2", shapes)
    assert "max over 3 samples of batch 1 to 2 of one.npy" in text
    assert qdq.calibrate(tiny_model(), qdq.plan(tiny_model()), data, method="max").batch == "1"


def test_no_batch_is_told_where_the_inputs_differ_in_it() -> None:
    feeds = feeds_of([{"x": values(2), "bias": BIAS[:1]}], with_two_inputs())

    assert len(list(feeds)) == 1
    assert Ranges("", "", 1, (), size_extent(feeds.sizes)).batch == ""


def test_samples_of_different_shapes_in_one_run(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 1, 3, 3], np.ones(18, np.float32))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, "h", "w_"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, "h", "w_"])],
        [weight],
    )
    model = save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        tmp_path / "model.onnx",
    )
    (tmp_path / "samples").mkdir()
    for i, shape in enumerate([(1, 1, 4, 6), (3, 1, 9, 5), (1, 1, 2, 2)]):
        np.save(tmp_path / "samples" / f"{i}.npy", np.full(shape, 1 + i, np.float32))

    assert (
        run(
            "quantize",
            model,
            "-o",
            tmp_path / "out.onnx",
            "--data",
            tmp_path / "samples",
            "--method",
            "max",
        )[0]
        == 0
    )

    (scale,) = (
        s
        for s in qdq.calibrate(model, qdq.plan(model), tmp_path / "samples", method="max").by_pair
        if s.tensor == "x"
    )
    assert scale.scales == pytest.approx([3 / 127])


def test_some_samples_are_spread_evenly() -> None:
    feeds = feeds_of(qdq.Subset(numbered(10), samples=5))

    assert (firsts(feeds), feeds.count, feeds.name) == (
        [1, 3, 5, 7, 9],
        5,
        "samples passed to the library, 5 of 10 evenly",
    )
    assert firsts(feeds_of(qdq.Subset(numbered(10), samples=1))) == [5]
    more = feeds_of(qdq.Subset(numbered(3), samples=5))
    assert (firsts(more), more.count, more.name) == ([0, 1, 2], 3, "samples passed to the library")


class Stream:
    """Samples that begin anew, and whose number is not known."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(numbered(10))


def test_a_seed_chooses_the_same_again_and_another_seed_others() -> None:
    chosen = firsts(feeds_of(qdq.Subset(numbered(10), samples=5, seed=1)))

    assert len(set(chosen)) == 5
    assert chosen == sorted(chosen)
    assert firsts(feeds_of(qdq.Subset(numbered(10), samples=5, seed=1))) == chosen
    assert firsts(feeds_of(qdq.Subset(Stream(), samples=5, seed=1))) == chosen
    assert any(
        firsts(feeds_of(qdq.Subset(numbered(10), samples=5, seed=seed))) != chosen
        for seed in range(2, 5)
    )


def test_of_a_stream_the_first_samples_are_taken() -> None:
    feeds = feeds_of(qdq.Subset(Stream(), samples=3))

    assert (firsts(feeds), firsts(feeds)) == ([0, 1, 2], [0, 1, 2])
    assert firsts(feeds_of(qdq.Subset(Stream(), samples=30))) == list(range(10))


def test_noise_by_number_and_seed() -> None:
    plain, other = (list(feeds_of(qdq.Subset("noise", samples=3, seed=seed))) for seed in (None, 1))

    assert len(plain) == 3
    assert np.array_equal(plain[0]["x"], feeds_of("noise").first()["x"])
    assert not np.array_equal(plain[0]["x"], other[0]["x"])


def test_a_generator_is_gone_through_once_with_a_few_samples_in_memory() -> None:
    model, made, held = tiny_model(), [], []

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for i in range(40):
            sample = {"x": np.full((1, *SHAPE), i, np.float32)}
            made.append(weakref.ref(sample["x"]))
            yield sample
            del sample
            held.append(sum(ref() is not None for ref in made))

    scales = qdq.quantize(model, generate(), method="max").scales

    assert scales.by_pair == qdq.quantize(model, numbered(40), method="max").scales.by_pair
    assert scales.samples == 40
    assert max(held) < 8 + 5  # eight samples are kept to measure the result with


def test_a_generator_may_be_looked_into_and_is_refused_a_second_time() -> None:
    feeds = feeds_of(iter(numbered(3)))

    assert feeds.first()["x"].flat[0] == 0
    assert feeds.first()["x"].flat[0] == 0
    assert firsts(feeds) == [0, 1, 2]
    with pytest.raises(
        DataError, match=r"can be iterated only once, and are needed again\. Pass a list"
    ):
        firsts(feeds)
    with pytest.raises(
        DataError, match=r"holds no samples\. A generator is used up after one run: pass a list"
    ):
        firsts(feeds_of(iter([])))
    with pytest.raises(
        DataError,
        match="can be iterated only once, and a seed needs their number",
    ):
        feeds_of(qdq.Subset(iter(numbered(3)), 2, 1))


def test_a_dataset_with_length_and_items_is_enough() -> None:
    class Dataset:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> dict[str, np.ndarray]:
            return numbered(3)[min(i, 2)]  # it never raises IndexError

    assert firsts(feeds_of(Dataset())) == [0, 1, 2]  # type: ignore[arg-type]
    with pytest.raises(
        DataError,
        match=r"are of type int\. Pass a path, an array, a dict of arrays, or an iterable",
    ):
        feeds_of(3)  # type: ignore[arg-type]


def quantize(
    folder: Path, data: object, *more: object, model: onnx.ModelProto | None = None
) -> str:
    """Return the refusal of `qdq quantize` for a tiny model with some data."""
    path = save(model or tiny_model(), folder / "model.onnx")
    return refused(folder, "quantize", path, "-o", folder / "out.onnx", "--data", data, *more)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "this is no .npy file. Write it with numpy.save(path, array)"),
        (b"text", "this is no .npy file"),
        (b"\x93NUMPY\x01\x00", "numpy cannot read this .npy file: "),
        ("half", "numpy cannot read this .npy file: "),
        ("objects", "numpy cannot read this .npy file: "),
    ],
)
@pytest.mark.parametrize("in_folder", [True, False], ids=["in-a-folder", "alone"])
def test_a_damaged_npy_is_named(
    tmp_path: Path, content: bytes | str, says: str, in_folder: bool
) -> None:
    path = saved(tmp_path, "npy") / "1.npy"
    if content == "objects":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(path.read_bytes()[:300] if content == "half" else content)

    assert f"qdq: {path}: {says}" in quantize(tmp_path, path.parent if in_folder else path)


@pytest.mark.parametrize("form", ["one.npy", "one.npz"])
@pytest.mark.filterwarnings("error")
def test_headers_that_python_2_wrote_are_read(tmp_path: Path, form: str) -> None:
    path = Path(saved(tmp_path, form))
    sizes = (COUNT, *SHAPE)
    header = f"({', '.join(map(str, sizes))})"
    of_python_2 = header.replace(str(COUNT), f"{COUNT}L", 1)

    def rewrite(content: bytes) -> bytes:
        return content.replace(f"{header}, }} ".encode(), f"{of_python_2}, }}".encode())

    if form == "one.npz":
        with zipfile.ZipFile(path) as archive:
            content = rewrite(archive.read("x.npy"))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content)
    else:
        content = rewrite(path.read_bytes())
        path.write_bytes(content)

    assert of_python_2.encode() in content
    read = [feed["x"] for feed in feeds_of(str(path))]
    assert np.array_equal(np.concatenate(read), values(COUNT))


def test_an_array_without_a_name_is_refused_for_two_inputs(tmp_path: Path) -> None:
    for data in (saved(tmp_path, "one.npy"), saved(tmp_path, "npy")):
        message = quantize(tmp_path, data, model=with_two_inputs())
        assert (
            f"qdq: {data}: an array without a name cannot feed the 2 inputs 'x', 'bias'. Pass a folder with one INPUT.npy for each"
            in message
        )


def test_a_file_that_one_input_lacks_is_named(tmp_path: Path) -> None:
    saved(tmp_path, "npy/x")
    (tmp_path / "npy" / "bias").mkdir()
    np.save(tmp_path / "npy" / "bias" / "0.npy", BIAS[:1])

    message = quantize(tmp_path, tmp_path / "npy", model=with_two_inputs())

    assert (
        message
        == f"qdq: {tmp_path / 'npy'}: input 'bias' has no file {tmp_path / 'npy' / 'bias' / '1.npy'}. Files of one name make a sample.\n"
    )


def test_npz_and_npy_side_by_side_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "npz")
    np.save(folder / "labels.npy", np.zeros(3))

    assert (
        quantize(tmp_path, folder)
        == f"qdq: {folder}: the folder holds .npz and .npy files. Keep those that are samples.\n"
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "Polygraphy cannot read this JSON of inputs: "),
        ("{", "Polygraphy cannot read this JSON of inputs: "),
        (
            '{"x": {"polygraphy_class": "Unheard"}}',
            "Polygraphy cannot read this JSON of inputs: Could not decode serialized type: Unheard",
        ),
        (
            '{"x": {"polygraphy_class": "ndarray", "array": "zzz"}}',
            "Polygraphy cannot read this JSON of inputs: ",
        ),
        (
            '{"x": {"polygraphy_class": "ndarray"}}',
            "Polygraphy cannot read this JSON of inputs: ",
        ),
        ("[1]", "sample 0: the sample is of type int. Each sample must map input names to arrays"),
        ("[]", "the data holds no samples"),
        ('{"y": [1]}', "sample 0: the sample has no array for input 'x'; it holds 'y'"),
    ],
)
def test_json_that_holds_no_inputs_is_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "inputs.json"
    path.write_text(content)

    assert re.match(rf"qdq: .*inputs\.json:? {re.escape(says)}", quantize(tmp_path, path))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--samples", 0], "--samples"),
        (["--samples", 2, "--seed", -1], "--seed"),
        (["--seed", 1], "--seed picks samples at random. Pass --samples with their number."),
    ],
)
def test_samples_and_seed_are_checked(tmp_path: Path, more: list[object], says: str) -> None:
    assert says in quantize(tmp_path, saved(tmp_path, "one.npz"), *more)


def test_samples_without_data_are_refused(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "model.onnx")

    assert "--samples and --seed pick samples. Pass --data or --images." in refused(
        tmp_path, "quantize", model, "-o", tmp_path / "o", "--samples", 1
    )


def test_an_output_may_not_replace_the_data(tmp_path: Path) -> None:
    path = saved(tmp_path, "npy") / "1.npy"
    model = save(tiny_model(), tmp_path / "model.onnx")

    assert f"qdq: {path}: " in refused(
        tmp_path, "quantize", model, "-o", path, "--data", path.parent, "--force"
    )


def test_progress_on_a_terminal_shows_samples_time_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 30.0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))

    with progress.progress("calibrating", 64) as advance:
        advance(16)

    shown, cleared = capsys.readouterr().err.split("\r")[1:]
    assert re.fullmatch(
        r"calibrating: 16 of 64 samples, 1 min 30 s left(, [1-9]\d* MB at most)?\x1b\[K", shown
    )
    assert cleared == "\x1b[K"


# --- inputs of rank 0 --------------------------------------------------------------------------------------------------


def with_index() -> onnx.ModelProto:
    """Return a model whose input `i` is a scalar: it takes one row, so that the rank counts."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4,8] x, int64 i) => (float[8] y) <float[8,8] w> {
            m = MatMul(x, w)
            y = Gather<axis=0>(m, i)
        }
        """
    )
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    del model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_a_scalar_keeps_its_rank(tmp_path: Path, form: str) -> None:
    x = np.random.default_rng(1).normal(size=(COUNT, 4, 8)).astype(np.float32)
    index = np.arange(COUNT, dtype=np.int64) % 4
    data = tmp_path / "d"
    if form == "npz":
        data = tmp_path / "d.npz"
        np.savez(data, x=x.reshape(COUNT * 4, 8), i=index)
    else:
        data.mkdir()
        for number in range(COUNT):
            np.savez(data / f"{number}.npz", x=x[number], i=index[number])
    model = save(with_index(), tmp_path / "m.onnx")

    assert [feed["i"].shape for feed in feeds_of(str(data), with_index())] == [()] * COUNT
    out = tmp_path / "q.onnx"
    assert run("quantize", model, "-o", out, "--data", data)[0] == 0
    code, text, errors = run("validate", model, out, "--data", data)
    assert (code, errors) == (0, "")
    assert f"{COUNT} samples of {data.name}" in text
    assert run("sensitivity", model, "--data", data)[0] == 0
