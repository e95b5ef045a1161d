"""Folders of pictures: what reaches the model, against computations in numpy that share nothing with the code; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

import qdq
from qdq.data.feeds import open_feeds
from qdq.data.preprocessing import preset_names, read_preprocess
from qdq.graph.index import GraphIndex
from tests.support.cli_runner import refused, run, save
from tests.support.pictures import album, picture_model, scene

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
#: A level of eight bits: Pillow rounds to levels after each axis, the computations here never.
LEVEL = 1 / 255


def read(model: onnx.ModelProto, folder: Path, preprocess: object, **more: int) -> list[np.ndarray]:
    """Return what the model is fed with."""
    return [
        feed["images"]
        for feed in open_feeds(
            GraphIndex(qdq.load(model)), qdq.Images(folder, str(preprocess)), **more
        )
    ]


def weights_of(old: int, new: int, smooth: bool) -> np.ndarray:
    """Return the [new, old] matrix of linear interpolation, half-pixel centres; widened by the step where it smooths."""
    step = old / new
    reach = max(step, 1.0) if smooth else 1.0
    centres = np.clip(
        (np.arange(new) + 0.5) * step - 0.5, None if smooth else 0, None if smooth else old - 1
    )
    weights = np.maximum(1 - np.abs(np.arange(old)[None, :] - centres[:, None]) / reach, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def resized(pixels: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    """Return a picture of another size in float64, not rounded."""
    rows, columns = (
        weights_of(pixels.shape[0], height, smooth),
        weights_of(pixels.shape[1], width, smooth),
    )
    return np.moveaxis(rows @ (np.moveaxis(pixels, 2, 0).astype(np.float64) @ columns.T), 0, 2)


@pytest.mark.parametrize("size", [(300, 400), (500, 281), (256, 256), (64, 80)])
def test_imagenet_is_what_torchvisions_models_are_evaluated_with(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """Resize(256), CenterCrop(224), ToTensor, Normalize: https://pytorch.org/vision/stable/models.html."""
    album(tmp_path, size)
    height, width = size
    large = (
        (256, int(256 * width / height)) if height <= width else (int(256 * height / width), 256)
    )
    top, left = (round((side - 224) / 2.0) for side in large)
    cut = resized(scene(*size), *large, smooth=True)[top : top + 224, left : left + 224]
    expected = ((cut / 255 - MEAN) / STD).transpose(2, 0, 1)[None]

    (got,) = read(picture_model("n", 3, 224, 224), tmp_path, "imagenet")

    assert (got.dtype, got.shape) == (np.float32, (1, 3, 224, 224))
    assert np.abs(got - expected).max() <= 1.01 * LEVEL / STD.min()
    assert np.abs(got - expected).mean() < 0.5 * LEVEL / STD.min()


@pytest.mark.parametrize("size", [(480, 640), (720, 405), (100, 100), (333, 1000)])
def test_yolo_is_the_letterbox_of_ultralytics(tmp_path: Path, size: tuple[int, int]) -> None:
    """The whole picture in the middle, grey 114 around it, OpenCV's bilinear: ultralytics/data/augment.py, LetterBox."""
    album(tmp_path, size)
    ratio = min(640 / size[0], 640 / size[1])
    height, width = round(size[0] * ratio), round(size[1] * ratio)
    top, left = round((640 - height) / 2 - 0.1), round((640 - width) / 2 - 0.1)
    expected = np.full((640, 640, 3), 114.0)
    expected[top : top + height, left : left + width] = resized(
        scene(*size), height, width, smooth=False
    )

    (got,) = read(picture_model(1, 3, 640, 640), tmp_path, "yolo")

    assert got.shape == (1, 3, 640, 640)
    assert np.abs(got[0] * 255 - expected.transpose(2, 0, 1)).max() <= 1.01
    outside = np.ones((640, 640), bool)
    outside[top : top + height, left : left + width] = False
    assert np.allclose(got[0][:, outside] * 255, 114, atol=1e-4)


def write(folder: Path, content: str) -> Path:
    """Write a preprocess file and return it."""
    (folder / "how.yaml").write_text(content)
    return folder / "how.yaml"


def test_a_file_gives_channel_order_mean_and_scale(tmp_path: Path) -> None:
    album(tmp_path / "album", (8, 8))
    how = write(tmp_path, "fit: stretch\nchannels: bgr\nmean: [103.939, 116.779, 123.68]\nstd: 2\n")

    (got,) = read(picture_model(1, 8, 8, 3), tmp_path / "album", how)

    expected = (scene(8, 8)[:, :, ::-1] - np.array([103.939, 116.779, 123.68])) / 2
    assert got.shape == (1, 8, 8, 3)
    assert np.allclose(got[0], expected, atol=1e-4)


def test_grey_pictures_and_models_of_one_channel(tmp_path: Path) -> None:
    album(tmp_path / "album", (8, 8))
    Image.fromarray(scene(8, 8)[:, :, 0]).save(tmp_path / "album" / "1.png")
    how = write(tmp_path, "fit: stretch\nchannels: gray\nscale: 1/255\n")

    colour, grey = read(picture_model(1, 1, 8, 8), tmp_path / "album", how)

    assert np.allclose(grey[0, 0] * 255, scene(8, 8)[:, :, 0], atol=1e-3)
    assert np.allclose(
        colour[0, 0] * 255, scene(8, 8) @ [0.299, 0.587, 0.114], atol=1.01
    )  # ITU-R 601


def test_fill_is_in_the_order_of_the_channels(tmp_path: Path) -> None:
    album(tmp_path / "album", (4, 8))
    how = write(tmp_path, "fit: letterbox\nchannels: bgr\nfill: [10, 20, 30]\n")

    (got,) = read(picture_model(1, 3, 8, 8), tmp_path / "album", how)

    assert got[0, :, 0, 0].tolist() == [10, 20, 30]
    assert (got[0, :, 2:6] == scene(4, 8)[:, :, ::-1].transpose(2, 0, 1)).all()


def test_what_the_model_fixes_wins_over_the_files_size_and_the_resize_keeps_its_proportion(
    tmp_path: Path,
) -> None:
    """Inception wants 299; torchvision resizes to 342 first, as 256 is to 224."""
    album(tmp_path, (400, 600))
    large = (342, int(342 * 600 / 400))
    top, left = round((large[0] - 299) / 2.0), round((large[1] - 299) / 2.0)
    cut = resized(scene(400, 600), *large, smooth=True)[top : top + 299, left : left + 299]

    (got,) = read(picture_model("n", 3, 299, 299), tmp_path, "imagenet")

    assert (
        np.abs(got[0] - ((cut / 255 - MEAN) / STD).transpose(2, 0, 1)).max()
        <= 1.01 * LEVEL / STD.min()
    )


def test_a_dynamic_size_is_the_files(tmp_path: Path) -> None:
    album(tmp_path / "album", (30, 40))
    how = write(tmp_path, "like: yolo\nsize: [32, 64]\n")

    assert read(picture_model("n", 3, "h", "w"), tmp_path / "album", "yolo")[0].shape == (
        1,
        3,
        640,
        640,
    )
    assert read(picture_model("n", 3, "h", "w"), tmp_path / "album", how)[0].shape == (1, 3, 32, 64)


def test_a_crop_that_is_not_square_covers_the_input(tmp_path: Path) -> None:
    album(tmp_path / "album", (60, 40))
    how = write(tmp_path, "fit: crop\nscale: 1/255\n")
    large = (60 * 32 // 40, 32)

    (got,) = read(picture_model(1, 3, 16, 32), tmp_path / "album", how)

    top = round((large[0] - 16) / 2.0)
    expected = resized(scene(60, 40), *large, smooth=True)[top : top + 16]
    assert np.abs(got[0] * 255 - expected.transpose(2, 0, 1)).max() <= 1.01


def test_folders_below_are_read_in_order_and_other_files_left(tmp_path: Path) -> None:
    for name, level in (("b/1.JPG", 80), ("a/2.png", 40), ("a/10.png", 10)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (level, level, level)).save(tmp_path / name)
    (tmp_path / "labels.txt").write_text("x")
    (tmp_path / "a" / "._2.png").write_text("what macOS leaves")
    how = write(tmp_path, "fit: stretch\n")

    assert [round(float(x.mean())) for x in read(picture_model(1, 3, 8, 8), tmp_path, how)] == [
        10,
        40,
        80,
    ]


def test_numbers_beyond_float32_are_refused_with_the_picture(tmp_path: Path) -> None:
    model = save(picture_model(1, 3, 8, 8), tmp_path / "m.onnx")
    preset = tmp_path / "preset.yaml"
    preset.write_text("fit: stretch\nmean: [1.0e+39, 0, 0]\n")
    pictures = album(tmp_path / "pics", (8, 8))
    options = ("--images", pictures, "--preprocess", preset)
    error = refused(tmp_path, "quantize", model, "-o", tmp_path / "q.onnx", *options)
    assert "pics sample 0: input" in error
    assert "holds NaN or Inf" in error


def test_batches_of_pictures(tmp_path: Path) -> None:
    album(tmp_path, *[(20 + i, 30) for i in range(5)])

    shapes = [x.shape for x in read(picture_model("n", 3, 16, 16), tmp_path, "yolo", batch=2)]

    assert shapes == [(2, 3, 16, 16), (2, 3, 16, 16), (1, 3, 16, 16)]
    assert len(read(picture_model(5, 3, 16, 16), tmp_path, "yolo")) == 1


def test_a_half_precision_input_gets_half_precision(tmp_path: Path) -> None:
    album(tmp_path, (20, 20))

    assert (
        read(picture_model(1, 3, 16, 16, dtype=TensorProto.FLOAT16), tmp_path, "yolo")[0].dtype
        == np.float16
    )


def test_what_overflows_half_precision_is_named(bench: Path) -> None:
    save(picture_model(1, 3, 16, 16, dtype=TensorProto.FLOAT16), bench / "model.onnx")

    message = quantize(
        bench,
        "--images",
        bench / "album",
        "--preprocess",
        write(bench, "fit: stretch\nscale: 1000\n"),
    )

    assert (
        message
        == f"qdq: {bench / 'album'} sample 0: input 'images' holds NaN or Inf. Fix the data.\n"
    )


def test_every_preset_can_be_read() -> None:
    assert preset_names() == ["imagenet", "yolo"]
    assert [read_preprocess(name).fit for name in preset_names()] == ["crop", "letterbox"]


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Return a folder with a model and pictures for it."""
    save(picture_model("n", 3, 16, 16), tmp_path / "model.onnx")
    album(tmp_path / "album", (20, 20), (30, 20), (20, 30), (16, 16))
    return tmp_path


def test_quantize_and_validate_take_pictures(bench: Path) -> None:
    model, out, more = (
        bench / "model.onnx",
        bench / "out.onnx",
        ("--images", bench / "album", "--preprocess", "yolo"),
    )

    code, text, err = run("quantize", model, "-o", out, *more, "--samples", 3)
    assert (code, err) == (0, "")
    assert "auto over 3 samples of album as yolo, 3 of 4 evenly" in text
    assert {p.key: p.value for p in onnx.load(out).metadata_props}[
        "qdq.data"
    ] == "album as yolo, 3 of 4 evenly (3 samples)"

    code, text, err = run("validate", model, out, *more)
    assert (code, err) == (0, "")
    assert "4 samples of album as yolo" in text


def test_calibrate_and_the_library_take_pictures(bench: Path) -> None:
    model, plan, scales = bench / "model.onnx", bench / "plan.yaml", bench / "scales.json"
    assert run("plan", model, "-o", plan)[0] == 0

    code, _, err = run(
        "calibrate",
        model,
        plan,
        "--images",
        bench / "album",
        "--preprocess",
        "yolo",
        "--samples",
        2,
        "--batch",
        2,
        "-o",
        scales,
    )
    assert (code, err) == (0, "")
    calibrated = qdq.calibrate(
        model, qdq.plan(model), qdq.Subset(qdq.Images(bench / "album", "yolo"), samples=2), batch=2
    )

    written = json.loads(scales.read_text())
    assert (written["data"], written["samples"], written["batch"]) == (calibrated.data, 2, "2")
    assert [pair["scales"] for pair in written["by_pair"]] == [
        list(pair.scales) for pair in calibrated.by_pair
    ]


def quantize(bench: Path, *more: object) -> str:
    """Return the refusal of `qdq quantize`."""
    return refused(bench, "quantize", bench / "model.onnx", "-o", bench / "out.onnx", *more)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--images", "album"],
            "--images needs --preprocess. Pass imagenet, yolo, or a YAML file that specifies how a picture becomes the model's input.",
        ),
        (
            ["--images", "album", "--preprocess", "yolo", "--data", "noise"],
            "--data and --images exclude each other. Pass one of them.",
        ),
        (
            ["--data", "noise", "--preprocess", "yolo"],
            "--preprocess specifies how pictures become inputs. Pass --images with a folder of pictures.",
        ),
        (
            ["--images", "album", "--preprocess", "imagenett"],
            "--preprocess 'imagenett': there is no such file or preset. Did you mean 'imagenet'? Presets are imagenet, yolo.",
        ),
        (
            ["--images", "gone", "--preprocess", "yolo"],
            "gone: there is no such folder. Pass --images with a folder of pictures",
        ),
        (
            ["--images", "model.onnx", "--preprocess", "yolo"],
            "model.onnx: this is a file. Pass --images with a folder of pictures",
        ),
        (
            ["--images", "empty", "--preprocess", "yolo"],
            "empty: the folder holds no pictures. Their names end in .bmp, .jpeg,",
        ),
    ],
)
def test_options_that_do_not_go_together(
    bench: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], says: str
) -> None:
    (bench / "empty").mkdir()
    monkeypatch.chdir(bench)

    assert says in quantize(bench, *more)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the picture cannot be read: cannot identify image file"),
        (b"text", "the picture cannot be read: cannot identify image file"),
        (None, "the picture cannot be read: "),
    ],
    ids=["empty", "text", "half"],
)
def test_a_picture_that_cannot_be_read_is_named(
    bench: Path, content: bytes | None, says: str
) -> None:
    path = bench / "album" / "2.png"
    path.write_bytes(path.read_bytes()[:400] if content is None else content)

    assert f"qdq: {path}: {says}" in quantize(
        bench, "--images", bench / "album", "--preprocess", "yolo"
    )


def test_pictures_of_sixteen_bits_are_refused(bench: Path) -> None:
    path = bench / "album" / "1.png"
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path)

    message = quantize(bench, "--images", bench / "album", "--preprocess", "yolo")

    assert (
        message
        == f"qdq: {path}: the picture has more than 8 bits per channel (I;16). Convert it to 8 bits.\n"
    )


def test_a_picture_of_too_many_pixels_is_refused(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)

    message = quantize(bench, "--images", bench / "album", "--preprocess", "yolo")

    assert (
        message
        == f"qdq: {bench / 'album' / '1.png'}: the picture cannot be read: {message.partition('read: ')[2]}"
    )
    assert "decompression bomb" in message


MODELS = {
    "channels": (
        picture_model(1, 1, 8, 8),
        "is float32[1, 1, 8, 8], but yolo makes 3 channels. Write a preprocess file with 'channels' and 'layout' of the",
        "yolo",
    ),
    "integers": (
        picture_model(1, 3, 8, 8, dtype=TensorProto.UINT8),
        "no input, or several, takes pictures",
        "yolo",
    ),
    "others": (
        picture_model(1, 3, 8, 8, more=("scale",)),
        "pictures feed only 'images', and 'scale' would get nothing. Pass --data",
        "yolo",
    ),
    "batches": (
        picture_model(3, 3, 8, 8),
        "album: the folder holds 4 pictures, which batches of 3 do not divide. Remove ",
        "yolo",
    ),
    "unsized": (
        picture_model(1, 3, "h", 8),
        "of no fixed size. Write 'size' into",
        "fit: stretch\n",
    ),
    "no-input": (
        picture_model(1, 3, 8, 8),
        "the model has no input 'image'. Did you mean 'images'? It has 'images'",
        "fit: stretch\ninput: image\n",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_takes_no_pictures_is_named_with_its_inputs(bench: Path, name: str) -> None:
    model, says, preprocess = MODELS[name]
    save(model, bench / "model.onnx")
    how = write(bench, preprocess) if ":" in preprocess else preprocess

    assert says in quantize(bench, "--images", bench / "album", "--preprocess", how)


MISTAKES = {
    "list": ("- fit\n", 1, "a preprocess file is a mapping. Write some of like, fit, size"),
    "empty": ("", 1, "a preprocess file is a mapping"),
    "misspelt": ("fit: crop\nsizes: 3\n", 2, "unknown key 'sizes'. Did you mean 'size'"),
    "twice": ("fit: crop\nfit: crop\n", 2, "the key 'fit' is given twice"),
    "no-fit": (
        "size: 3\n",
        1,
        "the key 'fit' is missing. Write one of crop, letterbox, stretch, or 'like' and a preset",
    ),
    "fit": (
        "fit: leterbox\n",
        1,
        "'fit' is 'leterbox'; it must be one of crop, letterbox, stretch. Did you mean 'letterbox'?",
    ),
    "like": (
        "like: yolo5\n",
        1,
        "'like' is 'yolo5'; it must be one of imagenet, yolo. Did you mean 'yolo'?",
    ),
    "size": (
        "fit: crop\nsize: [1, 2, 3]\n",
        2,
        "'size' is [1, 2, 3]. Write pixels: one number, or [height, width]",
    ),
    "size-zero": ("fit: crop\nsize: 0\n", 2, "'size' is 0. Write pixels"),
    "resize": (
        "fit: crop\nsize: 8\nresize: 6\n",
        3,
        "'resize' is the short side before 'size' is cut out. Write both, 'resize' the larger",
    ),
    "resize-truth": ("fit: crop\nresize: true\n", 2, "'resize' is True. Write a number of pixels"),
    "resize-idle": (
        "fit: stretch\nresize: 9\n",
        2,
        "'resize' is only for 'fit: crop'. Remove it",
    ),
    "fill-idle": (
        "fit: stretch\nfill: 9\n",
        2,
        "'fill' is only for 'fit: letterbox'. Remove it",
    ),
    "mean": (
        "fit: stretch\nmean: [1, 2]\n",
        2,
        "'mean' has 2 numbers. Write one, or one for each of 3 channels",
    ),
    "mean-text": (
        "fit: stretch\nmean: half\n",
        2,
        "'mean' is 'half'. Write a number such as 0.5 or 1/255",
    ),
    "std": (
        "fit: stretch\nstd: [1, 0, 1]\n",
        2,
        "'std' is [1, 0, 1]. Write a number for each channel, none of them 0",
    ),
    "scale": (
        "fit: stretch\nscale: 1/0\n",
        2,
        "'scale' is '1/0'. Write a number such as 0.5 or 1/255",
    ),
    "scale-infinite": ("fit: stretch\nscale: .inf\n", 2, "'scale' is inf. Write a number"),
    "scale-huge": (
        "fit: stretch\nscale: '1e999999999'\n",
        2,
        "'scale' is '1e999999999'. Write a number",
    ),
    "scale-nan": ("fit: stretch\nscale: .nan\n", 2, "'scale' is nan. Write a number"),
    "fill": (
        "fit: letterbox\nfill: [0, 0, 256]\n",
        2,
        "'fill' is [0, 0, 256]. Write colours from 0 to 255",
    ),
    "grey-mean": (
        "like: imagenet\nchannels: gray\n",
        1,
        "'mean' has 3 numbers. Write one, or one for each of 1 channels",
    ),
    "antialias": ("fit: stretch\nantialias: 'no'\n", 2, "'antialias' is 'no'. Write true or false"),
    "lanczos": (
        "fit: stretch\nantialias: false\ninterpolation: lanczos\n",
        2,
        "Without 'antialias', write one of nearest, bilinear, bicubic",
    ),
    "layout": (
        "fit: stretch\nlayout: NCHW\n",
        2,
        "'layout' is 'NCHW'; it must be one of nchw, nhwc",
    ),
    "input": ("fit: stretch\ninput: 3\n", 2, "'input' must be text, not 3"),
}


@pytest.mark.parametrize(("content", "line", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_preprocess_file_is_named_with_its_line(
    bench: Path, content: str, line: int, says: str
) -> None:
    path = write(bench, content)

    message = quantize(bench, "--images", bench / "album", "--preprocess", path)

    assert message.startswith(f"qdq: {path}:{line}: "), message
    assert says in message
