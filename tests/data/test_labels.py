"""Arrays of samples that are no inputs, and labels of pictures: what reaches a metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from polygraphy.json import save_json

import qdq
from qdq.data.feeds import DataLike, open_feeds, with_absolute_paths
from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from tests.support.cli_runner import SHAPE, tiny_model
from tests.support.pictures import picture_model, scene
from tests.support.sample_values import values, with_two_inputs

COUNT = 5
LABELS = np.arange(COUNT)


def read(
    data: DataLike, model: onnx.ModelProto | None = None, batch: int | None = None
) -> list[dict[str, np.ndarray]]:
    """Return the arrays of each sample for a model, by default the tiny one."""
    feeds = open_feeds(GraphIndex(qdq.load(model or tiny_model())), data, batch)
    return [sample.read_arrays() for sample in feeds.samples()]


def labels(samples: list[dict[str, np.ndarray]]) -> list[Any]:
    return [sample["label"].tolist() for sample in samples]


def feeds() -> list[dict[str, np.ndarray]]:
    """Return labelled samples for the tiny model."""
    return [{"x": values(COUNT)[i : i + 1], "label": LABELS[i : i + 1]} for i in range(COUNT)]


def write_npz_folder(folder: Path) -> Path:
    for i, feed in enumerate(feeds()):
        np.savez(folder / f"{i}.npz", **feed)
    return folder


def write_npz(folder: Path) -> Path:
    np.savez(folder / "one.npz", x=values(COUNT), label=LABELS)
    return folder / "one.npz"


def write_npy_arrays(folder: Path) -> Path:
    np.save(folder / "x.npy", values(COUNT))
    np.save(folder / "label.npy", LABELS)
    return folder


def write_npy_folders(folder: Path) -> Path:
    for name in ("x", "label"):
        (folder / name).mkdir()
        for i, feed in enumerate(feeds()):
            np.save(folder / name / f"{i}.npy", feed[name])
    return folder


def write_json(folder: Path) -> Path:
    save_json(feeds(), str(folder / "list.json"))
    return folder / "list.json"


def write_loader(folder: Path) -> Path:
    np.savez(folder / "of_loader", x=values(COUNT))
    (folder / "loader.py").write_text(
        f"import numpy as np\nX = np.load({str(folder / 'of_loader.npz')!r})['x']\n"
        "def load_data():\n    for i, x in enumerate(X):\n        yield {'x': x[None], 'label': [i]}\n"
    )
    return folder / "loader.py"


def make_list(_: Path) -> DataLike:
    return feeds()


def make_iterator(_: Path) -> DataLike:
    return iter(feeds())


def make_mapping(_: Path) -> DataLike:
    return {"label": LABELS, "x": values(COUNT)}


FORMS: list[Callable[[Path], DataLike]] = [
    write_npz_folder,
    write_npz,
    write_npy_arrays,
    write_npy_folders,
    write_json,
    write_loader,
    make_list,
    make_iterator,
    make_mapping,
]


@pytest.mark.parametrize("make", FORMS, ids=lambda make: make.__name__)
def test_every_form_of_data_may_hold_labels(
    tmp_path: Path, make: Callable[[Path], DataLike]
) -> None:
    data = make(tmp_path)
    samples = read(data)

    assert labels(samples) == [[i] for i in range(COUNT)]
    assert np.array_equal(np.concatenate([sample["x"] for sample in samples]), values(COUNT))


@pytest.mark.parametrize("make", FORMS, ids=lambda make: make.__name__)
def test_labels_change_no_scale(tmp_path: Path, make: Callable[[Path], DataLike]) -> None:
    model = tiny_model()
    plan = qdq.plan(model)

    scales = qdq.calibrate(model, plan, make(tmp_path), method="max")

    plain = [{"x": feed["x"]} for feed in feeds()]
    assert scales.by_pair == qdq.calibrate(model, plan, plain, method="max").by_pair
    assert scales.samples == COUNT


def test_labels_outlast_a_look_at_the_first_sample_of_an_iterator() -> None:
    feeds_of_iterator = open_feeds(GraphIndex(qdq.load(tiny_model())), iter(feeds()))

    assert list(feeds_of_iterator.first()) == ["x"]
    assert [sample.read_arrays()["label"].item() for sample in feeds_of_iterator.samples()] == [
        *range(COUNT)
    ]


def test_labels_are_cut_into_the_same_batches_and_parts(tmp_path: Path) -> None:
    path = write_npz(tmp_path)

    assert labels(read(str(path), batch=2)) == [[0, 1], [2, 3], [4]]
    assert labels(read(qdq.Subset(path, samples=2))) == [[1], [3]]


def test_arrays_that_axis_0_counts_samples_of_and_arrays_of_all_samples(tmp_path: Path) -> None:
    """An array of one entry per sample of several rows, one of another length, and a number."""
    path = tmp_path / "one.npz"
    np.savez(path, x=values(6).reshape(3, 2, *SHAPE), label=[7, 8, 9], names=["a", "b"], scale=0.5)
    model = tiny_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    samples = read(str(path), model)

    assert labels(samples) == [7, 8, 9]
    assert [sample["names"].tolist() for sample in samples] == [["a", "b"]] * 3
    assert [sample["scale"].item() for sample in samples] == [0.5] * 3
    np.savez(path, x=values(6), label=[7, 8, 9])
    assert labels(read(str(path), model)) == [7, 8, 9]


def test_an_array_that_cannot_be_read_stops_only_those_who_read_it(tmp_path: Path) -> None:
    path = tmp_path / "one.npz"
    np.savez(path, x=values(1), label=np.array([{}], dtype=object))
    feeds_of_file = open_feeds(GraphIndex(qdq.load(tiny_model())), str(path))

    assert list(feeds_of_file.first()) == ["x"]
    with pytest.raises(DataError, match=r"one\.npz: array 'label' cannot be read: Object arrays"):
        read(str(path))


def test_a_folder_that_lacks_a_file_is_no_array_of_the_samples(tmp_path: Path) -> None:
    write_npy_folders(tmp_path)
    (tmp_path / "label" / "3.npy").unlink()

    assert [list(sample) for sample in read(tmp_path)] == [["x"]] * COUNT


def test_an_input_wins_over_a_label_of_its_name() -> None:
    sample = {"x": values(1), "bias": np.ones((1, 5), np.float32), "label": 3}

    (arrays,) = read([sample], with_two_inputs())

    assert {name: array.shape for name, array in arrays.items()} == {
        "label": (),
        "x": (1, *SHAPE),
        "bias": (1, 5),
    }


# Pictures


def album(folder: Path, *names: str) -> Path:
    """Write small pictures under some names and return the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(8, 8)).save(folder / name)
    return folder


def read_pictures(
    folder: Path, labels: str | Path | None = None, batch: int | None = None
) -> list[dict[str, np.ndarray]]:
    (folder.parent / "how.yaml").write_text("fit: stretch\n")
    images = qdq.Images(folder, folder.parent / "how.yaml", labels)
    return read(images, picture_model("n", 3, 8, 8), batch)


@pytest.fixture
def by_class(tmp_path: Path) -> Path:
    """Return a folder of three classes with pictures, and one without."""
    folder = album(tmp_path / "val", "dog/1.png", "cat/2.png", "dog/deep/0.png", "zebra/0.png")
    (folder / "eel").mkdir()
    return folder


def test_a_folder_per_class_gives_labels_in_the_order_of_names(by_class: Path) -> None:
    samples = read_pictures(by_class)

    assert labels(samples) == [[0], [1], [1], [3]]
    assert samples[0]["class_names"].tolist() == ["cat", "dog", "eel", "zebra"]
    assert labels(read_pictures(by_class, batch=3)) == [[0, 1, 1], [3]]


def test_the_word_off_and_other_folders_give_no_labels(by_class: Path, tmp_path: Path) -> None:
    assert "label" not in read_pictures(by_class, "off")[0]
    assert "label" not in read_pictures(album(tmp_path / "flat", "0.png", "1.png"))[0]
    assert "label" not in read_pictures(album(tmp_path / "single", "photos/0.png"))[0]
    assert "label" not in read_pictures(album(by_class, "0.png"))[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "file,class\ncat/2.png,7\n1.png,5\ndeep/0.png,9\ndog/deep/0.png,0\nzebra/0.png,2\n"),
        ("l.csv", '"cat/2.png", 7\n1.png,5\n\n./dog/deep/0.png,0\nzebra/0,3\nzebra/0.png,2'),
        ("l.txt", "\ufeffcat/2.png 7\n1 5\ndog\\deep/0.png\t0\n0.png  2\n"),
        ("l.json", '{"2.png": 7, "1": "5", "dog/deep/0.png": 0, "0": 2}'),
    ],
)  # fmt: skip
def test_a_file_of_labels_is_found_by_path_name_or_stem(
    by_class: Path, name: str, content: str
) -> None:
    file = by_class.parent / name
    file.write_text(content, encoding="utf-8")

    samples = read_pictures(by_class, file)

    assert labels(samples) == [[7], [5], [0], [2]]
    assert "class_names" not in samples[0]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("l.csv", None, "the labels cannot be read: No such file"),
        ("l.yaml", "", "labels of this kind are unknown. Write lines 'PICTURE,CLASS' into a .csv"),
        ("l.csv", "", "the file holds no labels"),
        ("l.csv", "a.png,cat\nb.png,dog\n", ":2: the class of 'b.png' is 'dog'"),
        ("l.csv", "a.png,1,2\n", "the labels cannot be read: line 1 has 3 columns"),
        ("l.csv", "a.png,1\na.png,2\n", ":2: picture 'a.png' has class 2 here and 1 above"),
        ("l.csv", "a.png,1\nb.png,-1\n", ":2: the class of 'b.png' is '-1'"),
        ("l.txt", "a.png\n", "the labels cannot be read: line 1 holds one word"),
        ("l.txt", "\udcff 1\n", "the labels cannot be read: 'utf-8' codec"),
        ("l.json", "[1]", "the labels cannot be read: the file holds no object"),
        ("l.json", '{"a": 1.5}', "the class of 'a' is 1.5"),
        ("l.json", '{"a": true}', "the class of 'a' is True"),
        ("l.json", "{", "the labels cannot be read: Input data was truncated"),
        ("l.csv", "2.png,1\n", "no line holds the class of 'dog/1.png'. Add one."),
    ],
)
def test_a_bad_file_of_labels_is_named(
    by_class: Path, name: str, content: str | None, expected: str
) -> None:
    file = by_class.parent / name
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(DataError) as error:
        read_pictures(by_class, file)

    assert str(error.value).startswith(f"{file}:")
    assert expected in str(error.value)


def test_workers_get_the_file_of_labels_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with_file = with_absolute_paths(qdq.Images("a", "imagenet", "l.csv"))
    switched_off = with_absolute_paths(qdq.Images("a", "imagenet", "off"))

    assert isinstance(with_file, qdq.Images)
    assert isinstance(switched_off, qdq.Images)
    assert with_file.labels == tmp_path / "l.csv"
    assert switched_off.labels == "off"


def test_a_generator_keeps_its_labels(tmp_path: Path) -> None:
    def generate() -> Iterator[dict[str, np.ndarray]]:
        yield from feeds()

    assert labels(read(generate())) == [[i] for i in range(COUNT)]
