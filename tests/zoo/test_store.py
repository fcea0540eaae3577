"""Models in the data folder: they come by their names, once, whole, and stay what they were."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import stat

import pytest
from parlai.core.build_data import modelzoo_path

from parlai_safety import zoo
from parlai_safety.errors import SafetyError
from parlai_safety.zoo import store
from tests.zoo.conftest import RECIPE
from tests.zoo.test_unpack import archive

CONTENT = b"weights" * 1000


def entry(site, *, known=True, **fields):
    site.files["/model"] = CONTENT
    digest = hashlib.sha256(CONTENT).hexdigest() if known else None
    return {"download": [{"url": f"{site.url}/model", "sha256": digest, "size": None, "unpack": None}], **fields}


def packed_entry(site, packed):
    content = site.files["/a.tgz"] = packed.read_bytes()
    file = {"url": f"{site.url}/a.tgz", "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    return {"download": [{**file, "unpack": "all"}]}


def test_a_model_comes_by_its_zoo_name_and_is_not_fetched_twice(site, write_registry, tmp_path):
    write_registry(toy=entry(site))
    path = modelzoo_path(str(tmp_path / "data"), "zoo:safety/toy/model")
    assert path == str(tmp_path / "data" / "models" / "safety" / "toy" / "model")
    assert open(path, "rb").read() == CONTENT
    assert modelzoo_path(str(tmp_path / "data"), "zoo:safety/toy/model") == path
    assert len(site.asked) == 1
    manifest = zoo.manifest_of(tmp_path / "data" / "models" / "safety" / "toy")
    assert manifest["files"] == {"model": {"size": 7000, "sha256": hashlib.sha256(CONTENT).hexdigest()}}
    assert [source["checked"] for source in manifest["sources"]] == [True]
    assert stat.S_IMODE(os.stat(tmp_path / "data" / "models" / "safety" / "toy").st_mode) == 0o755
    assert not list((tmp_path / "data" / "models" / "safety" / ".parts").iterdir())


def test_an_archive_and_a_file_make_one_model(site, write_registry, tmp_path):
    packed = archive(tmp_path / "a.tgz", ("deep/model", CONTENT))
    site.files |= {"/a.tgz": packed.read_bytes(), "/model.opt": b"{}"}
    files = [("a.tgz", "deep/"), ("model.opt", None)]
    write_registry(
        toy={
            "download": [
                {
                    "url": f"{site.url}/{name}",
                    "sha256": hashlib.sha256(site.files[f"/{name}"]).hexdigest(),
                    "size": len(site.files[f"/{name}"]),
                    "unpack": unpack,
                }
                for name, unpack in files
            ]
        }
    )
    folder = zoo.download("toy", tmp_path / "data")
    assert (folder / "model").read_bytes() == CONTENT and (folder / "model.opt").read_bytes() == b"{}"


def test_an_archive_without_the_main_file_leaves_nothing(site, write_registry, tmp_path):
    write_registry(toy=entry(site, model="other"))
    with pytest.raises(SafetyError, match="holds model, and no 'other'"):
        zoo.download("toy", tmp_path / "data")
    assert zoo.state_of(zoo.entry("toy"), tmp_path / "data") == "absent"
    left = (tmp_path / "data" / "models" / "safety").iterdir()
    assert {path.name for path in left} == {".toy.lock", ".parts"}


@pytest.mark.parametrize("harm", ["altered", "longer", "gone"])
def test_a_harmed_model_is_fetched_again(site, write_registry, tmp_path, harm):
    write_registry(toy=entry(site))
    model = zoo.download("toy", tmp_path / "data") / "model"
    assert zoo.state_of(zoo.entry("toy"), tmp_path / "data") == "ready"
    if harm == "gone":
        model.unlink()
    else:
        model.write_bytes(b"x" * len(CONTENT) if harm == "altered" else CONTENT + b"x")
    assert zoo.state_of(zoo.entry("toy"), tmp_path / "data") == "altered"
    zoo.download("toy", tmp_path / "data")
    assert model.read_bytes() == CONTENT and len(site.asked) == 2


def test_a_file_is_hashed_again_only_if_it_may_have_changed(site, write_registry, tmp_path, monkeypatch):
    write_registry(toy=entry(site))
    model = zoo.download("toy", tmp_path / "data") / "model"
    zoo.download("toy", tmp_path / "data")
    hashed, real = [], store.sha256
    monkeypatch.setattr(store, "sha256", lambda path: hashed.append(path) or real(path))
    zoo.download("toy", tmp_path / "data")
    assert hashed == []
    os.utime(model, ns=(0, 0))
    zoo.download("toy", tmp_path / "data")
    assert hashed == [model]


def test_a_new_version_replaces_the_old_one(site, write_registry, tmp_path):
    write_registry(toy=entry(site))
    model = zoo.download("toy", tmp_path / "data") / "model"
    (model.parent / "of_the_old_one").write_text("x")
    site.files["/model"] = b"new" * 1000
    newer = {"url": f"{site.url}/model", "sha256": hashlib.sha256(b"new" * 1000).hexdigest(), "size": 3000}
    write_registry(toy={"version": "2", "download": [{**newer, "unpack": None}]})
    assert zoo.state_of(zoo.entry("toy"), tmp_path / "data") == "of another version"
    zoo.download("toy", tmp_path / "data")
    assert model.read_bytes() == b"new" * 1000
    assert sorted(p.name for p in model.parent.iterdir()) == ["manifest.json", "model"]


def test_another_checksum_is_another_version(site, write_registry, tmp_path):
    write_registry(toy=entry(site))
    zoo.download("toy", tmp_path / "data")
    (file,) = entry(site)["download"]
    write_registry(toy={"download": [{**file, "sha256": "a" * 64}]})
    assert zoo.state_of(zoo.entry("toy"), tmp_path / "data") == "of another version"


@pytest.mark.parametrize("name", ["manifest.json", ".hashed.json"])
def test_an_archive_may_not_say_what_its_files_are(site, write_registry, tmp_path, name):
    packed = archive(tmp_path / "a.tgz", ("model", CONTENT), (name, b"[]"))
    write_registry(toy=packed_entry(site, packed))
    with pytest.raises(SafetyError, match=f"holds a file '{name}'"):
        zoo.download("toy", tmp_path / "data")
    assert zoo.state_of(zoo.entry("toy"), tmp_path / "data") == "absent"


@pytest.mark.parametrize(
    ("name", "change", "state"),
    [
        (".hashed.json", lambda found: [], "ready"),
        (".hashed.json", lambda found: 5, "ready"),
        ("manifest.json", lambda found: [], "absent"),
        ("manifest.json", lambda found: {key: found[key] for key in ("format", "version")}, "absent"),
        ("manifest.json", lambda found: {**found, "files": [1]}, "absent"),
        ("manifest.json", lambda found: {**found, "files": {"model": {}}}, "absent"),
    ],
)
def test_odd_notes_beside_a_model_are_none(site, write_registry, tmp_path, name, change, state):
    write_registry(toy=entry(site))
    folder = zoo.download("toy", tmp_path / "data")
    zoo.download("toy", tmp_path / "data")
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert zoo.state_of(zoo.entry("toy"), tmp_path / "data") == state


def test_after_a_damaged_archive_trying_again_helps(site, write_registry, tmp_path):
    whole = archive(tmp_path / "a.tgz", ("model", CONTENT)).read_bytes()
    site.files["/a.tgz"] = whole[:-9] + b"x" + whole[-8:]
    file = {"url": f"{site.url}/a.tgz", "sha256": None, "size": None, "unpack": "all"}
    write_registry(toy={"download": [file]})
    with pytest.raises(SafetyError, match=r"is no whole tar archive .* Try again"):
        zoo.download("toy", tmp_path / "data", accept_unverified=True)
    site.files["/a.tgz"] = whole
    folder = zoo.download("toy", tmp_path / "data", accept_unverified=True)
    assert (folder / "model").read_bytes() == CONTENT


def test_what_a_killed_process_left_is_put_in_order(site, write_registry, tmp_path):
    write_registry(toy=entry(site))
    folder = zoo.download("toy", tmp_path / "data")
    old, new, other = (folder.parent / name for name in (".toy.old-1", ".toy.new-2", ".toys.new-3"))
    for left in (old, new, other):
        left.mkdir()
    os.rename(folder, old / "model")
    assert zoo.download("toy", tmp_path / "data") == folder and len(site.asked) == 1, "brought back, not fetched"
    assert (folder / "model").read_bytes() == CONTENT
    assert (old.exists(), new.exists(), other.exists()) == (False, False, True), "those of another model are let be"


def test_a_model_stays_where_its_successor_cannot_be_put(site, write_registry, tmp_path, monkeypatch):
    write_registry(toy=entry(site))
    folder = zoo.download("toy", tmp_path / "data")
    real = os.rename

    def refused(source, target):
        if target == folder and ".new-" in str(source):
            raise PermissionError(errno.EPERM, "no")
        real(source, target)

    monkeypatch.setattr(os, "rename", refused)
    (folder / "model").write_bytes(b"altered")
    with pytest.raises(SafetyError, match="cannot be written"):
        zoo.download("toy", tmp_path / "data")
    assert (folder / "model").read_bytes() == b"altered"
    assert not list(folder.parent.glob(".toy.old-*"))


def test_what_nobody_can_check_needs_the_users_word(site, write_registry, tmp_path):
    write_registry(toy=entry(site, known=False))
    with pytest.raises(SafetyError, match="checksum of zoo:safety/toy is unknown.*--accept-unverified true"):
        modelzoo_path(str(tmp_path / "data"), "zoo:safety/toy/model")
    assert not site.asked and not (tmp_path / "data").exists()
    folder = zoo.download("toy", tmp_path / "data", accept_unverified=True)
    (source,) = zoo.manifest_of(folder)["sources"]
    assert not source["checked"] and source["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert modelzoo_path(str(tmp_path / "data"), "zoo:safety/toy/model") == str(folder / "model"), "accepted once"


def test_what_is_built_is_not_downloaded(write_registry, tmp_path):
    write_registry(toy={"build": RECIPE})
    with pytest.raises(SafetyError, match=r"has not been built on this machine.*parlai safety_zoo build toy\."):
        modelzoo_path(str(tmp_path), "zoo:safety/toy/model")


def test_unknown_names_are_told(site, write_registry, tmp_path):
    write_registry(toy=entry(site))
    with pytest.raises(SafetyError, match="zoo:safety/other is not in .* The registry lists toy"):
        modelzoo_path(str(tmp_path), "zoo:safety/other/model")
    with pytest.raises(SafetyError, match="zoo:safety/tyo is not in .* Did you mean 'toy'"):
        modelzoo_path(str(tmp_path), "zoo:safety/tyo/model")


@pytest.mark.parametrize("name", ["zoo:safety/toy", "zoo:safety/", "zoo:safety"])
def test_a_model_without_its_file_is_told(site, write_registry, tmp_path, name):
    write_registry(toy=entry(site), judge=entry(site, kind="judge"))
    with pytest.raises(SafetyError, match=r"without its last part.* Type one of zoo:safety/toy/model\."):
        modelzoo_path(str(tmp_path), name)


def test_a_data_folder_that_cannot_be_written_is_told(site, write_registry, tmp_path):
    write_registry(toy=entry(site))
    (tmp_path / "data").write_text("a file")
    with pytest.raises(SafetyError, match="cannot be written .*--datapath"):
        zoo.download("toy", tmp_path / "data")


def test_two_processes_download_once(site, write_registry, tmp_path):
    """As two ranks of a training do: the slow download of the first is what the second waits for."""
    write_registry(toy=entry(site))
    site.seconds = 0.3
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [
        context.Process(target=lambda: queue.put((zoo.download("toy", tmp_path / "data") / "model").read_bytes()))
        for _ in range(2)
    ]
    for rank in ranks:
        rank.start()
    assert [queue.get(timeout=60) for _ in ranks] == [CONTENT, CONTENT]
    for rank in ranks:
        rank.join()
    assert len(site.asked) == 1


def test_a_disk_that_fills_while_unpacking_is_told(site, write_registry, tmp_path, monkeypatch):
    def full(archive, folder, which):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "unpack", full)
    packed = entry(site)["download"][0] | {"unpack": "all"}
    write_registry(toy={"download": [packed]})
    with pytest.raises(SafetyError, match="The disk is full"):
        zoo.download("toy", tmp_path / "data")
    assert not list((tmp_path / "data" / "models" / "safety").glob(".toy.new-*"))
    assert len(list((tmp_path / "data" / "models" / "safety" / ".parts").glob("*.part"))) == 1, "what came is kept"
