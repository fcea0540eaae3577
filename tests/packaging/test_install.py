"""The package installs into a new environment, from a wheel and editable, and plain `parlai` knows it there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def applies(requirement: Requirement, extras: Collection[str] = ()) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": one}) for one in extras or {""})


def pinned() -> list[metadata.Distribution] | None:
    """What the README installs before us, as found here; None where a part is missing or of another version.

    torch alone comes with its own dependencies: those that the lock does not name are followed.
    """
    lock = [line.partition("#")[0] for line in (ROOT / "requirements" / "lock.txt").read_text().splitlines()]
    wanted = [one for one in map(Requirement, filter(str.strip, [*lock, TORCH])) if applies(one)]
    locked = {canonicalize_name(one.name) for one in wanted[:-1]}
    found: dict[str, metadata.Distribution] = {}
    for one in wanted:  # which grows
        name = canonicalize_name(one.name)
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return None
        if found[name].version not in one.specifier:
            return None
        if name not in locked:
            wanted += [more for more in map(Requirement, found[name].requires or []) if applies(more, one.extras)]
    return list(found.values())


@pytest.fixture(scope="module")
def dependencies(tmp_path_factory) -> Path:
    """An environment with what the README installs before us, and without us.

    `make setup` has made one from the same pins in the same way: its packages are linked, one by one and no others.
    Where this environment has other versions, a new one is installed.
    """
    folder = tmp_path_factory.mktemp("dependencies") / "venv"
    distributions = pinned()
    if distributions is None:
        venv.create(folder, with_pip=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        lock = ROOT / "requirements" / "lock.txt"
        run(*pip, "--constraint", lock, TORCH, cwd=folder)
        run(*pip, "--no-deps", "--requirement", lock, cwd=folder)
        return folder
    site_packages(folder).mkdir(parents=True)
    for distribution in distributions:
        for name in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
            link = site_packages(folder) / name
            if not link.is_symlink():
                link.symlink_to(str(distribution.locate_file(name)))
    (folder / "bin").mkdir()
    shutil.copy(Path(sys.executable).parent / "parlai", folder / "bin")
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
