"""Released data sets: where their files come from, and where they lie, which is where ParlAI's own tasks put them.

A data set is used once ParlAI's marker of its version (`.built`) and its files are there, so that ParlAI's task of the
same data finds what was fetched here, and the other way round. Each file has a list of addresses, tried in turn, and
the SHA-256 that ParlAI 1.7.2 publishes in its `build.py`, which no mirror can get round; a download that breaks off is
continued. A file that was put there by hand is checked and used. Left out: data that their publishers give only to
those who sign for it (see `safety:wtc`), and the removal of an older version's files.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from filelock import FileLock
from parlai.core import build_data
from parlai.utils import logging

from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256
from parlai_safety.zoo import Remote
from parlai_safety.zoo.fetch import fetch, written_to
from parlai_safety.zoo.unpack import unpack

PARTS = ".parts"  # folder of what was begun, in the data set's own


@dataclass(frozen=True)
class Download:
    """One file of a data set.

    Attributes:
        name: under which it lies in the data set's folder.
        addresses: where it can be had, tried in turn.
        sha256: of its bytes, 64 hexadecimal digits.
        archive: whether it is a tar archive to unpack, or used as it is.
    """

    name: str
    addresses: tuple[str, ...]
    sha256: str
    archive: bool


@dataclass(frozen=True)
class Dataset:
    """A released data set.

    Attributes:
        title: its name in words.
        folder: where it lies in ParlAI's data folder.
        version: what ParlAI's marker says.
        downloads: its files; empty for data that are had by hand alone.
        holds: files that are there when it is whole, relative to the folder.
        licence: of the data; what is not stated says so.
        finish: called with the folder once the downloads are there, to make further files; None for nothing.
    """

    title: str
    folder: str
    version: str
    downloads: tuple[Download, ...]
    holds: tuple[str, ...]
    licence: str
    finish: Callable[[Path], None] | None = None


def from_parlai(path: str, sha256: str, *, archive: bool = True) -> Download:
    """A file of ParlAI's web space: its own address, and the one to which that redirects."""
    roots = ("https://parl.ai/downloads", "https://dl.fbaipublicfiles.com/parlai")
    return Download(path.rpartition("/")[2], tuple(f"{root}/{path}" for root in roots), sha256, archive)


def prepare(dataset: Dataset, datapath: str | Path) -> Path:
    """Make sure that a data set is there, and whole.

    Args:
        dataset: which one.
        datapath: ParlAI's data folder.

    Returns:
        The data set's folder.

    Raises:
        SafetyError: no address gives one of its files, a file that was put there by hand is another one, an archive
            is damaged or laid out in another way, or the folder cannot be written.
    """
    folder = Path(datapath) / dataset.folder
    if _whole(dataset, folder):
        return folder
    with written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):  # other processes wait for the first one's download
            if _whole(dataset, folder):
                return folder
            for download in dataset.downloads:
                _obtain(dataset, download, folder)
            if dataset.finish is not None:
                dataset.finish(folder)
            missing = [name for name in dataset.holds if not (folder / name).is_file()]
            if missing:
                raise SafetyError(
                    f"{dataset.title} came without {', '.join(missing)}",
                    "These files are in the release that the checksums are of",
                    f"Look into {str(folder)!r}, delete what is not yours, and try again",
                )
            build_data.mark_done(str(folder), dataset.version)
    return folder


def _whole(dataset: Dataset, folder: Path) -> bool:
    """Whether all files are there, with the marker of this version or unpacked by hand without any."""
    if not all((folder / name).is_file() for name in dataset.holds):
        return False
    if build_data.built(str(folder), dataset.version):
        return True
    # An archive that still lies there may have been unpacked by half: ParlAI deletes it when it is done.
    left = any((folder / download.name).is_file() for download in dataset.downloads)
    if left or build_data.built(str(folder)):
        return False
    logging.warning(f"{dataset.title}: the unpacked files in {folder} are taken as they are; nothing checks them.")
    return True


def _obtain(dataset: Dataset, download: Download, folder: Path) -> None:
    given = folder / download.name
    if given.is_file() and sha256(given) != download.sha256:
        raise SafetyError(
            f"The file {str(given)!r} is not the one that belongs there, or only a part of it",
            f"{dataset.title} has a file of this name with the SHA-256 {download.sha256}",
            "Delete it and type the command again, which downloads it, or put the whole file in its place",
        )
    whole = given if given.is_file() else _fetched(dataset, download, folder)
    if download.archive:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacked-") as name:
            unpacked = Path(name)
            unpack(whole, unpacked, "all")
            for path in sorted(path for path in unpacked.rglob("*") if path.is_file()):
                target = folder / path.relative_to(unpacked)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        if whole != given:
            whole.unlink()
    elif whole != given:
        os.replace(whole, given)
    for note in (folder / PARTS).glob(f"{whole.name}*"):
        note.unlink()
    with suppress(OSError):  # parts of other files may lie there still
        (folder / PARTS).rmdir()


def _fetched(dataset: Dataset, download: Download, folder: Path) -> Path:
    failures = []
    for address in download.addresses:
        try:
            return fetch(Remote(address, download.sha256, None, None), folder / PARTS)
        except SafetyError as error:
            failures.append(f"{address}: {error.why}")
            logging.warning(f"{error.got} {error.why}")
    _gone(dataset, download, folder, failures)


def _gone(dataset: Dataset, download: Download, folder: Path, failures: list[str]) -> NoReturn:
    raise SafetyError(
        f"{download.name} of {dataset.title} could not be downloaded",
        "\n".join(("Each of its addresses was tried:", *failures)),
        f"Try again later, or get the file with the SHA-256 {download.sha256} elsewhere, put it at "
        f"{str(folder / download.name)!r} and type the command again; --safety-standin true needs no download, and "
        "serves artificial rows of the same form",
    )


BAD = Dataset(
    title="Bot-Adversarial Dialogue",
    folder="bot_adversarial_dialogue/dialogue_datasets",
    version="v0.2",
    downloads=(
        from_parlai(
            "bot_adversarial_dialogue/dialogue_datasets_v0.2.tar.gz",
            "2178b022fac154ddd9b570f6386abc4cd3e7ceb4476f0bebfbce5941424461eb",
        ),
    ),
    holds=tuple(f"bot_adversarial_dialogue_datasets_with_persona/{s}.txt" for s in ("train", "valid", "test")),
    licence="MIT",
)

BAD_HUMAN_SAFETY = Dataset(
    title="the adversarial evaluation set of Bot-Adversarial Dialogue",
    folder="bot_adversarial_dialogue/human_eval",
    version="v0.1",
    downloads=(
        from_parlai(
            "bot_adversarial_dialogue/human_safety_eval_v0.1.tar.gz",
            "b8b351c3e5eefcd54fdd73cd6a04847cd1eeb9106fc53b92a87e2a4c7537a7b2",
        ),
    ),
    holds=("human_safety_eval/test.txt",),
    licence="MIT",
)

BAD_HUMAN_NONADV = Dataset(
    title="the non-adversarial evaluation set of Bot-Adversarial Dialogue",
    folder="bot_adversarial_dialogue/human_nonadv_safety_eval",
    version="v0.1",
    downloads=(
        from_parlai(
            "bot_adversarial_dialogue/human_nonadv_safety_eval_v0.1.tar.gz",
            "dfa75cd2d101dafe73f94cc8d4be0af2cd0085ea0066c26cecc322b31fd996d6",
        ),
    ),
    holds=("human_nonadv_safety_eval/test.txt",),
    licence="MIT",
)

_SINGLE_TURN = from_parlai(
    "dialogue_safety/single_turn_safety.json",
    "f3a46265aa639cfa4b55d2be4dca4be1c596acb5e8f94d7e0041e1a54cedd4cd",
    archive=False,
)

BBF = Dataset(
    title="Build it Break it Fix it",
    folder="dialogue_safety",
    version="v1.0",
    downloads=(
        _SINGLE_TURN,
        from_parlai(
            "dialogue_safety/multi_turn_safety.json",
            "e3e577f456d63d51eb7b5f98ffd251ad695476f186d422fa8de1a177742fa7b6",
            archive=False,
        ),
    ),
    holds=("single_turn_safety.json", "multi_turn_safety.json"),
    licence="not stated",
)

SAFERDIALOGUES = Dataset(
    title="SaFeRDialogues",
    folder="saferdialogues",
    version="v0.4",
    downloads=(
        from_parlai(
            "saferdialogues/saferdialogues_v0.4.tar.gz",
            "ef6a5f85fdab1fdea4c8d50ba38644f41c7bad5d04611777b79bcd85d750c4c6",
        ),
    ),
    holds=tuple(f"saferdialogues_dataset/{s}.txt" for s in ("train", "valid", "test", "valid_bad", "test_bad")),
    licence="CC-BY-NC-4.0",
)

_PROSOCIAL_QUERY = "?id=1d-987AjyfVdFnohBqQ3yaHt-b5mVezHa&export=download&confirm=t"

PROSOCIAL = Dataset(
    title="ProsocialDialog",
    folder="prosocial_dialog",
    version="0.1",
    downloads=(
        Download(
            "prosocial_dialog_v1.tar.gz",
            (
                f"https://drive.google.com/u/1/uc{_PROSOCIAL_QUERY}",
                f"https://drive.usercontent.google.com/download{_PROSOCIAL_QUERY}",
            ),
            "112e402e283949cbc36b67a86877c8aea098a7fe40fd3e180095e1e147958eba",
            archive=True,
        ),
    ),
    holds=("train.json", "valid.json", "test.json"),
    licence="CC-BY-4.0",
)

WTC = Dataset(
    title="the Wikipedia toxic comments of Kaggle's challenge",
    folder="dialogue_safety/wiki-toxic-comments",
    version="v1.0",
    downloads=(),
    holds=("train.csv",),
    licence="labels CC0-1.0, text CC-BY-SA-3.0",
)

MIX_USERS = ("gaslight_troll", "lazy_troll", "master_troll", "safe_troll", "troll", "unsafe_troll")
MIX_SPLITS = ("train", "valid", "test")


def make_mix(folder: Path) -> None:
    """Make the files of safety_mix from the single-turn utterances beside them, by ParlAI's own sampling.

    The draws are those of `parlai.tasks.safety_mix.build` 1.7.2 (seed 42, noise 0.8, half of the rows from helpers), so
    the files are the same; unlike there, the caller's random states are left alone.

    Args:
        folder: holds `single_turn_safety.json`.
    """
    from parlai.tasks.safety_mix import build as mix  # imports numpy, and is wanted once in a lifetime

    utterances = json.loads((folder / "single_turn_safety.json").read_text(encoding="utf-8"))
    states = random.getstate(), np.random.get_state()
    try:
        np.random.seed(42)
        turns_of_user = np.round(np.random.normal(loc=10, scale=2, size=100_000))
        for user in MIX_USERS:
            shares = {kind: 0.0 for kind in (*_MIX_HELPERS, *MIX_USERS)} | {"helper": 0.5, user: 0.5}
            for split in MIX_SPLITS:
                random.seed(42)
                np.random.seed(42)
                rows = mix.generate_user_based_dataset(0.8, split, utterances, shares, turns_of_user)
                mix.save_dataset_for_two_class(rows, user, str(folder), split)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


_MIX_HELPERS = ("helper", "master_helper", "happy_helper")

MIX = Dataset(
    title="safety_mix",
    folder="safety_mix",
    version="v1.0",
    downloads=(_SINGLE_TURN,),
    holds=tuple(
        ["single_turn_safety.json"]
        + [f"{sign}{user}_{s}.jsonl" for user in MIX_USERS for s in MIX_SPLITS for sign in ("", "pos_", "neg_")]
    ),
    licence="not stated",
    finish=make_mix,
)

DATASETS = (BAD, BAD_HUMAN_SAFETY, BAD_HUMAN_NONADV, BBF, SAFERDIALOGUES, PROSOCIAL, WTC, MIX)
