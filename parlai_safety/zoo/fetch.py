"""Downloads that can be cut short: a part is kept, continued by HTTP Range (RFC 9110, section 14), and checked whole.

The part lies under a name that is tied to the expected SHA-256, or to the address where none is known, so parts of two
files never mix. What the server says of the file's identity (ETag, Last-Modified) is kept beside it and sent back as
If-Range: a file that has changed since comes from its beginning. A server that knows no ranges sends the whole file.
Left out: several connections at once, and any protocol but HTTP.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import requests
from tqdm import tqdm

from parlai_safety.errors import SafetyError
from parlai_safety.files import sha256, write_json
from parlai_safety.zoo.entries import Remote

TIMEOUT_SECONDS = (10, 30)  # to connect, and between two blocks
ATTEMPTS = 4
WAIT_SECONDS = 1.0  # before the second attempt, and twice as long before each further one
BLOCK = 1 << 16  # what was read of a block that broke off is lost


def fetch(remote: Remote, parts: Path) -> Path:
    """Download a file, or the rest of it, and check it.

    Args:
        remote: what is expected.
        parts: folder for the part, which is kept when the download is cut short.

    Returns:
        The file in that folder, whole; the caller moves it away.

    Raises:
        SafetyError: the host cannot be reached or refuses, the connection keeps breaking, the size or the checksum is
            another one, or the disk is full.
    """
    part = part_of(remote, parts)
    with written_to(parts):
        parts.mkdir(parents=True, exist_ok=True)
        if remote.sha256 is not None and part.is_file() and sha256(part) == remote.sha256:
            return part  # whole already, or put there by hand
        for _ in range(2):
            continued = _complete(remote, part)
            found = sha256(part)
            if remote.sha256 in (None, found):
                return part
            forget(part)
            if not continued:
                break
            # The beginning was of an earlier download, perhaps of another file: once more, from nothing.
    raise SafetyError(
        f"{remote.url} gave a file with SHA-256 {found}",
        f"The registry expects {remote.sha256}, so the file was changed or damaged on its way",
        "Try again; if it happens again, report it and do not use the file",
    )


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Tell what the system says of a folder that cannot be written while the block runs, a full disk most of all.

    Raises:
        SafetyError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))  # no quotas on Windows
        raise SafetyError(
            f"The folder {str(folder)!r} cannot be written ({error})",
            "The disk is full" if full else "What is downloaded is kept there",
            "Make room and type the command again, which goes on from here"
            if full
            else "Make that folder writable, or name another data folder with --datapath or PARLAI_DATAPATH",
        ) from error


def part_of(remote: Remote, parts: Path) -> Path:
    """Where the download of a file is kept."""
    mark = remote.sha256 or hashlib.sha256(remote.url.encode()).hexdigest()
    return parts / f"{mark[:16]}-{remote.name}.part"


def forget(part: Path) -> None:
    """Remove a part and what is known of it."""
    for path in (part, _note_of(part)):
        path.unlink(missing_ok=True)


def _complete(remote: Remote, part: Path) -> bool:
    """Bring the part to its end; returns whether an earlier beginning is in it."""
    continued = part.is_file() and part.stat().st_size > 0
    for attempt in range(1, ATTEMPTS + 1):
        have = _size(part)
        if remote.size is not None and have == remote.size:
            return continued
        try:
            if _more(remote, part):
                return continued
        except requests.RequestException as error:
            if _size(part) == have:  # refused, or not there at all
                _gone(remote, part, error)
            if attempt == ATTEMPTS:
                raise SafetyError(
                    f"The download of {remote.url} broke off {ATTEMPTS} times ({error})",
                    f"{_size(part)} bytes are here, and they are kept",
                    "Type the command again, which goes on from there",
                ) from error
            time.sleep(WAIT_SECONDS * 2 ** (attempt - 1))
        continued = continued or _size(part) > 0
    raise SafetyError(
        f"{remote.url} was not given from where the download had stopped, {ATTEMPTS} times",
        "The server answers a request for the rest of the file with something else",
        f"Delete {str(part)!r} and try again",
    )


def _more(remote: Remote, part: Path) -> bool:
    """Ask for what is missing and write it; returns whether the file has come to its end."""
    have, headers = _size(part), {"Accept-Encoding": "identity"}
    same = _validator(part)
    if have and (same or remote.sha256):
        headers |= {"Range": f"bytes={have}-", **({"If-Range": same} if same else {})}
    with requests.get(remote.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return True
            forget(part)
            return False
        response.raise_for_status()
        rest = response.status_code == requests.codes.partial_content
        if rest and not _is_rest(response.headers, have, same):
            forget(part)
            return False
        have = have if rest else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        if None not in (remote.size, total) and total != remote.size:
            raise _of_another_size(remote, part, f"has {total} bytes")
        _check_room(part, (total or remote.size or 0) - have)
        _keep_validator(part, response.headers)
        sys.stderr.write(f"{'Going on with' if have else 'Downloading'} {remote.url}\n")
        with (
            open(part, "ab" if rest else "wb") as stream,
            tqdm(
                total=total, initial=have, desc=remote.name, unit="B", unit_scale=True, dynamic_ncols=True, disable=None
            ) as bar,
        ):
            for block in response.iter_content(BLOCK):
                have += len(block)
                if remote.size is not None and have > remote.size:
                    raise _of_another_size(remote, part, f"gives more than {remote.size} bytes")
                stream.write(block)
                bar.update(len(block))
    if remote.size is not None and have < remote.size:  # a body without a length ends wherever the connection does
        raise requests.ConnectionError(f"{have} of {remote.size} bytes came")
    return True


def _is_rest(headers: Any, have: int, same: str | None) -> bool:
    """Whether a partial answer holds all that is missing, and is of the file that the part is of."""
    place = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
    whole = place is not None and int(place[1]) == have and int(place[2]) + 1 == int(place[3])
    return whole and (same is None or _name_of(headers) in (None, same))


def _of_another_size(remote: Remote, part: Path, found: str) -> SafetyError:
    """The error for it; the part is removed."""
    forget(part)
    return SafetyError(
        f"{remote.url} {found}",
        f"The registry expects {remote.size}, so it is another file",
        "Report it, and do not use the file",
    )


def _gone(remote: Remote, part: Path, error: requests.RequestException) -> NoReturn:
    status = error.response.status_code if error.response is not None else None
    if status is None:
        why = "The host does not answer, or this machine has no connection"
    elif status in (requests.codes.not_found, requests.codes.gone):
        why = "The host is there, and has no such file any more"
    else:
        why = f"The host refuses it, with status {status}"
    # Nothing would tell a file that was put there from a beginning if neither is known.
    by_hand = "" if remote.sha256 is None and remote.size is None else f", or put the file by hand at {part}"
    raise SafetyError(f"{remote.url} could not be downloaded ({error})", why, f"Try again later{by_hand}") from error


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise SafetyError(
            f"The disk of {str(part.parent)!r} has {free} bytes left",
            f"The rest of {part.name!r} needs {needed}",
            "Make room, or name another data folder with --datapath",
        )


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _note_of(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator(part: Path) -> str | None:
    """What the server called the file that the part is of."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads(_note_of(part).read_text(encoding="utf-8"))["validator"])
    return None


def _name_of(headers: Any) -> str | None:
    """What the server calls the file in its answer."""
    tag = headers.get("ETag", "")
    found: str | None = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    return found  # If-Range takes no weak tag


def _keep_validator(part: Path, headers: Any) -> None:
    found = _name_of(headers)
    if found:
        write_json(_note_of(part), {"validator": found})
    else:
        _note_of(part).unlink(missing_ok=True)
