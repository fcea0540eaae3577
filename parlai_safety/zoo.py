"""Models by name: `-mf zoo:safety/NAME/model` downloads what the registry lists, checks it, and only then uses it.

The registry is `zoo/registry.json`: for each model its card and its files with their address and SHA-256. ParlAI's own
`zoo:` grammar is reused; this module is what stands behind `parlai.zoo.safety` (see `parlai_safety/modelzoo`).
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from parlai_safety import resources
from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.files import sha256

TIMEOUT_SECONDS = 30


def registry() -> dict[str, Any]:
    """The models that can be had by name: name -> {"card": ..., "files": [{"name", "url", "sha256"}, ...]}."""
    models: dict[str, Any] = json.loads((resources.folder("zoo") / "registry.json").read_text(encoding="utf-8"))[
        "models"
    ]
    return models


def download(name: str, datapath: str | Path) -> Path:
    """Make sure that a model's files are there, whole and unaltered.

    Args:
        name: a model of the registry.
        datapath: ParlAI's data folder; the files go to `models/safety/NAME` in it.

    Returns:
        That folder.

    Raises:
        SafetyError: the name is unknown, the server cannot be reached or refuses, or a checksum differs.
    """
    models = registry()
    if name not in models:
        raise unknown_model(name)
    folder = Path(datapath) / "models" / "safety" / name
    folder.mkdir(parents=True, exist_ok=True)
    for entry in models[name]["files"]:
        path = folder / entry["name"]
        if not path.is_file() or sha256(path) != entry["sha256"]:
            _fetch(entry["url"], path, entry["sha256"])
    return folder


def unknown_model(name: str) -> SafetyError:
    """The error for a name that is not in the registry; it tells which names are."""
    models = registry()
    return SafetyError(
        f"zoo:safety/{name} is not in the registry",
        f"The registry lists {', '.join(sorted(models)) or 'no model yet'}",
        did_you_mean(name, models, "Train one instead, as the README shows, and give its --model-file"),
    )


def _fetch(url: str, path: Path, expected: str) -> None:
    """Download to a temporary name, check, rename."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    digest = hashlib.sha256()
    try:
        with open(handle, "wb") as stream, requests.get(url, stream=True, timeout=TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0)) or None
            with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, dynamic_ncols=True) as bar:
                for block in response.iter_content(1 << 20):
                    stream.write(block)
                    digest.update(block)
                    bar.update(len(block))
        if digest.hexdigest() != expected:
            raise SafetyError(
                f"{url} gave a file with SHA-256 {digest.hexdigest()}",
                f"The registry expects {expected}, so the file was cut short or changed",
                "Try again; if it happens again, report it and do not use the file",
            )
        os.replace(temporary, path)
    except requests.RequestException as error:
        raise SafetyError(
            f"{url} could not be downloaded ({error})",
            "The model's files are not on this machine, and they come from that address",
            f"Check the connection, or put the file by hand at {path}",
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
