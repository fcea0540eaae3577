"""The package installs into a new environment, from a wheel and editable, and plain `parlai` knows it there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
TORCH = "torch==2.13.0"


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def site_packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory) -> Path:
    """A new environment with what the README installs before us, and without us."""
    folder = tmp_path_factory.mktemp("dependencies") / "venv"
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    lock = ROOT / "requirements" / "lock.txt"
    run(*pip, "--constraint", lock, TORCH, cwd=folder)
    run(*pip, "--no-deps", "--requirement", lock, cwd=folder)
    return folder


@pytest.fixture
def environment(dependencies, tmp_path) -> Path:
    """A new environment that sees those dependencies and nothing else."""
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    (site_packages(folder) / "dependencies.pth").write_text(str(site_packages(dependencies)) + "\n")
    for name in ("parlai",):
        script = (dependencies / "bin" / name).read_text().splitlines()
        target = folder / "bin" / name
        target.write_text("\n".join([f"#!{folder / 'bin' / 'python'}", *script[1:]]) + "\n")
        target.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the repository's files as git would hand them out, without build leftovers."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def knows_us(environment: Path, folder: Path) -> None:
    parlai = environment / "bin" / "parlai"
    plugins = run(parlai, "safety_plugins", cwd=folder)
    assert "-m safety:cringe" in plugins and "--mutators safety_reply" in plugins
    shown = run(parlai, "display_data", "-t", "safety:tiny", "-dt", "valid", "-n", "1", cwd=folder)
    assert "loaded" in shown
    code = (
        "from parlai_safety import resources; print(resources.recipe('cringe/demo'), resources.folder('zoo').is_dir())"
    )
    found = run(environment / "bin" / "python", "-c", code, cwd=folder)
    assert "demo.yaml True" in found
    assert "-m safety:cringe" in run(
        environment / "bin" / "python", "-m", "parlai_safety", "safety_plugins", cwd=folder
    )


def test_from_a_wheel(environment, clone, tmp_path):
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, clone, cwd=tmp_path)
    (wheel,) = tmp_path.glob("parlai_safety-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "corpus/data/ordinary.train.jsonl",
        "evaluation/templates/report.html.j2",
        "py.typed",
        "judges/words.txt",
    ):
        assert f"parlai_safety/{part}" in names
    assert "parlai_internal/scripts/parlai_safety_hook.py" in names
    assert not [name for name in names if name.startswith(("tests/", "projects/", "zoo/", "parlai_internal/__init__"))]
    run(*pip, "install", "--quiet", wheel, cwd=tmp_path)
    assert (site_packages(environment) / "parlai_safety" / "__init__.py").is_file()
    knows_us(environment, tmp_path)


def test_editable(environment, clone, tmp_path):
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, "--editable", clone, cwd=tmp_path)
    assert not (site_packages(environment) / "parlai_safety").exists()
    knows_us(environment, tmp_path)
