"""Archives are unpacked with suspicion: nothing lands outside the folder, and nothing but plain files."""

from __future__ import annotations

import errno
import gzip
import io
import random
import tarfile

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.zoo import unpack as unpacking
from parlai_safety.zoo.unpack import unpack


def archive(path, *members, mode="w:gz"):
    """A tar file of (name, bytes), or of a TarInfo as it is."""
    with tarfile.open(path, mode) as opened:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                opened.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                opened.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FILES = (special("single_turn", tarfile.DIRTYPE), ("./single_turn/model", b"one"), ("multi_turn/model", b"two"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("all", {"single_turn/model": b"one", "multi_turn/model": b"two"}),
        ("single_turn/", {"model": b"one"}),
    ],
)
def test_what_is_wanted_comes_out(tmp_path, mode, which, expected):
    folder = tmp_path / "model"
    unpack(archive(tmp_path / "a.tgz", *FILES, mode=mode), folder, which)
    assert tree(folder) == expected


def test_flat(tmp_path):
    unpack(archive(tmp_path / "a.tgz", ("deep/down/model", b"one"), ("model.opt", b"two")), tmp_path / "m", "flat")
    assert tree(tmp_path / "m") == {"model": b"one", "model.opt": b"two"}


@pytest.mark.parametrize("which", ["flat", "other/"])
def test_an_archive_of_another_layout_is_refused(tmp_path, which):
    with pytest.raises(SafetyError, match="not laid out as the registry says"):
        unpack(archive(tmp_path / "a.tgz", *FILES), tmp_path / "m", which)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (("../evil", b"x"), "leads out of its folder"),
        (("fine/../../evil", b"x"), "leads out of its folder"),
        (("/tmp/evil", b"x"), "leads out of its folder"),
        (("C:\\evil", b"x"), "leads out of its folder"),
        (("a\\..\\b", b"x"), "leads out of its folder"),
        (special("link", tarfile.SYMTYPE, "/etc/passwd"), "no plain file"),
        (special("link", tarfile.LNKTYPE, "../evil"), "no plain file"),
        (special("pipe", tarfile.FIFOTYPE), "no plain file"),
        (special("../out", tarfile.DIRTYPE), "leads out of its folder"),
    ],
)
def test_a_hostile_member_stops_everything(tmp_path, member, words):
    folder = tmp_path / "inner" / "model"
    folder.mkdir(parents=True)
    path = archive(tmp_path / "a.tgz", ("model", b"fine"), member)
    with pytest.raises(SafetyError, match=words):
        unpack(path, folder, "all")
    assert tree(tmp_path) == {"a.tgz": path.read_bytes()}, "not even the fine file was written"


def test_what_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_UNPACKED_AT_LEAST", 1000)
    with pytest.raises(SafetyError, match="unpacks to more than"):
        unpack(archive(tmp_path / "a.tgz", ("model", bytes(200_000))), tmp_path / "m", "all")
    unpack(archive(tmp_path / "b.tgz", ("model", bytes(900))), tmp_path / "m", "all")


def test_what_would_fill_the_disk_only_together_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_UNPACKED_AT_LEAST", 1000)
    monkeypatch.setattr(unpacking, "MOST_UNPACKED_RATIO", 1)
    with pytest.raises(SafetyError, match="unpacks to more than 1000"):
        unpack(archive(tmp_path / "a.tgz", ("model", bytes(900)), ("other", bytes(900))), tmp_path / "m", "all")
    assert not (tmp_path / "m").exists()


def test_what_follows_the_last_file_has_its_limit_too(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_UNPACKED_AT_LEAST", 1000)
    monkeypatch.setattr(unpacking, "MOST_UNPACKED_RATIO", 1)
    path = archive(tmp_path / "a.tgz", ("model", b"fine"))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(50_000)))
    with pytest.raises(SafetyError, match="unpacks to more than 1000"):
        unpack(path, tmp_path / "m", "all")


@pytest.mark.parametrize("cut", [None, -200])
def test_what_is_no_whole_archive_is_refused(tmp_path, cut):
    path = archive(tmp_path / "a.tgz", ("model", bytes(range(256)) * 40))
    path.write_bytes(b"<html>gone</html>" if cut is None else path.read_bytes()[:cut])
    with pytest.raises(SafetyError, match="is no whole tar archive"):
        unpack(path, tmp_path / "m", "all")


NOISE = random.Random(1).randbytes(20_000)


@pytest.mark.parametrize(("mode", "place"), [("w:gz", -6), ("w:gz", 10_000), ("w:bz2", 10_000), ("w:xz", 10_000)])
def test_a_byte_that_was_turned_over_is_noticed(tmp_path, mode, place):
    """In .gz only the checksum at the very end tells it."""
    path = archive(tmp_path / "a.tar", ("model", NOISE), ("model.opt", b"{}"), mode=mode)
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    with pytest.raises(SafetyError, match="is no whole tar archive"):
        unpack(path, tmp_path / "m", "all")


def test_an_archive_without_its_checksum_is_refused(tmp_path):
    path = archive(tmp_path / "a.tgz", ("model", NOISE))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(SafetyError, match="is no whole tar archive"):
        unpack(path, tmp_path / "m", "all")


def test_a_disk_that_fills_is_not_the_archives_fault(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = archive(tmp_path / "a.tgz", ("model", b"fine"))
    monkeypatch.setattr(unpacking.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(path, tmp_path / "m", "all")
