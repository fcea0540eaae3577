"""A long job as a chain of stages in one run folder: what is done is not done again, what was cut short goes on.

`run.json` holds the settings; a folder with other settings is refused, so that a report never mixes two runs. Each
finished stage leaves `done.json` with its result and its seconds, written last.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from parlai_safety.errors import SafetyError
from parlai_safety.files import write_json


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
                changed = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
                raise SafetyError(
                    f"The folder {str(folder)!r} holds a run with other settings ({', '.join(changed)} differ)",
                    "A run is only continued with the settings it began with, so that its report stays true",
                    "Give another --out, or delete that folder",
                )
        elif folder.is_dir() and any(folder.iterdir()):
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

    def stage(self, name: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Do a stage unless it is done; its result must be JSON, `seconds` over all calls is added to it."""
        folder = self.folder / name
        done = folder / "done.json"
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
