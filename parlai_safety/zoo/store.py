"""Where the models of the zoo lie, and whether they are whole: `models/safety/NAME` of ParlAI's data folder.

A model's folder appears when it is complete, by one rename, with `manifest.json` in it: how it was made, and the size
and SHA-256 of every file. A lock file beside it lets the ranks of a data-parallel training, or several test processes,
download once; the others wait. A model is used only while its files are what the manifest says; a file whose size and
time of change are as they were when it was last hashed is not hashed again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256, write_json
from parlai_safety.zoo.entries import Entry, entry
from parlai_safety.zoo.fetch import fetch, forget, part_of, written_to
from parlai_safety.zoo.unpack import unpack

FORMAT, VERSION, MANIFEST = "parlai_safety zoo model", 1, "manifest.json"
HASHED = ".hashed.json"

State = Literal["absent", "ready", "altered", "of another version"]


def download(name: str, datapath: str | Path, *, accept_unverified: bool = False) -> Path:
    """Make sure that a model is there, whole and unaltered; this is what `zoo:safety/NAME/…` calls.

    Args:
        name: a model of the registry.
        datapath: ParlAI's data folder.
        accept_unverified: download a file without a known checksum too. Only the user may say so.

    Returns:
        The model's folder.

    Raises:
        SafetyError: the name is unknown, the model is built and was not yet, a checksum is not known, or the download
            fails (see `fetch` and `unpack`).
    """
    found = entry(name)
    folder, state = folder_of(found, datapath), state_of(found, datapath)
    if state == "ready":
        return folder
    if found.build is not None:
        raise _not_built(found, state)
    if not (found.verified or accept_unverified):
        raise _unverified(found)
    with written_to(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            if state_of(found, datapath) != "ready":  # another process may have fetched it meanwhile
                _download(found, folder)
    return folder


def folder_of(found: Entry, datapath: str | Path) -> Path:
    """The folder of a model, which may not be there."""
    return Path(datapath) / "models" / "safety" / found.name


def manifest_of(folder: Path) -> dict[str, Any] | None:
    """What is known of a model that lies in a folder; None where there is none of ours."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = "entry" in found and all({"size", "sha256"} <= set(file) for file in found["files"].values())
        if whole and (found["format"], found["version"]) == (FORMAT, VERSION):
            return dict(found)
    return None


def state_of(found: Entry, datapath: str | Path) -> State:
    """Whether a model can be used: "ready" alone means yes."""
    folder = folder_of(found, datapath)
    manifest = manifest_of(folder)
    if manifest is None:
        return "absent"
    if manifest["entry"] != identity(found):
        return "of another version"
    return "ready" if _unaltered(folder, manifest["files"]) else "altered"


def install(found: Entry, folder: Path, made: Mapping[str, Any], content: Path) -> dict[str, Any]:
    """Put a model where it belongs, all at once; the caller holds the lock.

    Args:
        found: its entry.
        folder: where it belongs; a model that is there is replaced.
        made: how it was made, for the manifest.
        content: a folder beside it that holds its files, and is moved.

    Returns:
        The manifest.

    Raises:
        SafetyError: the main file is not among them, or one has the name of a file that is written here.
    """
    for name in (MANIFEST, HASHED):
        if (content / name).exists():
            raise SafetyError(
                f"What was made for {found.name!r} holds a file {name!r}",
                "Under this name it is kept what the files of a model are, and nobody else may say that",
                "Do not use these files, and report it",
            )
    files = {
        str(path.relative_to(content)): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(content.rglob("*"))
        if path.is_file() and not path.name.endswith(".card.json")  # a judge's card may be written again
    }
    if found.model not in files:
        raise SafetyError(
            f"What was made for {found.name!r} holds {', '.join(files) or 'nothing'}, and no {found.model!r}",
            "The registry says that this is the model's main file",
            "Report it: the registry does not belong to these files",
        )
    manifest = {"format": FORMAT, "version": VERSION, "entry": identity(found), **made, "files": files}
    write_json(content / MANIFEST, manifest)
    os.chmod(content, 0o755)  # a temporary folder is its maker's alone
    before = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old-"))
    try:
        if folder.exists():
            os.rename(folder, before / "model")
        os.rename(content, folder)
    finally:
        _settle(folder)
    return manifest


def _settle(folder: Path) -> None:
    """Bring back a model that was moved away and has no successor; the caller holds the lock."""
    for before in folder.parent.glob(f".{folder.name}.old-*"):
        if not folder.exists() and (before / "model").exists():
            os.rename(before / "model", folder)
        shutil.rmtree(before, ignore_errors=True)


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """A new folder beside a model's, on the same disk, that is removed if it is still there at the end."""
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.new-"))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from making the same model; one that comes second waits, and says so.

    What a process that was killed has left beside the model's folder is put in order first.
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        sys.stderr.write(f"Another process is fetching or building {folder.name!r}: waiting for it …\n")
        lock.acquire()
    try:
        _settle(folder)
        for leftover in folder.parent.glob(f".{folder.name}.new-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()


def now() -> str:
    """The time, for a manifest."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _download(found: Entry, folder: Path) -> None:
    parts = folder.parent / ".parts"
    sources = []
    with workspace(folder) as content:
        for remote in found.download:
            part = fetch(remote, parts)
            digest, size = remote.sha256 or sha256(part), part.stat().st_size
            sources.append({"url": remote.url, "sha256": digest, "size": size, "checked": remote.sha256 is not None})
            if remote.unpack is None:
                os.replace(part, content / remote.name)
            else:
                try:
                    unpack(part, content, remote.unpack)
                except SafetyError:
                    forget(part)  # whole and useless: nothing of it can be continued
                    raise
        install(found, folder, {"how": "downloaded", "time": now(), "sources": sources}, content)
    for remote in found.download:
        forget(part_of(remote, parts))


def identity(found: Entry) -> dict[str, Any]:
    """What of an entry the files depend on."""
    recipe = None if found.build is None else [found.build.job, found.build.recipe, found.build.take]
    return {
        "name": found.name,
        "version": found.version,
        "download": [[remote.url, remote.sha256, remote.unpack] for remote in found.download],
        "build": recipe,
    }


def _unaltered(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every file is there with its size and hash; hashes only what may have changed since the last time."""
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        known = dict(json.loads((folder / HASHED).read_text(encoding="utf-8")))
    seen = {}
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != wanted["size"]:
            return False
        mark = [path.stat().st_size, path.stat().st_mtime_ns]
        if known.get(name) != mark and sha256(path) != wanted["sha256"]:
            return False
        seen[name] = mark
    if seen != known:
        with suppress(OSError):  # a folder that may only be read is hashed each time
            write_json(folder / HASHED, seen)
    return True


def _not_built(found: Entry, state: State) -> SafetyError:
    got = {
        "absent": f"zoo:safety/{found.name} has not been built on this machine",
        "altered": f"The files of zoo:safety/{found.name} are not those that were built",
        "of another version": f"zoo:safety/{found.name} was built from another version of its recipe",
    }
    return SafetyError(
        got[state],
        "It is not downloaded: it is trained here from the corpus that ships",
        f"Type parlai safety_zoo build {found.name}" + ("" if state == "absent" else " --again true"),
    )


def _unverified(found: Entry) -> SafetyError:
    return SafetyError(
        f"The checksum of zoo:safety/{found.name} is unknown",
        "Its publishers gave none, and a ParlAI model file is a pickle, which can run any code when it is loaded; "
        "nothing here can tell their file from a changed one",
        f"If you trust {found.download[0].url}, type parlai safety_zoo download {found.name} --accept-unverified true",
    )
