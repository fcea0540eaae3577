"""Long jobs that can be cut short: a run folder with its settings, journals that grow a record at a time, progress.

`run.json` holds the settings; a folder with other settings is refused, so that a report never mixes two runs. Each
finished stage leaves `done.json` with its result and its seconds, written last. A journal keeps every whole line
through a kill. Nothing here imports ParlAI.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from parlai_safety import __version__
from parlai_safety.errors import SafetyError
from parlai_safety.files import completed, write_json

LOG_SECONDS = 30.0


class Run:
    """A run folder.

    Args:
        folder: created where it is absent.
        settings: everything that the results depend on; plain JSON values.

    Raises:
        SafetyError: the folder holds a run with other settings, or files that are no run.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        manifest = folder / "run.json"
        if manifest.is_file():
            before = json.loads(manifest.read_text(encoding="utf-8"))
            if before != settings:
                raise SafetyError(
                    f"The folder {str(folder)!r} holds a run with other settings ({_changed(before, settings)} differ)",
                    "A run is only continued with the settings it began with, so that its report stays true",
                    "Give another --out, or delete that folder",
                )
        elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise SafetyError(
                f"The folder {str(folder)!r} is not empty and holds no run of ours",
                "The job writes a model, replies and a report there, and overwrites nothing that it did not make",
                "Give an --out folder that is empty or new",
            )
        else:
            write_json(manifest, settings)

    def result(self, name: str) -> dict[str, Any]:
        """The result of a stage that is done."""
        return dict(json.loads((self.folder / name / "done.json").read_text(encoding="utf-8")))

    def stage(
        self, name: str, work: Callable[[Path], dict[str, Any]], settings: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Do a stage unless it is done; its result must be JSON, `seconds` over all calls is added to it.

        Args:
            name: its folder in the run.
            work: does it, given that folder.
            settings: what the result depends on beside the run's own settings; a stage that began with others is
                refused.

        Raises:
            SafetyError: the stage began with other settings.
        """
        folder = self.folder / name
        done = folder / "done.json"
        if settings is not None:
            _check_stage(folder, json.loads(json.dumps(settings)))
        if done.is_file():
            return self.result(name)
        folder.mkdir(parents=True, exist_ok=True)
        tqdm.write(f"stage {name} …", file=sys.stderr)
        clock = folder / "seconds.json"
        spent = float(json.loads(clock.read_text(encoding="utf-8"))) if clock.is_file() else 0.0
        start = time.monotonic()
        try:
            result = work(folder)
        except KeyboardInterrupt:
            write_json(clock, spent + time.monotonic() - start)
            raise
        result = {**result, "seconds": round(spent + time.monotonic() - start, 1)}
        write_json(done, result)
        return result


def _check_stage(folder: Path, settings: dict[str, Any]) -> None:
    kept = folder / "settings.json"
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(kept, settings)
        return
    before = json.loads(kept.read_text(encoding="utf-8"))
    if before != settings:
        raise SafetyError(
            f"The stage {str(folder)!r} began with other settings ({_changed(before, settings)} differ)",
            "What is there was made with those, and a report must not mix the two",
            "Give another --out, or delete the run's folder",
        )


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(sorted(key for key in {*before, *now} if before.get(key) != now.get(key)))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder while the block runs; where the system has no file locks, do nothing.

    Raises:
        SafetyError: another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "w", encoding="utf-8")
    except OSError as error:
        raise SafetyError(
            f"The folder {str(folder)!r} cannot be written ({error})",
            "Everything that the job finds is written there as it goes",
            "Give an --out folder of yours",
        ) from error
    with lock as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system takes it back when the process ends
        except BlockingIOError as error:
            raise SafetyError(
                f"Another process is at work in the folder {str(folder)!r}",
                "Two at once would write each reply twice, and in another order",
                "Wait until it ends, or give another --out",
            ) from error
        yield


class Journal:
    """A JSONL file that grows by whole lines and is read again after a kill.

    A last line that was cut short is dropped from the file, so that the job writes it anew. Opening reads everything
    that is there; `append` hands lines to the operating system at once, which keeps them when the process is killed.

    Args:
        path: the file; its folder is created.

    Raises:
        SafetyError: a line other than the last is no JSON value.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Any] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            *whole, torn = path.read_bytes().split(b"\n")  # a character may be cut in two as well
            for number, line in enumerate(whole, 1):
                try:
                    self.rows.append(json.loads(line))
                except ValueError as error:
                    raise SafetyError(
                        f"Line {number} of {str(path)!r} is no JSON ({error})",
                        "The job continues from whole lines, and only the last one can have been cut short",
                        "Delete that file to have this step done again",
                    ) from error
            if torn:
                self.rewrite(self.rows)
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by close()

    def append(self, rows: Iterable[Any]) -> None:
        """Add rows: all of them reach the file before this returns."""
        rows = list(rows)
        self._stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._stream.flush()
        self.rows.extend(rows)

    def rewrite(self, rows: Iterable[Any]) -> None:
        """Replace all rows; the file is complete at every moment."""
        self.rows = list(rows)
        with completed(self.path) as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        if hasattr(self, "_stream"):
            self._stream.close()
            self._stream = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        """Bring everything to the disk and close the file."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def progress(what: str, total: int, done: int = 0) -> Iterator[Callable[[int], Any]]:
    """A bar with the time left on a terminal, and a plain line every half minute in a log.

    Args:
        what: what is being done, for the line.
        total: how many steps there are.
        done: how many were done before.

    Yields:
        A function that is told the number of further steps done.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, desc=what, dynamic_ncols=True) as bar:
            yield bar.update
        return
    start = shown = time.monotonic()
    count, before = done, done

    def update(steps: int) -> None:
        nonlocal count, shown
        count += steps
        now = time.monotonic()
        if now - shown >= LOG_SECONDS and before < count < total:
            left = (now - start) / (count - before) * (total - count)
            sys.stderr.write(f"{what}: {count} of {total}, about {tqdm.format_interval(left)} left\n")
            sys.stderr.flush()
            shown = now

    yield update
    if count > before:
        sys.stderr.write(f"{what}: {count} of {total}, {tqdm.format_interval(time.monotonic() - start)}\n")
        sys.stderr.flush()


def versions() -> dict[str, str]:
    """Versions of what a result depends on, for a report."""
    packages = ("parlai", "torch", "numpy", "scikit-learn", "tokenizers")
    return {
        "parlai_safety": __version__,
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
    }


def hardware() -> str:
    """The machine in words, for a report."""
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads, {device}"
