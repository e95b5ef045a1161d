"""Ranges that come from elsewhere than calibration: by hand, from TensorRT's cache, from scales and models; and what scale groups give up."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import qdq
from qdq.calibration.range_sources import EXPORT_FORMATS, encode_given_ranges, read_model_ranges
from qdq.graph.index import GraphIndex
from qdq.ranges.given_ranges import (
    GivenRange,
    GivenRanges,
    match_given_ranges,
)
from qdq.ranges.given_weights import GivenWeightRange
from qdq.ranges.tensorrt_cache import encode_cache, read_cache
from tests.support.body_models import branching
from tests.support.cli_runner import refused, run, samples, save, tiny_model
from tests.support.graphs import CALIBRATION, DIGITS, Array, build, initializer, node, noise
from tests.support.graphs import run as infer
from tests.support.paths import NETWORKS

HEADER = "TRT-8601-EntropyCalibration2"
#: Scales that a cache may hold.
SCALES = st.floats(min_value=2.0**-126, allow_nan=False, allow_infinity=False, width=32)
NAMES = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1)


def digits(scale: float) -> str:
    """Return a scale as a cache has it."""
    return struct.pack(">f", scale).hex()


def cache(**scales: float) -> str:
    """Return a calibration cache."""
    return "\n".join(
        [HEADER, *(f"{tensor}: {digits(scale)}" for tensor, scale in scales.items()), ""]
    )


def write(path: Path, content: str | bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def scales_of(result: qdq.Quantized | qdq.Scales) -> dict[str, float]:
    """Return the scale of each activation."""
    scales = result.scales if isinstance(result, qdq.Quantized) else result
    return {pair.tensor: pair.scales[0] for pair in scales.by_pair if pair.quantizer.calibrated}


def grouped(dead: bool = False) -> onnx.ModelProto:
    """Return two branches of unlike range, the first all zero where it is dead, joined by a Concat, with a Conv behind each and all: one scale group."""
    weights = {
        "wa": noise(4, 3, 1, 1, seed=1),
        "wb": 3 * noise(4, 3, 1, 1, seed=2),
        "wc": noise(2, 8, 1, 1, seed=3),
        "w": noise(2, 4, 1, 1, seed=4),
    }
    if dead:
        weights["wa"] *= 0
    nodes = [
        node("Conv", ["x", "wa"], "pa"), node("Relu", ["pa"], "a"), node("Conv", ["x", "wb"], "pb"), node("Relu", ["pb"], "b"),
        node("Concat", ["a", "b"], "c", axis=1), node("Conv", ["c", "wc"], "y"), node("Conv", ["a", "w"], "ya"), node("Conv", ["b", "w"], "yb"),
    ]  # fmt: skip
    return build(nodes, {"x": [1, 3, 4, 4]}, ["y", "ya", "yb"], weights)


IMAGES = [{"x": noise(1, 3, 4, 4, seed=seed)} for seed in range(4)]


# The cache as a file


def test_the_published_line_of_a_cache_reads_as_its_range(tmp_path: Path) -> None:
    given_ranges = qdq.read_given(write(tmp_path / "model.cache", f"{HEADER}\nimages: 3c00f9f4\n"))

    (images,) = given_ranges.by_tensor
    assert (images.tensor, round(images.amax, 4), given_ranges.header) == ("images", 0.9998, HEADER)
    assert (
        encode_given_ranges(given_ranges, "tensorrt-cache")
        == f"{HEADER}\nimages: 3c00f9f4\n".encode()
    )


@settings(deadline=None)
@given(scales=st.dictionaries(NAMES, SCALES, min_size=1))
@example(
    scales={
        "a: b": 1.0,
        ": ": math.ldexp(1, -126),
        "x:": 2.0,
        " ": 0.125,
        "1e5": math.ldexp(1, 127),
        "\r": 1.0,
        "~": 1.0,
        "- \u2028\x85": 0.5,
        "\x7f\x00": 1.0,
        '"q\\': 1.0,
    }
)
def test_a_cache_is_byte_identical_after_a_round_trip_through_every_format(
    tmp_path_factory: pytest.TempPathFactory, scales: dict[str, float]
) -> None:
    path = tmp_path_factory.getbasetemp() / "ranges"
    written = encode_cache(HEADER, scales.items(), "test")

    for layout in EXPORT_FORMATS:
        given_ranges = qdq.read_given(write(path, written))
        again = qdq.read_given(write(path, encode_given_ranges(given_ranges, layout)))
        assert encode_given_ranges(again, "tensorrt-cache") == written, layout
    assert {s.tensor: s.scale for s in read_cache(written, path).scales} == scales


def test_what_other_writers_leave_out_or_add_is_read(tmp_path: Path) -> None:
    lines = [
        "TRT-8XXX-MinMaxCalibration",
        "tiny: 00800000",
        "upper: 3C00F9F4",
        "",
        "a: b: 3f800000",
        "zero: 0",
    ]
    given_ranges = qdq.read_given(write(tmp_path / "model.cache", "\r\n".join(lines)))

    assert {r.tensor: r.amax / 127 for r in given_ranges.by_tensor} == {
        "tiny": math.ldexp(1.0, -126),
        "upper": 0.007872093468904495,
        "a: b": 1.0,
        "zero": 0.0,
    }
    assert encode_given_ranges(given_ranges, "tensorrt-cache").decode().split("\n") == [
        "TRT-8XXX-MinMaxCalibration", "tiny: 00800000", "upper: 3c00f9f4", "a: b: 3f800000", "zero: 00000000", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            "TRT-8601\nx: 3c00f9f4\n",
            "ranges:1: a calibration cache begins with a line such as TRT-8601-EntropyCalibration2, not 'TRT-8601'",
        ),
        (f"{HEADER}\n", "ranges: the cache holds no scales"),
        (f"{HEADER}\nx 3c00f9f4\n", "ranges:2: 'x 3c00f9f4' is not of the form 'tensor: scale'"),
        (f"{HEADER}\n: 3c00f9f4\n", "ranges:2: ': 3c00f9f4' is not of the form 'tensor: scale'"),
        (
            f"{HEADER}\nx: 3c00f9f4\ny: 0x12\n",
            "ranges:3: '0x12' is not a scale. Write the 8 hexadecimal digits",
        ),
        (f"{HEADER}\nx: 3c00f9f400\n", "ranges:2: '3c00f9f400' is not a scale"),
        (f"{HEADER}\nx: \n", "ranges:2: '' is not a scale"),
        (
            f"{HEADER}\nx: 3c00f9f4\nf: 3d4ccc",
            "ranges:3: the scale 3d4ccc of tensor 'f' has 6 digits instead of 8: the line is cut off",
        ),
        (f"{HEADER}\nf: 3d4cccc\nx: 1\n", "ranges:2: the scale 3d4cccc of tensor 'f' has 7 digits"),
        (f"{HEADER}\nx: 3\n", "ranges:2: the scale 3 of tensor 'x' has 1 digits"),
        (f"{HEADER}\nx: 003d4ccc\n", "ranges:2: the scale 003d4ccc of tensor 'x' is 5.63e-39"),
        (f"{HEADER}\nx: 3c00f9f4\nf", "ranges:3: 'f' is not of the form 'tensor: scale'"),
        (f"{HEADER}\nx: 7fc00000\n", "ranges:2: the scale 7fc00000 of tensor 'x' is nan"),
        (f"{HEADER}\nx: 7f800000\n", "ranges:2: the scale 7f800000 of tensor 'x' is inf"),
        (f"{HEADER}\nx: bc00f9f4\n", "ranges:2: the scale bc00f9f4 of tensor 'x' is -0.0078"),
        (f"{HEADER}\nx: 80000000\n", "ranges:2: the scale 80000000 of tensor 'x' is -0.0"),
        (
            f"{HEADER}\nx: 3c00f9f4\ny: 0\nx: 3c00f9f4\n",
            "ranges:4: tensor 'x' is on line 2 too. Remove one.",
        ),
        (f"{HEADER}\n".encode() + b"\xff: 3c00f9f4\n", "ranges: byte 29 is not UTF-8"),
        ("x: abc\n", "ranges:1: tensor 'x': 'abc' is not a number. Write one, such as 2.5."),
        ("x: 1\n'y':\n", "ranges:2: tensor 'y': '' is not a number"),
        ("x: 1_000\n", "ranges:1: tensor 'x': '1_000' is not a number"),
        (
            "x: -1\n",
            "ranges:1: tensor 'x': a range of -1 cannot be used. Write a finite number above 0",
        ),
        ("x: .nan\n", "ranges:1: tensor 'x': '.nan' is not a number"),
        ("x: nan\n", "ranges:1: tensor 'x': a range of nan cannot be used"),
        (
            "x: 1e-40\n",
            "ranges:1: tensor 'x': a range of 1e-40 is too small for a scale in float32",
        ),
        (
            "x: 1\nf: {scale: 1e-40}\n",
            "ranges:2: tensor 'f': a range of 1.26999e-38 is too small for a scale in float32",
        ),
        ('{"x": 1,\n "f": 2', "ranges:3: the file is neither a calibration cache nor YAML"),
        ("x: 1e60\n", "ranges:1: tensor 'x': a range of 1e+60 cannot be used"),
        ("x: {scale: 1e60}\n", "ranges:1: tensor 'x': the scale 1e60 is larger than a float32"),
        ("x: {scale: [1, 2]}\n", "ranges:1: tensor 'x': 2 ranges need their axis"),
        (
            "\nx: {range: 1}\n",
            "ranges:2: tensor 'x': the value is not a range. Write a number, its amax, or one of {amax: ...} and {scale: ...}",
        ),
        (
            "x: {amax: 1, scale: 1}\n",
            "ranges:1: tensor 'x': the value is not a range. Write a number, its amax, or one of",
        ),
        (
            "x: [1, 2]\n",
            "ranges:1: tensor 'x': the value is not a range. Write a number, its amax, or one of",
        ),
        ("f: 1\nx: 1\nx: 2\n", "ranges:3: the key 'x' is given twice"),
        ('{"f": 1,\n "x": 1,\n "x": 2}', "ranges:3: the key 'x' is given twice"),
        ('{"f": 1, "\\ud800": 2}', "ranges:1: a key holds half of a surrogate pair"),
        ('{"f": 1,\n "x": -1}', "ranges:2: tensor 'x': a range of -1 cannot be used"),
        (
            "- x\n",
            "ranges:1: the file maps no tensor to a range. Write lines of the form 'tensor: amax'",
        ),
        ("", "ranges:1: the file maps no tensor to a range"),
        ("{}", "ranges:1: the file maps no tensor to a range"),
        ("x: [1\n", "ranges:2: the file is neither a calibration cache nor YAML"),
        (b"x: \x00\n", "ranges: the file is neither a calibration cache nor YAML"),
        (b"\xff\xff", "ranges: the file is neither a calibration cache nor YAML"),
        ("x: 1\nf: 1\ngem: 1\n", "ranges:3: model.onnx has no tensor 'gem'"),
        ("x: 1\nff: 1\n", "ranges:2: model.onnx has no tensor 'ff'. Did you mean 'f'"),
        ('{"plan": "", "by_pair": 3}', "ranges: the file is not a scales file that qdq can read"),
        ("x: 1\nr: 2\n", ""),
        (
            "x: 1\nc: 2\n",
            "model.onnx: ranges has no range for 1 planned tensor: 'f'. Pass --data to calibrate what is missing, or add the ranges.",
        ),
        (cache(x=1.0), "model.onnx: ranges has no range for 1 planned tensor: 'f'. Pass --data"),
    ],
)
def test_a_file_of_ranges_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, content: str | bytes, says: str
) -> None:
    model, ranges = save(tiny_model(), tmp_path / "model.onnx"), write(tmp_path / "ranges", content)
    argv = ("quantize", model, "-o", tmp_path / "out.onnx", "--ranges", ranges)

    if says:
        assert says in refused(tmp_path, *argv)
    else:
        assert run(*argv)[0] == 0


def test_options_about_data_are_refused_without_data(tmp_path: Path) -> None:
    model, ranges = (
        save(tiny_model(), tmp_path / "model.onnx"),
        write(tmp_path / "ranges.yaml", "x: 1\nf: 1\n"),
    )
    out = tmp_path / "out.onnx"

    for option, value in (("--method", "max"), ("--weights", "shift"), ("--batch", "2")):
        assert f"qdq: {option}" in (
            message := refused(
                tmp_path, "quantize", model, "-o", out, "--ranges", ranges, option, value
            )
        )
        assert "applies to samples, and --ranges alone runs none" in message
    assert "qdq: --min-snr applies to samples" in refused(
        tmp_path, "quantize", model, "-o", out, "--ranges", ranges, "--validate", "--min-snr", "10"
    )
    assert "cannot be read: No such file" in refused(
        tmp_path, "quantize", model, "-o", out, "--ranges", tmp_path / "none"
    )
    assert "the output is the input" in refused(
        tmp_path, "quantize", model, "-o", ranges, "--force", "--ranges", ranges
    )
    assert "no calibration data" in refused(tmp_path, "quantize", model, "-o", out)


def test_export_is_refused_in_one_line(tmp_path: Path) -> None:
    model, ranges, odd = (
        save(tiny_model(), tmp_path / "model.onnx"),
        write(tmp_path / "r.yaml", "x: 1\n"),
        write(tmp_path / "odd.yaml", '"x\\n": 1\n'),
    )
    out = tmp_path / "out"

    def export(source: Path, layout: str, *more: str) -> str:
        return refused(tmp_path, "ranges", "export", source, "--format", layout, "-o", out, *more)

    assert "model.onnx: no pair of the model has a constant scale" in export(model, "yaml")
    assert (
        "odd.yaml: tensor 'x\\n': a calibration cache cannot hold this name. Export as yaml or json."
        in export(odd, "tensorrt-cache")
    )
    assert "--tensorrt-version is for the first line of a cache" in export(
        ranges, "json", "--tensorrt-version", "8501"
    )
    assert (
        "TensorRT version '8 5': the version does not have the form of caches. Write it as in 8601."
        in export(ranges, "tensorrt-cache", "--tensorrt-version", "8 5")
    )
    assert "'xml' is not one of" in export(ranges, "xml")
    assert "the output is the input" in refused(
        tmp_path, "ranges", "export", ranges, "--format", "json", "-o", ranges
    )


# Scales made of given ranges


@pytest.mark.parametrize("network", DIGITS)
@pytest.mark.parametrize("layout", EXPORT_FORMATS)
def test_scales_from_an_export_are_those_that_it_was_exported_from(
    tmp_path: Path, network: str, layout: str
) -> None:
    model, plan, scales, ranges, again = (
        tmp_path / name for name in ("m.onnx", "plan.yaml", "scales.json", "ranges", "again.json")
    )
    model.write_bytes((NETWORKS / f"{network}.onnx").read_bytes())
    for argv in (
        ["plan", model, "-o", plan],
        ["calibrate", model, plan, "--data", CALIBRATION, "--weights", "max", "-o", scales],
        ["ranges", "export", scales, "--format", layout, "-o", ranges],
        ["calibrate", model, plan, "--ranges", ranges, "-o", again],
    ):
        assert run(*argv)[0] == 0

    first, second = (json.loads(path.read_text()) for path in (scales, again))
    assert first["by_pair"] == second["by_pair"]
    assert (second["method"], second["data"], second["samples"]) == ("given", "", 0)


@pytest.mark.parametrize("dead", [False, True])
def test_scales_of_a_group_from_a_cache_are_those_that_it_was_exported_from(
    tmp_path: Path, dead: bool
) -> None:
    model = grouped(dead)
    calibrated = qdq.quantize(model, IMAGES, weights="max")
    path = tmp_path / "quantized.onnx"
    qdq.save(calibrated.model, calibrated.source, path)

    from_cache = qdq.quantize(
        model,
        None,
        given=qdq.read_given(
            write(tmp_path / "c", encode_given_ranges(qdq.read_given(path), "tensorrt-cache"))
        ),
    )

    assert from_cache.scales.by_pair == calibrated.scales.by_pair
    assert len({scales_of(from_cache)[tensor] for tensor in "abc"}) == 1


def test_a_dead_tensor_keeps_its_placeholder_through_a_cache(tmp_path: Path) -> None:
    model = tiny_model()
    for weights in model.graph.initializer:
        if weights.name.startswith("conv"):
            weights.raw_data = bytes(len(weights.raw_data))
    calibrated = qdq.quantize(model, samples(tmp_path / "data"), weights="max")
    assert calibrated.scales.dead == ("f",)
    cached = qdq.read_given(write(tmp_path / "c", cache(**scales_of(calibrated))))
    zeros = qdq.read_given(write(tmp_path / "z", cache(**{**scales_of(calibrated), "f": 0.0})))

    for ranges in (cached, zeros):
        assert qdq.quantize(model, None, given=ranges).scales.by_pair == calibrated.scales.by_pair
    assert qdq.quantize(model, None, given=zeros).scales.dead == ("f",)
    assert (
        qdq.quantize(
            model, samples(tmp_path / "more"), given=qdq.given_by_hand({"f": 1.0})
        ).scales.dead
        == ()
    )


def test_a_cached_scale_reaches_its_pair_bit_for_bit() -> None:
    rng = np.random.default_rng(5)
    for scale in np.exp(rng.uniform(-80, 80, 40)).astype(np.float32):
        result = qdq.quantize(
            tiny_model(),
            None,
            given=qdq.GivenRanges("c", (GivenRange("x", float(scale) * 127), GivenRange("f", 1.0))),
        )
        assert initializer(result.model, "x_scale") == scale


def test_the_two_spellings_of_a_range_agree(tmp_path: Path) -> None:
    scale = float(np.float32(0.1))
    lines = {
        "a": "x: {scale: 0.1}\nf: 1e-3\n",
        "b": f"'x': {{amax: {scale * 127!r}}}\n\"f\": {{amax: 0.001}}\n",
        "c": f'{{"x": {{"scale": 0.1}}, "f": {1e-3}}}',
    }
    results = [
        qdq.quantize(tiny_model(), None, given=qdq.read_given(write(tmp_path / name, text)))
        for name, text in lines.items()
    ]

    for result in results:
        assert scales_of(result) == {"x": scale, "f": float(np.float32(1e-3 / 127))}


def test_fp8_takes_the_same_range() -> None:
    result = qdq.quantize(
        tiny_model(),
        None,
        rules=qdq.load_rules(["tensorrt-fp8"]),
        targets=[qdq.parse_target("rtx:sm89")],
        given=qdq.given_by_hand({"x": 448.0, "f": 44.8}),
    )

    assert scales_of(result) == {"x": 1.0, "f": float(np.float32(0.1))}


def test_without_data_weights_take_their_largest_values_and_the_model_says_what_made_it(
    tmp_path: Path,
) -> None:
    model, out = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "out.onnx"
    code, text, _ = run(
        "quantize", model, "-o", out, "--ranges", write(tmp_path / "my.yaml", "x: 2.54\nf: 12.7\n")
    )

    assert code == 0
    assert "given, no data was run: 4 pairs\n  my.yaml gives the ranges of 2 tensors\n" in text
    quantized_model = onnx.load(out)
    weight = initializer(quantized_model, "conv.weight")
    np.testing.assert_array_equal(
        initializer(quantized_model, "conv.weight_scale"),
        np.abs(weight).max(axis=(1, 2, 3)) / np.float32(127),
    )
    assert {
        p.key: p.value
        for p in quantized_model.metadata_props
        if p.key in ("qdq.method", "qdq.data", "qdq.ranges", "qdq.batch")
    } == {
        "qdq.method": "given",
        "qdq.ranges": "my.yaml (2 tensors)",
    }
    assert qdq.check(out) == ()


def test_with_data_only_the_named_tensors_change(tmp_path: Path) -> None:
    model, data = tiny_model(), samples(tmp_path / "data")
    plain, changed = (
        qdq.quantize(model, data),
        qdq.quantize(model, data, given=qdq.given_by_hand({"x": 0.127})),
    )

    assert scales_of(changed) == {**scales_of(plain), "x": float(np.float32(0.001))}
    weights = [
        [pair for pair in result.scales.by_pair if not pair.quantizer.calibrated]
        for result in (plain, changed)
    ]
    assert weights[0] == weights[1]
    assert changed.scales.method == plain.scales.method
    assert [far.tensor for far in changed.scales.outliers] == ["x"]
    assert changed.scales.given_ranges is not None
    assert changed.scales.given_ranges.missing == ("f",)
    assert (
        dict((p.key, p.value) for p in changed.model.metadata_props)["qdq.ranges"]
        == "ranges passed to the library (1 tensors)"
    )


def test_names_that_one_side_lacks_are_listed(tmp_path: Path) -> None:
    model, data = save(tiny_model(), tmp_path / "model.onnx"), samples(tmp_path / "data")
    names = ["x", "c", "(Unnamed Layer* 12) [Shuffle]_output"]
    ranges = write(tmp_path / "old.cache", cache(**dict.fromkeys(names, 1.0)))
    argv = ("quantize", model, "--data", data, "--ranges", ranges)
    code, text, _ = run(*argv, "-o", tmp_path / "out.onnx")

    assert code == 0
    assert "1 not in old.cache, and calibrated: f\n" in text
    assert "1 in old.cache, but not in the graph: (Unnamed Layer* 12) [Shuffle]_output\n" in text
    assert "1 in old.cache, but not quantized by the plan: c\n" in text
    summary = json.loads(run(*argv, "-o", tmp_path / "b.onnx", "--format", "json")[1])["scales"][
        "given_ranges"
    ]
    assert summary == {
        "name": "old.cache", "tensors": [{"tensor": "x", "amax": 127.0, "source_tensor": "", "at_most": False}],
        "unknown": names[2:], "unplanned": ["c"], "missing": ["f"], "weights": [],
    }  # fmt: skip


# Ranges that were observed before


def test_observed_ranges_give_the_scales_of_the_run_that_observed_them(tmp_path: Path) -> None:
    model, observed = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "seen.ranges"
    data = samples(tmp_path / "data")
    for argv in (
        ["--data", data, "--save-ranges", observed, "-o", tmp_path / "a.onnx"],
        ["--ranges", observed, "-o", tmp_path / "b.onnx"],
    ):
        assert run("quantize", model, *argv)[0] == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    assert (
        run(
            "quantize", model, "--ranges", observed, "--method", "max", "-o", tmp_path / "max.onnx"
        )[0]
        == 0
    )
    assert {p.key: p.value for p in onnx.load(tmp_path / "max.onnx").metadata_props}[
        "qdq.method"
    ] == "max"


def test_observed_ranges_are_refused_where_they_do_not_fit(tmp_path: Path) -> None:
    model, other, observed, out = (
        tmp_path / name for name in ("model.onnx", "other.onnx", "seen.ranges", "out")
    )
    save(tiny_model(), model)
    save(grouped(), other)
    assert (
        run(
            "quantize",
            model,
            "--data",
            "noise",
            "--save-ranges",
            observed,
            "-o",
            tmp_path / "first.onnx",
        )[0]
        == 0
    )

    def quantize(which: Path, *more: object) -> str:
        return refused(tmp_path, "quantize", which, "-o", out, "--ranges", observed, *more)

    assert (
        f"qdq: {observed}: these ranges were observed earlier, so no samples are run. Drop --data"
        in quantize(model, "--data", "noise")
    )
    assert f"qdq: {observed}: the ranges were observed for another model" in quantize(other)
    assert "--max-memory applies to samples" in quantize(model, "--max-memory", "4GB")
    assert "--save-ranges applies to samples" in quantize(model, "--save-ranges", tmp_path / "more")
    with pytest.raises(qdq.QdqError, match="observed earlier, so no samples are run"):
        qdq.quantize(model, [{"x": noise(1, 4, 8, 8)}], given=qdq.read_given(observed))


def test_a_shard_takes_no_ranges(tmp_path: Path) -> None:
    model, plan = save(tiny_model(), tmp_path / "model.onnx"), tmp_path / "plan.yaml"
    assert run("plan", model, "-o", plan)[0] == 0
    ranges = write(tmp_path / "r.yaml", "x: 1\n")

    argv = ("calibrate", model, plan, "--ranges", ranges, "--shard", "1/2", "-o", tmp_path / "out")
    assert "--shard only observes samples" in refused(tmp_path, *argv, "--data", "noise")
    assert "--shard only observes samples" in refused(tmp_path, *argv)


# Tensors that take the range of another


def chain(*nodes: onnx.NodeProto, **constants: Array) -> onnx.ModelProto:
    """Return some nodes from x [1,3,4,4] to t, and a Conv of that."""
    return build(
        [*nodes, node("Conv", ["t", "w"], "y")],
        {"x": [1, 3, 4, 4]},
        ["y"],
        {"w": noise(2, 3, 1, 1), **constants},
    )


def beside(other: onnx.NodeProto) -> onnx.ModelProto:
    """Return Relu from x [1,3,4,4] to t, a Conv of that, and another node beside it that makes z."""
    nodes = [node("Relu", ["x"], "t"), node("Conv", ["t", "w"], "y"), other]
    return build(nodes, {"x": [1, 3, 4, 4]}, ["y", "z"], {"w": noise(2, 3, 1, 1)})


RELU = node("Relu", ["x"], "r")


@pytest.mark.parametrize(
    ("model", "named", "of"),
    [
        (chain(RELU, node("Transpose", ["r"], "t", perm=[0, 1, 3, 2])), "r", "r"),
        (chain(RELU, node("MaxPool", ["r"], "t", kernel_shape=[2, 2])), "r", "r"),
        (chain(RELU, node("Transpose", ["r"], "s", perm=[0, 1, 3, 2]), node("Identity", ["s"], "t")), "r", "r"),
        (chain(node("Split", ["x"], ["u", "t"], axis=2)), "x", "x"),
        (beside(node("Transpose", ["t"], "z", perm=[0, 2, 3, 1])), "z", "z"),
        (beside(node("Concat", ["x", "t"], "z", axis=1)), "z", "z"),
        (beside(node("MaxPool", ["t"], "z", kernel_shape=[2, 2])), "z", ""),
        (chain(node("Relu", ["x"], "t")), "x", ""),
        (chain(node("AveragePool", ["x"], "t", kernel_shape=[2, 2])), "x", ""),
    ],
)  # fmt: skip
def test_a_tensor_takes_the_range_of_one_that_holds_all_of_its_values(
    model: onnx.ModelProto, named: str, of: str
) -> None:
    ranges = qdq.GivenRanges("old.cache", (GivenRange(named, 127.0),), strict=False)
    if not of:
        with pytest.raises(
            qdq.QdqError, match=r"old\.cache has no range for 1 planned tensor: 't'"
        ):
            qdq.quantize(model, None, given=ranges)
        return

    result = qdq.quantize(model, None, given=ranges)

    assert scales_of(result)["t"] == 1.0
    assert result.scales.given_ranges is not None
    assert [
        (t.tensor, t.source_tensor) for t in result.scales.given_ranges.tensors if t.tensor == "t"
    ] == [("t", of)]
    assert result.scales.given_ranges.unplanned == ()


def test_the_report_says_whose_range_was_taken(tmp_path: Path) -> None:
    model = save(chain(RELU, node("Transpose", ["r"], "t", perm=[0, 1, 3, 2])), tmp_path / "m.onnx")
    _, text, _ = run(
        "quantize",
        model,
        "-o",
        tmp_path / "q.onnx",
        "--ranges",
        write(tmp_path / "c", cache(r=1.0)),
    )

    assert "1 take the range of a tensor that holds all of their values: t from r\n" in text


def test_constants_need_no_range(tmp_path: Path) -> None:
    table = noise(1, 3, 4, 4, seed=9)
    model = build([node("Conv", ["x", "k"], "c"), node("Add", ["c", "table"], "s"), node("Conv", ["s", "w"], "y")], {"x": [1, 3, 4, 4]}, ["y"],
                  {"k": noise(3, 3, 1, 1), "table": table, "w": noise(2, 3, 1, 1)})  # fmt: skip
    rules = write(
        tmp_path / "table.yaml",
        "rule: table\nsays: Words.\nwhere: {into: Add, edge: constant-table}\nthen: quantize\nusing: int8-activation\nbeats: [position-embeddings]\n",
    )
    result = qdq.quantize(
        model,
        None,
        rules=qdq.load_rules(["tensorrt", str(rules)]),
        given=qdq.given_by_hand({"x": 1.0, "s": 1.0}),
    )

    assert scales_of(result)["table"] == float(np.abs(table).max() / np.float32(127))


def test_tensors_of_bodies_are_named_by_path_or_as_they_are_outside() -> None:
    model = branching()
    inside = qdq.quantize(
        model,
        None,
        given=qdq.given_by_hand({"if.then_branch/r": 127.0, "if.else_branch/r": 127.0, "i": 127.0}),
    )
    outside = qdq.quantize(model, None, given=qdq.given_by_hand({"r": 127.0, "i": 127.0}))

    assert set(scales_of(inside).values()) == {1.0}
    assert scales_of(inside) == scales_of(outside)
    assert set(scales_of(inside)) == {"if.then_branch/r", "if.else_branch/r", "i"}


# Scale groups


def test_what_the_members_of_a_group_give_up_is_told(tmp_path: Path) -> None:
    result = qdq.quantize(grouped(), IMAGES, method="max")
    shared = {s.tensor: s for s in result.scales.shared}
    observed_amax = {
        tensor: np.abs(
            np.concatenate([values_of(grouped(), feed)[tensor] for feed in IMAGES])
        ).max()
        for tensor in "abc"
    }

    assert {tensor: s.own_amax for tensor, s in shared.items()} == observed_amax
    assert {s.amax for s in shared.values()} == {max(observed_amax.values())}
    assert shared["a"].bits == pytest.approx(math.log2(observed_amax["b"] / observed_amax["a"]))
    np.savez(tmp_path / "x.npz", x=np.concatenate([feed["x"] for feed in IMAGES]))
    argv = (
        "quantize",
        save(grouped(), tmp_path / "m.onnx"),
        "--data",
        tmp_path / "x.npz",
        "--method",
        "max",
    )
    _, text, _ = run(*argv, "-o", tmp_path / "q.onnx")
    assert (
        "3 tensors have the range of their scale group, 1 of them a larger one than without it\n"
        in text
    )
    assert (
        f"a: {observed_amax['a']:.4g} alone, {observed_amax['b']:.4g} shared, {observed_amax['b'] / observed_amax['a']:.3g} times ({shared['a'].bits:.2g} bits)\n"
        in text
    )
    shared_entries = json.loads(run(*argv, "-o", tmp_path / "r.onnx", "--format", "json")[1])[
        "scales"
    ]["shared"]
    assert {
        entry["tensor"]: (entry["dtype"], entry["own_amax"], entry["amax"])
        for entry in shared_entries
    } == {t: ("int8", s.own_amax, s.amax) for t, s in shared.items()}


def values_of(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Any]:
    """Return every tensor that ONNX Runtime computes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {output.name for output in copy.graph.output}
    copy.graph.output.extend(
        onnx.ValueInfoProto(name=name)
        for item in model.graph.node
        for name in item.output
        if name not in known
    )
    return dict(zip([output.name for output in copy.graph.output], infer(copy, feed), strict=True))


def test_a_given_tensor_is_named_where_its_group_widens_it(tmp_path: Path) -> None:
    model = save(grouped(), tmp_path / "m.onnx")
    code, text, _ = run(
        "quantize",
        model,
        "-o",
        tmp_path / "q.onnx",
        "--ranges",
        write(tmp_path / "r.yaml", "x: 1\na: 2\nb: 8\nc: 4\n"),
    )

    assert code == 0
    assert (
        "a: the given range is 2; its scale group has 8\n  c: the given range is 4; its scale group has 8\n"
        in text
    )
    assert "b: the given range" not in text


def test_a_tensor_that_keeps_its_own_range_shares_nothing() -> None:
    plan = qdq.plan(grouped())
    (group,) = plan.scale_groups
    limited = msgspec.structs.replace(
        plan, scale_groups=(msgspec.structs.replace(group, ratio_at_most=2.0),)
    )
    scales = qdq.calibrate(
        grouped(),
        limited,
        None,
        given=qdq.given_by_hand({"x": 127.0, "a": 127.0, "b": 508.0, "c": 381.0}),
    )

    assert scales_of(scales) == {"x": 1.0, "a": 1.0, "b": 4.0, "c": 4.0}
    assert {s.tensor for s in scales.shared} == {"b", "c"}
    alone = qdq.calibrate(
        grouped(), limited, None, given=qdq.given_by_hand({"x": 1.0, "a": 1.0, "b": 9.0, "c": 1.0})
    )
    assert alone.shared == ()


@pytest.mark.parametrize("suffix", ["yaml", "json", "cache"])
def test_strip_writes_the_ranges_that_quantize_takes(tmp_path: Path, suffix: str) -> None:
    model, out, ranges = (
        NETWORKS / "digits_cnn.onnx",
        tmp_path / "int8.onnx",
        tmp_path / f"r.{suffix}",
    )
    assert run("quantize", model, "-o", out, "--data", CALIBRATION, "--weights", "max")[0] == 0
    code, text, _ = run("strip", out, "-o", tmp_path / "float.onnx", "--ranges", ranges)
    assert (code, "removed" in text, str(ranges) in text) == (0, True, True)
    assert (tmp_path / "float.onnx").read_bytes() == model.read_bytes()
    assert (
        run("quantize", tmp_path / "float.onnx", "-o", tmp_path / "again.onnx", "--ranges", ranges)[
            0
        ]
        == 0
    )
    scales = [
        {s.tensor: s.amax for s in read_model_ranges(path).by_tensor}
        for path in (out, tmp_path / "again.onnx")
    ]
    assert scales[0] == scales[1]
    assert (
        run("strip", model, "-o", tmp_path / "x.onnx", "--ranges", tmp_path / "none.yaml")[0] == 2
    )
    assert not (tmp_path / "none.yaml").exists()
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("method", ["auto", "max", "percentile:99.9", "entropy"])
def test_a_cache_exported_from_observed_ranges_gives_their_scales(
    tmp_path: Path, method: str
) -> None:
    model, cache, observed = NETWORKS / "digits_cnn.onnx", tmp_path / "m.cache", tmp_path / "r"
    assert (
        run(
            "quantize",
            model,
            "-o",
            tmp_path / "a.onnx",
            "--data",
            CALIBRATION,
            "--save-ranges",
            observed,
            "--method",
            "auto",
        )[0]
        == 0
    )
    assert (
        run("quantize", model, "-o", tmp_path / "b.onnx", "--ranges", observed, "--method", method)[
            0
        ]
        == 0
    )
    assert (
        run(
            "ranges",
            "export",
            observed,
            "--format",
            "tensorrt-cache",
            "--method",
            method,
            "-o",
            cache,
        )[0]
        == 0
    )
    assert run("quantize", model, "-o", tmp_path / "c.onnx", "--ranges", cache)[0] == 0
    scales = [
        {s.tensor: s.amax for s in read_model_ranges(tmp_path / name).by_tensor}
        for name in ("b.onnx", "c.onnx")
    ]
    assert scales[0] == scales[1]
    code, _, err = run(
        "ranges", "export", cache, "--format", "yaml", "--method", "max", "-o", tmp_path / "x.yaml"
    )
    assert (code, "--method chooses from observed ranges" in err) == (2, True)


def test_a_dead_member_of_a_group_is_exported_with_the_groups_range(tmp_path: Path) -> None:
    nodes = [
        node("Relu", ["x"], "a"),
        node("Neg", ["a"], "b"),
        node("Relu", ["b"], "z"),
        node("Concat", ["a", "z"], "c", axis=1),
        node("Conv", ["c", "w"], "y"),
    ]
    model = save(
        build(nodes, {"x": [1, 2, 4, 4]}, ["y"], {"w": noise(3, 4, 1, 1)}), tmp_path / "m.onnx"
    )
    assert (
        run(
            "quantize",
            model,
            "-o",
            tmp_path / "a.onnx",
            "--data",
            "noise",
            "--save-ranges",
            tmp_path / "r",
            "--weights",
            "max",
        )[0]
        == 0
    )
    assert (
        run(
            "ranges",
            "export",
            tmp_path / "r",
            "--format",
            "tensorrt-cache",
            "-o",
            tmp_path / "cache",
        )[0]
        == 0
    )
    assert run("quantize", model, "-o", tmp_path / "b.onnx", "--ranges", tmp_path / "cache")[0] == 0
    scales = [
        {s.tensor: s.amax for s in read_model_ranges(tmp_path / name).by_tensor}
        for name in ("a.onnx", "b.onnx")
    ]
    assert scales[0] == scales[1]


def test_a_range_for_each_channel_wins_over_one_for_the_whole_weight() -> None:
    """Two nodes may quantize one weight in both ways; repair must return the scales of each."""
    source = qdq.load(NETWORKS / "digits_cnn.onnx")
    plan = qdq.plan(source)
    index = GraphIndex(source)
    placement = next(p for p in plan.placements if p.quantizer.axis is not None)
    weight, axis = placement.edge.tensor, placement.quantizer.axis
    channels = tuple(1.0 + i for i in range(index.constant(weight).shape[axis or 0]))
    whole, by_channel = (
        GivenWeightRange(weight, None, (9.0,)),
        GivenWeightRange(weight, axis, channels),
    )
    given_ranges = GivenRanges("both", (), strict=False, weights=(whole, by_channel))

    summary = match_given_ranges(index, plan, given_ranges)

    assert summary.weight_amax[weight, axis, 0] == channels
