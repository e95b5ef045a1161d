"""The hooks in a separate repository: real pre-commit, with a clone of this repository as source.

pre-commit creates an environment and installs qdq into it with pip, which needs the network or a
filled cache.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.support.defects import DEFECTS, good
from tests.support.lfs import POINTER
from tests.support.paths import NETWORKS, PEERS, ROOT

#: Messages of pip without network.
OFFLINE = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "No matching distribution found",
)
#: Enough models for pre-commit to start several processes of at least four files.
MANY = 24

#: Files of pip itself.
PIP = re.compile(r"/site-packages/(pip|setuptools|pkg_resources|wheel)\b")


class Repository:
    """A fresh git repository whose hooks come from a clone of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.hooks = folder / "repository", folder / "hooks"
        self.environment = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("GIT_", "PYTHONPATH", "PRE_COMMIT"))
        }
        self.environment |= {
            "PRE_COMMIT_HOME": str(folder / "home"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
        }
        self.folder.mkdir()
        self._clone()
        self.git(self.folder, "init", "-q")

    def _clone(self) -> None:
        """Commit the working tree of this checkout to a separate repository."""
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (self.hooks / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.hooks / name)
        self.git(self.hooks, "init", "-q")
        self.commit(self.hooks)

    def git(self, folder: Path, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def commit(self, folder: Path) -> None:
        self.git(folder, "add", "-A")
        self.git(
            folder,
            "-c",
            "user.name=tests",
            "-c",
            "user.email=tests@example.com",
            "commit",
            "-q",
            "-m",
            "tests",
        )

    def configure(self, hook: str) -> None:
        revision = self.git(self.hooks, "rev-parse", "HEAD")
        text = f"repos:\n  - repo: {self.hooks.as_uri()}\n    rev: {revision}\n    hooks: [{{id: {hook}}}]\n"
        (self.folder / ".pre-commit-config.yaml").write_text(text)
        self.git(self.folder, "add", "-A")

    def run(self) -> tuple[int, str]:
        """Run the hook on all files of the repository, which are added first."""
        self.git(self.folder, "add", "-A")
        command = [sys.executable, "-m", "pre_commit", "run", "--all-files", "--color", "never"]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode and any(line in done.stdout + done.stderr for line in OFFLINE):
            pytest.skip("pip cannot fetch what qdq needs")
        return done.returncode, done.stdout

    @property
    def environment_folder(self) -> Path:
        """The environment that pre-commit installed qdq into, with its dependencies and no extra."""
        (command,) = (self.folder.parent / "home").glob("*/py_env-*/bin/qdq")
        return command.parents[1]

    def qdq(self, *arguments: object) -> tuple[int, str, str]:
        """Run a command of the installed qdq in the repository's folder."""
        done = subprocess.run(
            [self.environment_folder / "bin" / "qdq", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr


def model(defect: str = "") -> onnx.ModelProto:
    """Return the good model, or one with a defect."""
    damaged_model = good()
    if defect:
        DEFECTS[defect][0](damaged_model)
    return damaged_model


@pytest.mark.skipif(
    importlib.util.find_spec("pre_commit") is None or shutil.which("git") is None,
    reason="needs git and pre-commit",
)
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout")
def test_the_hooks_in_a_real_repository(tmp_path: Path) -> None:
    """One test for all, since installing the environment takes most of the time."""
    repository = Repository(tmp_path)
    folder = repository.folder
    repository.configure("qdq-check")
    only_what_it_should(repository, folder)
    pointers_and_external_data(repository, folder)
    several_processes(repository, folder)
    the_project_file(repository, folder)
    fixing(repository, folder)
    commands_of_the_core(repository, folder)
    the_line_that_installs_more(repository, folder)
    the_size_of_the_core(repository)


def only_what_it_should(repository: Repository, folder: Path) -> None:
    """Correct models pass. Other files are not read; they would fail."""
    onnx.save(model(), folder / "good.onnx")
    for name in ("notes.txt", "weights.onnx.data", "onnx", "good.onnx.bak"):
        (folder / name).write_bytes(b"no model")
    code, out = repository.run()
    assert code == 0, out
    (folder / "notes.onnx").write_bytes(b"no model")
    code, out = repository.run()
    assert code == 1
    assert "exit code: 2" in out
    assert out.count("qdq: ") == 1
    assert "notes.onnx: the file is not an ONNX file" in out
    (folder / "notes.onnx").unlink()


def pointers_and_external_data(repository: Repository, folder: Path) -> None:
    (folder / "models").mkdir()
    onnx.save(
        model("uint8"),
        folder / "models" / "large.onnx",
        save_as_external_data=True,
        location="large.onnx.data",
        size_threshold=0,
    )
    (folder / "models" / "pointer.onnx").write_bytes(POINTER)
    code, out = repository.run()
    assert code == 1
    assert "models/large.onnx: 1 error\n  error uint8: " in out
    assert (
        "qdq: models/pointer.onnx: the file is a Git LFS pointer, not the model itself. Run 'git lfs pull' first.\n"
        in out
    )
    assert "good.onnx: no findings" in out
    for name in ("large.onnx", "large.onnx.data", "pointer.onnx"):
        (folder / "models" / name).unlink()


def several_processes(repository: Repository, folder: Path) -> None:
    """Every model is reported once by several processes, and none is changed."""
    for i in range(MANY):
        onnx.save(model("wrong weight axis"), folder / "models" / f"{i}.onnx")
    code, out = repository.run()
    assert code == 1
    assert [out.count(f"models/{i}.onnx: 1 warning\n") for i in range(MANY)] == [1] * MANY
    assert out.count(" models: ") >= min(2, os.cpu_count() or 1)
    assert repository.git(folder, "diff", "--name-only") == ""


def the_project_file(repository: Repository, folder: Path) -> None:
    (folder / "qdq.yaml").write_text("check: {per-file-ignores: {'models/*.onnx': [wrong-axis]}}\n")
    code, out = repository.run()
    assert code == 0, out
    (folder / "qdq.yaml").unlink()
    shutil.rmtree(folder / "models")


def fixing(repository: Repository, folder: Path) -> None:
    repository.configure("qdq-fix")
    onnx.save(model("uint8"), folder / "fixed.onnx")
    before = onnx.load(folder / "fixed.onnx")
    code, out = repository.run()
    assert code == 1
    assert "files were modified by this hook" in out
    after = onnx.load(folder / "fixed.onnx")
    assert {t.data_type for t in before.graph.initializer} - {
        t.data_type for t in after.graph.initializer
    } == {onnx.TensorProto.UINT8}
    code, out = repository.run()
    assert code == 0, out
    assert onnx.load(folder / "good.onnx") == model()


def commands_of_the_core(repository: Repository, folder: Path) -> None:
    """`pip install qdq` brings what these commands need."""
    for package in ("onnxruntime", "polygraphy", "PIL", "onnx_graphsurgeon", "tensorrt_rtx"):
        assert not list(repository.environment_folder.rglob(f"site-packages/{package}"))
    float_model = NETWORKS / "digits_cnn.onnx"
    peer = PEERS / "torch_script.onnx"

    assert repository.qdq("plan", float_model, "-o", "plan.yaml", "--force")[0] == 0
    assert repository.qdq("strip", peer, "-o", "stripped.onnx")[::2] == (0, "")
    assert repository.qdq("check", "good.onnx") == (0, "good.onnx: no findings\n", "")
    assert repository.qdq("check", "--fix", "good.onnx")[0] == 0
    assert repository.qdq("diff", peer, peer)[::2] == (0, "")
    assert repository.qdq("explain", float_model, "logits")[::2] == (0, "")
    assert repository.qdq("rules", "show", "residual-inputs")[::2] == (0, "")
    assert repository.qdq("facts")[::2] == (0, "")
    assert repository.qdq("new-rule", "my-rule", "--rules", "rules")[::2] == (0, "")
    code, out, err = repository.qdq("test", "rules")
    assert (code, out.splitlines()[-1]) == (0, "3 of 3 hold")
    assert err.startswith("qdq: the cases are planned, but their models are not run. ")
    assert (folder / "stripped.onnx").exists()


def the_line_that_installs_more(repository: Repository, folder: Path) -> None:
    model = NETWORKS / "digits_cnn.onnx"
    quantize = ("quantize", model, "-o", "q.onnx", "--data", "noise")
    runtime = (
        "qdq: ONNX Runtime, which runs models on samples, is not installed. "
        "Install it with pip install 'qdq[run]'.\n"
    )
    assert repository.qdq(*quantize) == (2, "", runtime)
    assert not (folder / "q.onnx").exists()
    assert repository.qdq("sensitivity", model, "--data", "noise") == (2, "", runtime)
    code, _, err = repository.qdq("check", "good.onnx", "--engine", "--target", "rtx:sm86")
    assert code == 2
    assert err.endswith("is not installed. Install it with pip install 'qdq[rtx]'.\n")


def the_size_of_the_core(repository: Repository) -> None:
    """What pip installs for `qdq`, with the compiled bytecode and without pip itself."""
    sizes = [
        path.stat().st_size
        for path in repository.environment_folder.rglob("*")
        if path.is_file() and not path.is_symlink() and not PIP.search(str(path))
    ]
    assert sum(sizes) <= 150_000_000
