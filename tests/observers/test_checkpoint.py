"""Runs that are killed and go on: the bytes of a run that was not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qdq
from qdq.errors import DataError
from qdq.graph.index import GraphIndex
from qdq.observers.collection import CollectionJob, Observing, collect_locally
from qdq.ranges.range_file import encode_ranges, read_checkpoint, write_ranges
from tests.support.cli_runner import run, samples, save, tiny_model
from tests.support.graphs import convolution, noise
from tests.support.paths import NETWORKS

KILLS = 10


class Stopped(BaseException):
    """What stops a run here."""


def stop_at(sample: int) -> Any:
    """Return a progress that stops the run after some samples."""

    def progress(done: int) -> None:
        if done >= sample:
            raise Stopped

    return progress


def job(images: int = 9) -> CollectionJob:
    model = convolution()
    return CollectionJob(
        GraphIndex(qdq.load(model)),
        qdq.plan(model),
        [{"x": noise(1, 3, 6, 6, seed=i)} for i in range(images)],
        full=True,
    )


def keeping(path: Path, **options: Any) -> Observing:
    return Observing(checkpoint=path, interval=0.0, **options)


def test_a_run_goes_on_after_the_last_checkpoint(tmp_path: Path) -> None:
    path, whole = tmp_path / "c", encode_ranges(collect_locally(job()))
    with pytest.raises(Stopped):
        collect_locally(job(), keeping(path), stop_at(5))
    assert read_checkpoint(path).passes[0].samples == 4
    done = list[int]()
    assert encode_ranges(collect_locally(job(), keeping(path, resume=True), done.append)) == whole
    assert done == [4, 5, 6, 7, 8, 9]
    assert (
        encode_ranges(collect_locally(job(), keeping(path, resume=True))) == whole
    )  # all was done: nothing is run again


def test_several_passes_go_on_where_they_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    model = tiny_model()
    job = CollectionJob(
        GraphIndex(qdq.load(model)),
        qdq.plan(model),
        [{"x": noise(1, 4, 8, 8, seed=i)} for i in range(6)],
        full=True,
    )
    whole = encode_ranges(collect_locally(job))
    monkeypatch.setattr(
        "qdq.observers.collection.split_into_passes",
        lambda _index, observed, *_: tuple((tensor,) for tensor in observed),
    )
    for stop in (2, 4, 5):
        with pytest.raises(Stopped):
            collect_locally(job, keeping(path, max_memory=1, resume=True), stop_at(stop))
    assert [ranges.finished for ranges in read_checkpoint(path).passes] == [True, False]
    assert encode_ranges(collect_locally(job, keeping(path, resume=True))) == whole


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(Stopped):
        collect_locally(job(), keeping(path), stop_at(5))
    other = CollectionJob(job().index, job().plan, "noise", full=True)
    with pytest.raises(DataError, match="checkpoint of another run"):
        collect_locally(other, keeping(path, resume=True))
    checkpoint = read_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="truncated or damaged"):
        collect_locally(job(), keeping(path, resume=True))
    write_ranges(path, checkpoint)
    assert collect_locally(job(), keeping(path, resume=True)).samples == 9


def test_data_that_changed_since_is_noticed(tmp_path: Path) -> None:
    model = save(tiny_model(), tmp_path / "model.onnx")
    folder = samples(tmp_path / "samples", 5)
    job = CollectionJob(GraphIndex(qdq.load(model)), qdq.plan(model), str(folder), full=True)
    with pytest.raises(Stopped):
        collect_locally(job, keeping(tmp_path / "c"), stop_at(3))
    np.savez(folder / "0.npz", x=np.ones((1, 4, 8, 8), np.float32) * 100)
    with pytest.raises(DataError, match="checkpoint of another run"):
        collect_locally(job, keeping(tmp_path / "c", resume=True))


def test_a_checkpoint_is_never_lost_by_accident(tmp_path: Path) -> None:
    model, out, data = (
        save(tiny_model(), tmp_path / "model.onnx"),
        tmp_path / "out.onnx",
        samples(tmp_path / "samples", 5),
    )
    index, plan = GraphIndex(qdq.load(model)), qdq.plan(model)
    checkpoint = tmp_path / "out.onnx.checkpoint"
    with pytest.raises(Stopped):
        collect_locally(
            CollectionJob(index, plan, str(data), full=True), keeping(checkpoint), stop_at(3)
        )
    before = checkpoint.read_bytes()
    code, _, err = run("quantize", model, "--data", data, "-o", out)
    assert (code, "Pass --resume to continue it or --force" in err, checkpoint.read_bytes()) == (
        2,
        True,
        before,
    )
    assert run("quantize", model, "--data", data, "-o", out, "--resume")[0] == 0
    assert not checkpoint.exists()
    assert run("quantize", model, "--data", data, "-o", tmp_path / "whole.onnx")[0] == 0
    assert out.read_bytes() == (tmp_path / "whole.onnx").read_bytes()


#: Yields pictures at a speed that leaves time to kill the run.
SLOW_LOADER = """
import time
import numpy as np

def load_data():
    with np.load({path!r}) as given:
        images = given["image"]
    for i in range(512):
        time.sleep(0.003)
        yield {{"image": images[i % len(images)][None]}}
"""


def test_a_run_killed_ten_times_writes_the_bytes_of_one_that_was_not(tmp_path: Path) -> None:
    model, plan, data = (
        NETWORKS / "digits_plain.onnx",
        tmp_path / "plan.yaml",
        tmp_path / "loader.py",
    )
    assert run("plan", model, "-o", plan)[0] == 0
    data.write_text(SLOW_LOADER.format(path=str(NETWORKS / "digits-calibration.npz")))
    arguments = (
        "calibrate",
        model,
        plan,
        "--data",
        data,
        "-o",
        tmp_path / "scales.json",
        "--save-ranges",
        tmp_path / "r",
        "--checkpoint-every",
        0,
        "--resume",
    )
    targets = sorted(random.Random(0).sample(range(1, 450), KILLS))
    reached = [
        killed_at(target, [str(a) for a in arguments], tmp_path / "scales.json.checkpoint")
        for target in targets
    ]
    assert reached == sorted(reached)
    assert reached[-1] < 512
    assert run(*arguments)[0] == 0
    assert (
        run(
            "calibrate",
            model,
            plan,
            "--data",
            data,
            "-o",
            tmp_path / "s",
            "--save-ranges",
            tmp_path / "whole",
        )[0]
        == 0
    )
    assert (tmp_path / "r").read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "scales.json").read_bytes() == (tmp_path / "s").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "plan.yaml",
        "loader.py",
        "scales.json",
        "r",
        "s",
        "whole",
    }


def killed_at(target: int, arguments: list[str], checkpoint: Path) -> int:
    """Kill the command line when its checkpoint holds some samples, maybe in the middle of writing; return how many it holds then."""
    process = subprocess.Popen([sys.executable, "-m", "qdq", *arguments], stdout=subprocess.DEVNULL)
    while process.poll() is None and not (checkpoint.exists() and samples_in(checkpoint) >= target):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return samples_in(checkpoint)


def samples_in(checkpoint: Path) -> int:
    return sum(ranges.samples for ranges in read_checkpoint(checkpoint).passes)
