"""Tar archives from elsewhere, unpacked with suspicion: plain files and folders alone, and nothing outside the target.

An archive may name a path that leads out of its folder, a link that does, or a device, and it may hold far more than
it weighs. Each of these is refused before anything is written under the model's name. Left out: file modes, owners and
times, which a model does not need, and other kinds of archive, which ParlAI's models are not in.
"""

from __future__ import annotations

import lzma
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from parlai_safety.errors import SafetyError

MOST_UNPACKED_RATIO = 50
MOST_UNPACKED_AT_LEAST = 100_000_000  # bytes that a small archive may hold whatever its ratio


def unpack(archive: Path, folder: Path, which: str) -> None:
    """Unpack a tar archive, compressed or not.

    Args:
        archive: the file.
        folder: receives its files.
        which: "all", "flat" (everything, without its folders) or "FOLDER/" (what lies in that folder).

    Raises:
        SafetyError: it is no whole tar archive, or a member is no plain file or leads out of the folder, or it holds
            too much, or nothing of it was wanted, or two files of a flat one share a name.
    """
    most = max(MOST_UNPACKED_RATIO * archive.stat().st_size, MOST_UNPACKED_AT_LEAST)
    try:
        with tarfile.open(archive, "r:*") as opened:
            members = list(_checked(opened, archive, most))
            wanted = [(member, target) for member in members if (target := _target(member, which)) is not None]
            if not wanted or len({target for _, target in wanted}) < len(wanted):
                raise SafetyError(
                    f"Of the {len(members)} files of {archive.name!r} {len(wanted)} are wanted ({which!r}), some of "
                    "them under one name or none at all",
                    "The archive is not laid out as the registry says",
                    "Report it: the registry and the archive do not belong together",
                )
            for member, target in wanted:
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                source = opened.extractfile(member)
                assert source is not None
                with source, open(path, "wb") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
            _read_to_the_end(opened, archive, most)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's: gzip and bz2 give none to what is damaged
        raise SafetyError(
            f"The file {archive.name!r} is no whole tar archive ({error})",
            "The registry says that it is one",
            "Try again; if it happens again, report it and do not use the file",
        ) from error


def _checked(opened: tarfile.TarFile, archive: Path, most: int) -> Iterator[tarfile.TarInfo]:
    total = 0
    for member in opened:
        path = PurePosixPath(member.name)
        if member.isdir() and not _leads_out(path):
            continue
        if not member.isreg() or _leads_out(path):
            raise SafetyError(
                f"The archive {archive.name!r} holds {member.name!r}, which is "
                + ("a path that leads out of its folder" if member.isreg() or member.isdir() else "no plain file"),
                "Unpacked, it could overwrite files of yours that have nothing to do with the model",
                "Do not use this archive, and report it",
            )
        total += member.size
        if total > most:
            raise _too_much(archive, most)
        yield member


def _read_to_the_end(opened: tarfile.TarFile, archive: Path, most: int) -> None:
    """Read what follows the last file: a compressed stream has its checksum at its end."""
    assert opened.fileobj is not None
    read = 0
    while block := opened.fileobj.read(1 << 20):
        read += len(block)
        if read > most + tarfile.RECORDSIZE:  # a tar archive is filled up to whole records
            raise _too_much(archive, most)


def _too_much(archive: Path, most: int) -> SafetyError:
    return SafetyError(
        f"The archive {archive.name!r} of {archive.stat().st_size} bytes unpacks to more than {most}",
        "Weights hardly compress, so this is no model, and it could fill the disk",
        "Do not use this archive, and report it",
    )


def _leads_out(path: PurePosixPath) -> bool:
    return path.is_absolute() or ".." in path.parts or "\\" in str(path) or ":" in str(path)


def _target(member: tarfile.TarInfo, which: str) -> str | None:
    """Where a member goes, relative to the model's folder; None where it is not wanted."""
    path = PurePosixPath(member.name)  # "./model" and "model" are the same to it
    if which == "all":
        return str(path)
    if which == "flat":
        return path.name
    folder = PurePosixPath(which.removesuffix("/"))
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else None
