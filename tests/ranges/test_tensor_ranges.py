"""Ranges that merge: parts of the samples, files, and several passes give the bytes of one run."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import qdq
from qdq.data.feeds import Subset
from qdq.errors import DataError, UsageError
from qdq.graph.index import GraphIndex
from qdq.observers.collection import CollectionJob, Observing, collect_locally
from qdq.observers.memory_budget import tensor_bytes
from qdq.ranges.range_file import (
    Checkpoint,
    decode_ranges,
    encode_ranges,
    read_checkpoint,
    read_ranges,
    write_ranges,
)
from qdq.ranges.tensor_ranges import Part, Ranges, merge
from tests.support.cli_runner import run, samples, save, tiny_model
from tests.support.graphs import Array, build, convolution, node, noise
from tests.support.paths import NETWORKS


def job_of(model: onnx.ModelProto, data: Any, full: bool = True) -> CollectionJob:
    return CollectionJob(GraphIndex(qdq.load(model)), qdq.plan(model), data, full)


def part_of(job: CollectionJob, number: int, of: int) -> Ranges:
    return collect_locally(job, Observing(part=Part(number, of)))


def two_layers() -> onnx.ModelProto:
    """Return a model with an input, a Relu and a constant among its planned tensors' makers."""
    nodes = [node("Conv", ["x", "w"], "c"), node("Relu", ["c"], "r"), node("Conv", ["r", "v"], "y")]
    return build(
        nodes, {"x": ["n", 3, "h", 5]}, ["y"], {"w": noise(4, 3, 1, 1), "v": noise(2, 4, 1, 1)}
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    arrays.arrays(np.float32, (7, 3, 4, 5), elements=st.floats(-1e4, 1e4, width=32)),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_parts_merged_in_any_order_and_any_tree_are_one_run(
    images: Array, of: int, order: random.Random, full: bool
) -> None:
    job = job_of(
        two_layers(), [{"x": image[None, :, : 2 + i % 3]} for i, image in enumerate(images)], full
    )
    parts = [part_of(job, i + 1, of) for i in range(of)]
    order.shuffle(parts)
    cut = order.randint(0, of)
    halves = [merge(half) for half in (parts[:cut], parts[cut:]) if half]
    assert encode_ranges(merge(halves)) == encode_ranges(collect_locally(job))
    assert sum(part.samples for part in parts) == len(images)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_attention"])
def test_parts_of_a_real_network_are_one_run_whatever_the_cores(name: str) -> None:
    job = CollectionJob(
        GraphIndex(qdq.load(NETWORKS / f"{name}.onnx")),
        qdq.plan(NETWORKS / f"{name}.onnx"),
        str(NETWORKS / "digits-calibration.npz"),
        True,
    )
    whole = encode_ranges(collect_locally(job))
    assert encode_ranges(merge([part_of(job, i, 5) for i in (3, 1, 5, 2, 4)])) == whole
    assert encode_ranges(collect_locally(job, Observing(cores=1))) == whole


def test_a_part_is_every_nth_sample() -> None:
    data = [{"x": np.full((1, 3, 6, 6), float(i), np.float32)} for i in range(1, 8)]
    job = job_of(convolution(), data)
    (x,) = (item for item in part_of(job, 2, 3).by_tensor if item.tensor == "x")
    assert x.amax == 5.0  # samples 2 and 5 of 7
    assert part_of(job, 2, 3).samples == 2


def test_constants_are_counted_once_in_all_parts() -> None:
    nodes = [
        node("Add", ["x", "k"], "a"),
        node("Conv", ["a", "w"], "c"),
        node("Add", ["c", "k"], "y"),
    ]
    model = build(
        nodes, {"x": [1, 3, 4, 4]}, ["y"], {"w": noise(3, 3, 1, 1), "k": noise(1, 3, 4, 4)}
    )
    job = job_of(model, [{"x": noise(1, 3, 4, 4, seed=i)} for i in range(4)])
    assert encode_ranges(merge([part_of(job, 2, 2), part_of(job, 1, 2)])) == encode_ranges(
        collect_locally(job)
    )


def test_noise_scripts_and_subsets_are_dealt_too(tmp_path: Path) -> None:
    script = tmp_path / "loader.py"
    script.write_text(
        "import numpy as np\ndef load_data():\n    for i in range(5):\n        yield {'x': np.full((1, 3, 6, 6), i + 1.0, np.float32)}\n"
    )
    for data in ("noise", Subset("noise", 5, 3), str(script), Subset(str(script), 4)):
        job = job_of(convolution(), data)
        assert encode_ranges(merge([part_of(job, i, 3) for i in (1, 2, 3)])) == encode_ranges(
            collect_locally(job)
        )


def test_a_generator_is_dealt_once() -> None:
    data = [{"x": np.full((1, 3, 6, 6), float(i), np.float32)} for i in range(1, 8)]
    got = part_of(job_of(convolution(), iter(data)), 3, 3)
    assert encode_ranges(got) == encode_ranges(part_of(job_of(convolution(), data), 3, 3))


def test_ranges_of_different_data_join() -> None:
    model, images = convolution(), [{"x": noise(1, 3, 6, 6, seed=i)} for i in range(4)]
    ranges = [
        collect_locally(job_of(model, images[:2])),
        collect_locally(job_of(model, images[2:])),
    ]
    named = [
        Ranges(r.model, name, r.samples, r.by_tensor, r.sizes, groups=r.groups)
        for name, r in zip(("night", "day"), ranges, strict=True)
    ]
    joined = merge(named)
    assert (joined.data, joined.samples) == ("day + night", 4)
    assert [
        (r.tensor, r.amax, r.histogram and r.histogram.to_bytes()) for r in joined.by_tensor
    ] == [
        (r.tensor, r.amax, r.histogram and r.histogram.to_bytes())
        for r in collect_locally(job_of(model, images)).by_tensor
    ]
    with pytest.raises(DataError, match="day is in two of the ranges"):
        merge([joined, named[1]])


def test_what_does_not_belong_together_is_not_merged() -> None:
    job = job_of(convolution(), "noise")
    first, second = part_of(job, 1, 2), part_of(job, 2, 2)
    with pytest.raises(DataError, match="part 1/2 of noise is passed twice"):
        merge([first, second, first])
    with pytest.raises(DataError, match="split into 2 and 3 parts"):
        merge([first, part_of(job, 2, 3)])
    with pytest.raises(DataError, match="Pass ranges of one model"):
        merge([first, part_of(job_of(two_layers(), "noise"), 2, 2)])
    with pytest.raises(DataError, match="--method max only"):
        merge([first, part_of(job_of(convolution(), "noise", full=False), 2, 2)])


def test_scales_come_from_all_parts_only() -> None:
    from qdq.calibration.methods import parse_method
    from qdq.calibration.scale_choice import choose_scales

    job = job_of(convolution(), "noise")
    with pytest.raises(DataError, match="the ranges lack part 1/2 of the samples"):
        choose_scales(job.index, job.plan, part_of(job, 2, 2), parse_method("mse"))
    with pytest.raises(DataError, match="largest values only"):
        choose_scales(
            job.index,
            job.plan,
            collect_locally(job_of(convolution(), "noise", full=False)),
            parse_method("mse"),
        )


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_file_of_ranges_gives_the_same_ranges(tmp_path: Path) -> None:
    ranges = collect_locally(job_of(two_layers(), "noise"))
    write_ranges(tmp_path / "r", ranges)
    assert (
        encode_ranges(read_ranges(tmp_path / "r"))
        == encode_ranges(ranges)
        == (tmp_path / "r").read_bytes()
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0), st.integers(0, 255))
def test_a_file_that_was_cut_or_changed_is_refused(place: int, byte: int) -> None:
    content = encode_ranges(collect_locally(job_of(convolution(), "noise")))
    cut = place % len(content)
    with pytest.raises(DataError, match=r"r: "):
        decode_ranges(content[:cut], "r")
    changed = content[:cut] + bytes([byte]) + content[cut + 1 :]
    if changed != content:
        with pytest.raises(DataError, match=r"r: "):
            decode_ranges(changed, "r")


@pytest.mark.parametrize("grade", [-1, -1000, 12])
def test_a_file_of_ranges_with_a_grade_that_does_not_exist_is_refused(grade: int) -> None:
    ranges = part_of(job_of(two_layers(), "noise"), 1, 1)
    (first, *others) = ranges.by_tensor
    assert first.histogram is not None
    graded = msgspec.structs.replace(first, by_grade=((grade, first.histogram),))
    damaged = msgspec.structs.replace(ranges, by_tensor=(graded, *others))
    with pytest.raises(DataError, match=r"d\.ranges"):
        decode_ranges(encode_ranges(damaged), "d.ranges")


@pytest.mark.parametrize("count", [0, -1])
def test_a_file_of_ranges_with_channels_of_no_values_is_refused(count: int) -> None:
    ranges = part_of(job_of(two_layers(), "noise"), 1, 1)
    (first, *others) = ranges.by_tensor
    assert first.moments is not None
    moments = msgspec.structs.replace(first.moments, count=count)
    empty = msgspec.structs.replace(first, moments=moments)
    damaged = msgspec.structs.replace(ranges, by_tensor=(empty, *others))
    with pytest.raises(DataError, match=r"d\.ranges: the file does not hold ranges"):
        decode_ranges(encode_ranges(damaged), "d.ranges")


def test_a_checkpoint_is_no_file_of_ranges_and_the_other_way_round(tmp_path: Path) -> None:
    ranges = collect_locally(job_of(convolution(), "noise"))
    write_ranges(tmp_path / "c", Checkpoint("run", (ranges,)))
    write_ranges(tmp_path / "r", ranges)
    with pytest.raises(DataError, match="does not hold ranges"):
        read_ranges(tmp_path / "c")
    with pytest.raises(DataError, match="does not hold a checkpoint"):
        read_checkpoint(tmp_path / "r")


def planned(folder: Path) -> tuple[Path, Path, Path]:
    """Return a model, its plan and its data as files."""
    model, plan = save(tiny_model(), folder / "model.onnx"), folder / "plan.yaml"
    assert run("plan", model, "-o", plan)[0] == 0
    return model, plan, samples(folder / "samples", 7)


def test_eight_machines_and_a_merge_write_the_bytes_of_one_run(tmp_path: Path) -> None:
    model, plan, data = planned(tmp_path)
    code, out, _ = run(
        "calibrate",
        model,
        plan,
        "--data",
        data,
        "-o",
        tmp_path / "scales.json",
        "--save-ranges",
        tmp_path / "whole.ranges",
    )
    assert (code, "wrote" in out) == (0, True)
    parts = [tmp_path / f"{i}.ranges" for i in range(1, 9)]
    for i, part in enumerate(parts, 1):
        assert (
            run("calibrate", model, plan, "--data", data, "--shard", f"{i}/8", "-o", part)[0] == 0
        )
    code, out, _ = run("ranges", "merge", *parts[::-1], "-o", tmp_path / "merged.ranges")
    assert (code, "over 7 samples of samples" in out) == (0, True)
    assert (tmp_path / "merged.ranges").read_bytes() == (tmp_path / "whole.ranges").read_bytes()


def test_one_shard_of_one_is_the_whole(tmp_path: Path) -> None:
    model, plan, data = planned(tmp_path)
    assert (
        run(
            "calibrate",
            model,
            plan,
            "--data",
            data,
            "--shard",
            "1/1",
            "-o",
            tmp_path / "one.ranges",
        )[0]
        == 0
    )
    assert (
        run(
            "calibrate",
            model,
            plan,
            "--data",
            data,
            "-o",
            tmp_path / "s.json",
            "--save-ranges",
            tmp_path / "whole.ranges",
        )[0]
        == 0
    )
    assert (tmp_path / "one.ranges").read_bytes() == (tmp_path / "whole.ranges").read_bytes()


def test_quantize_saves_the_ranges_that_calibrate_saves(tmp_path: Path) -> None:
    model, plan, data = planned(tmp_path)
    assert (
        run(
            "quantize",
            model,
            "--data",
            data,
            "-o",
            tmp_path / "out.onnx",
            "--save-ranges",
            tmp_path / "a.ranges",
        )[0]
        == 0
    )
    assert (
        run(
            "calibrate",
            model,
            plan,
            "--data",
            data,
            "-o",
            tmp_path / "s.json",
            "--save-ranges",
            tmp_path / "b.ranges",
        )[0]
        == 0
    )
    assert (tmp_path / "a.ranges").read_bytes() == (tmp_path / "b.ranges").read_bytes()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--shard", "9/8"),
            "--shard '9/8': a shard has the form I/N, with I from 1 to N. Pass one such as 2/8.",
        ),
        (("--shard", "0/8"), "such as 2/8"),
        (("--shard", "2"), "such as 2/8"),
        (("--shard", "1/2", "--save-ranges", "x.ranges"), "Drop --save-ranges"),
        (("--max-memory", "4"), "a size is a number and a unit. Pass one such as 4GB"),
        (("--max-memory", "1MB"), "Pass --max-memory"),
        (("--device", "gpu"), "unknown device 'gpu'"),
        (
            ("--workers", "2", "--scheduler", "tcp://x:1"),
            "--workers and --scheduler exclude each other",
        ),
    ],
)
def test_options_that_cannot_be_met_end_in_one_line(
    tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    model, plan, data = planned(tmp_path)
    code, _, err = run("calibrate", model, plan, "--data", data, "-o", tmp_path / "out", *options)
    assert (code, err.count("\n"), says in err) == (2, 1, True), err
    assert not (tmp_path / "out").exists()


def test_merge_names_the_file_that_is_wrong(tmp_path: Path) -> None:
    model, _, data = planned(tmp_path)
    for wrong in (model, tmp_path / "nothing.ranges", data):
        code, _, err = run("ranges", "merge", wrong, "-o", tmp_path / "out.ranges")
        assert (code, err.count("\n"), str(wrong) in err) == (2, 1, True), err
    assert not (tmp_path / "out.ranges").exists()


# --- memory and devices ----------------------------------------------------------------------------------------------


def deep(layers: int = 12, size: int = 128) -> onnx.ModelProto:
    """Return a chain of convolutions whose activations are 1 MB each at 128 x 128."""
    nodes = [
        n
        for i in range(layers)
        for n in (
            node("Conv", [f"r{i}", f"w{i}"], f"c{i}", pads=[1] * 4),
            node("Relu", [f"c{i}"], f"r{i + 1}"),
        )
    ]
    weights = {f"w{i}": noise(16, 16, 3, 3, seed=i) * np.float32(0.1) for i in range(layers)}
    return build(nodes, {"r0": [1, 16, size, size]}, [f"r{layers}"], weights)


def test_the_bytes_of_tensors_are_known_from_a_sample() -> None:
    job = job_of(two_layers(), "noise")
    sizes = tensor_bytes(job.index, job.observed_tensors, {"x": np.zeros((2, 3, 7, 5), np.float32)})
    assert sizes == {"x": 2 * 3 * 7 * 5 * 4, "r": 2 * 4 * 7 * 5 * 4}


def test_little_memory_takes_more_passes_and_gives_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import psutil

    job = job_of(deep(), Subset("noise", 6))
    whole, progress = collect_locally(job), list[int]()
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: _Resident())
    limit = (
        4 * (1 << 20) + 24 * 4096 * 8 + 3 * 4 * (1 << 20)
    )  # three tensors of two samples at a time
    passes = list[int]()
    monkeypatch.setattr("qdq.observers.collection.split_into_passes", _counting(passes))
    got = collect_locally(job, Observing(max_memory=limit), progress.append)
    assert encode_ranges(got) == encode_ranges(whole)
    assert passes == [4]
    assert progress[-1] == 6
    assert progress == sorted(progress)
    with pytest.raises(UsageError, match="Pass --max-memory"):
        collect_locally(job, Observing(max_memory=limit // 3))


class _Resident:
    rss = 0


def _counting(passes: list[int]) -> Any:
    from qdq.observers.memory_budget import split_into_passes

    def counted(*arguments: Any) -> Any:
        groups = split_into_passes(*arguments)
        passes.append(len(groups))
        return groups

    return counted


def test_a_generator_cannot_be_run_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ({"r0": noise(1, 16, 128, 128, seed=i)} for i in range(3))
    monkeypatch.setattr(
        "qdq.observers.collection.split_into_passes",
        lambda _index, observed, *_: tuple((tensor,) for tensor in observed),
    )
    with pytest.raises(DataError, match="only once"):
        collect_locally(job_of(deep(2), data), Observing(max_memory=1))


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="needs Linux to tell the most memory of a process",
)
def test_memory_stays_below_what_is_allowed(tmp_path: Path) -> None:
    model, limit = save(deep(40, 256), tmp_path / "deep.onnx"), 330
    plan = tmp_path / "plan.yaml"
    assert run("plan", model, "-o", plan)[0] == 0
    peaks = {}
    for name, options in (("free", ()), ("bound", ("--max-memory", f"{limit}MB"))):
        peaks[name] = peak_of(
            "calibrate",
            model,
            plan,
            "--data",
            "noise",
            "-o",
            tmp_path / name,
            "--save-ranges",
            tmp_path / f"{name}.ranges",
            *options,
        )
    assert peaks["bound"] < limit < peaks["free"], peaks
    assert (tmp_path / "bound.ranges").read_bytes() == (tmp_path / "free.ranges").read_bytes()


def peak_of(*argv: object) -> float:
    """Return the most memory, in MB, that the command line holds in a process of its own; `ru_maxrss` would count the process it was forked from."""
    code = "import sys; from qdq.cli import main; assert main(sys.argv[1:]) == 0; print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1]) * 1024 / 1e6


def test_a_cuda_that_is_missing_is_an_error_unless_the_cpu_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from qdq.runtime import devices

    monkeypatch.setattr(devices.ort, "get_available_providers", lambda: list(devices.CPU))
    devices._find_cuda_problem.cache_clear()
    job = job_of(convolution(), "noise")
    with pytest.raises(UsageError, match="no CUDA device: this ONNX Runtime was built without it"):
        collect_locally(job, Observing(device="cuda"))
    assert encode_ranges(collect_locally(job, Observing(device="cuda,cpu"))) == encode_ranges(
        collect_locally(job)
    )
    devices._find_cuda_problem.cache_clear()


def test_cuda_as_it_is_here_is_used_or_refused_without_a_word_on_standard_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from qdq.runtime.devices import CPU, execution_providers

    assert execution_providers("cuda,cpu") in (CPU, ("CUDAExecutionProvider", *CPU))
    assert capfd.readouterr() == ("", "")


def test_nothing_is_merged_from_nothing() -> None:
    with pytest.raises(DataError, match="no ranges to merge"):
        merge([])


def test_long_names_that_begin_alike_keep_their_own_checkpoints(tmp_path: Path) -> None:
    model, data = save(tiny_model(), tmp_path / "model.onnx"), samples(tmp_path / "samples", 2)
    name = "x" * 80
    (tmp_path / f"{name}a.onnx.checkpoint").write_bytes(b"another run's")
    assert run("quantize", model, "--data", data, "-o", tmp_path / f"{name}b.onnx")[0] == 0
    assert (tmp_path / f"{name}a.onnx.checkpoint").read_bytes() == b"another run's"
    assert run("quantize", model, "--data", data, "-o", tmp_path / f"{name}a.onnx")[0] == 2
