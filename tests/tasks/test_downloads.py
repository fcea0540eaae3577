"""Released data against a local server: fetched and checked, continued, from the next address, or put there by hand."""

from __future__ import annotations

import hashlib
import importlib
import io
import random
import shutil
import tarfile
import threading

import numpy as np
import pytest
from parlai.core import build_data

from parlai_safety.errors import SafetyError
from parlai_safety.tasks import downloads
from parlai_safety.tasks.downloads import DATASETS, MIX, Dataset, Download, from_parlai, make_mix, prepare
from parlai_safety.zoo import fetch
from tests.zoo.serving import Site

FILES = {"talk/train.txt": b"text:one\tlabels:two\n" * 50, "talk/valid.txt": b"text:three\tlabels:four\n" * 50}
DEAD = "http://127.0.0.1:1/talk.tar.gz"


def archive(files=FILES):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return stream.getvalue()


CONTENT = archive()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(fetch, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(fetch, "BLOCK", 50)
    with Site().served() as running:
        running.files = {"/talk.tar.gz": CONTENT, "/other/talk.tar.gz": CONTENT[::-1]}
        yield running


def dataset(*addresses, content=CONTENT, holds=tuple(FILES), archive=True):
    name = "talk.tar.gz" if archive else "talk.json"
    download = Download(name, addresses, hashlib.sha256(content).hexdigest(), archive)
    return Dataset("a talk", "talks/one", "v2", (download,), holds, "MIT")


def is_whole(folder):
    """The files are there, with ParlAI's marker, and nothing else is left but what was put there by hand."""
    return (
        build_data.built(str(folder), "v2")
        and all((folder / name).read_bytes() == content for name, content in FILES.items())
        and {path.name for path in folder.iterdir()} - {"talk.tar.gz"} == {"talk", ".built"}
    )


def test_an_archive_lands_where_parlai_would_put_it_and_is_fetched_once(site, tmp_path):
    found = dataset(f"{site.url}/talk.tar.gz")
    folder = prepare(found, tmp_path)
    assert folder == tmp_path / "talks" / "one" and is_whole(folder) and not (folder / "talk.tar.gz").exists()
    assert prepare(found, tmp_path) == folder and len(site.asked) == 1


def test_two_at_once_fetch_it_once(site, tmp_path):
    found, folders = dataset(f"{site.url}/talk.tar.gz"), []
    both = [threading.Thread(target=lambda: folders.append(prepare(found, tmp_path))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(folders) == 2 and is_whole(folders[0]) and len(site.asked) == 1


def test_a_plain_file_keeps_its_name(site, tmp_path):
    site.files["/talk.json"] = b"[]"
    folder = prepare(dataset(f"{site.url}/talk.json", content=b"[]", holds=("talk.json",), archive=False), tmp_path)
    assert {path.name for path in folder.iterdir()} == {"talk.json", ".built"}


def test_a_cut_connection_goes_on_where_it_stopped(site, tmp_path):
    site.cuts = [100]
    assert is_whole(prepare(dataset(f"{site.url}/talk.tar.gz"), tmp_path))
    assert [wanted for _, wanted, _ in site.asked] == [None, "bytes=100-"]


@pytest.mark.parametrize("first", [DEAD, "{}/gone.tar.gz", "{}/other/talk.tar.gz"], ids=["dead", "404", "another file"])
def test_the_next_address_is_tried(site, tmp_path, first):
    assert is_whole(prepare(dataset(first.format(site.url), f"{site.url}/talk.tar.gz"), tmp_path))
    assert site.asked[-1][0] == "/talk.tar.gz"


def test_no_address_gives_it_and_then_it_is_put_there_by_hand(site, tmp_path):
    found = dataset(DEAD, f"{site.url}/other/talk.tar.gz")
    path = tmp_path / "talks" / "one" / "talk.tar.gz"
    with pytest.raises(SafetyError) as error:
        prepare(found, tmp_path)
    assert error.value.got == "talk.tar.gz of a talk could not be downloaded."
    dead, other = error.value.why.split("\n")[1:]
    assert dead.startswith(DEAD) and "The host does not answer" in dead
    assert "/other/talk.tar.gz: " in other and "the file was changed or damaged" in other
    for words in (found.downloads[0].sha256, str(path), "--safety-standin true"):
        assert words in error.value.instead
    assert not build_data.built(str(path.parent))
    path.write_bytes(CONTENT)
    assert is_whole(prepare(found, tmp_path)) and path.read_bytes() == CONTENT


def test_another_file_put_there_by_hand_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "talks" / "one" / "talk.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:100])
    with pytest.raises(SafetyError, match="not the one that belongs there, or only a part of it"):
        prepare(dataset(DEAD), tmp_path)
    assert path.read_bytes() == CONTENT[:100]


def put_unpacked(folder):
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_files_unpacked_by_hand_are_used_and_the_log_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(downloads.logging, "warning", said.append)
    put_unpacked(tmp_path / "talks" / "one")
    prepare(dataset(DEAD), tmp_path)
    assert len(said) == 1 and "nothing checks them" in said[0]


@pytest.mark.parametrize("left", ["an archive", "an older version"])
def test_files_of_a_broken_or_older_unpacking_are_not_used(site, tmp_path, left):
    folder = tmp_path / "talks" / "one"
    put_unpacked(folder)
    (folder / "talk" / "train.txt").write_bytes(b"half")
    if left == "an archive":
        (folder / "talk.tar.gz").write_bytes(CONTENT)
    else:
        build_data.mark_done(str(folder), "v1")
    assert is_whole(prepare(dataset(f"{site.url}/talk.tar.gz"), tmp_path))


def test_a_marker_without_its_files_is_not_believed(site, tmp_path):
    (tmp_path / "talks" / "one").mkdir(parents=True)
    build_data.mark_done(str(tmp_path / "talks" / "one"), "v2")
    assert is_whole(prepare(dataset(f"{site.url}/talk.tar.gz"), tmp_path))


def test_an_archive_without_the_files_is_not_marked(site, tmp_path):
    found = dataset(f"{site.url}/talk.tar.gz", holds=(*FILES, "talk/test.txt"))
    with pytest.raises(SafetyError, match="a talk came without talk/test.txt"):
        prepare(found, tmp_path)
    assert not build_data.built(str(tmp_path / "talks" / "one"))


BUILDS = {
    "bot_adversarial_dialogue": (
        "BOT_ADVERSARIAL_DIALOGUE_DATASETS_RESOURCES",
        "HUMAN_SAFETY_EVAL_TESTSET_RESOURCES",
        "HUMAN_NONADV_SAFETY_EVAL_TESTSET_RESOURCES",
    ),
    "dialogue_safety": ("RESOURCES",),
    "saferdialogues": ("RESOURCES",),
    "prosocial_dialog": ("RESOURCES",),
    "safety_mix": ("RESOURCES",),
}


def test_names_and_checksums_are_those_of_parlai():
    theirs = set()
    for task, lists in BUILDS.items():
        build = importlib.import_module(f"parlai.tasks.{task}.build")
        theirs |= {(r.file_name, r.hashcode, r.zipped) for name in lists for r in getattr(build, name)}
    assert {(d.name, d.sha256, d.archive) for found in DATASETS for d in found.downloads} == theirs


def test_each_file_of_parlai_has_two_addresses():
    assert from_parlai("a/b.json", "0" * 64, archive=False).addresses == (
        "https://parl.ai/downloads/a/b.json",
        "https://dl.fbaipublicfiles.com/parlai/a/b.json",
    )


def test_what_was_fetched_here_is_found_by_parlai(tmp_path, monkeypatch):
    """ParlAI's builds look for folder, version and marker; none of them downloads anything any more."""
    monkeypatch.setattr(build_data, "download", lambda *args, **kinds: pytest.fail("ParlAI downloads"))
    for found in DATASETS:
        folder = tmp_path / found.folder
        folder.mkdir(parents=True, exist_ok=True)
        if found.downloads:
            build_data.mark_done(str(folder), found.version)
    modules = {task: importlib.import_module(f"parlai.tasks.{task}.build") for task in BUILDS}
    opt = {"datapath": str(tmp_path)}
    bad = modules["bot_adversarial_dialogue"]
    for build in (bad.build_dialogue_datasets, bad.build_human_safety_eval_dataset):
        build(opt)
    bad.build_human_nonadv_safety_eval_dataset(opt)
    modules["saferdialogues"].build(opt)
    modules["prosocial_dialog"].build(opt)
    modules["dialogue_safety"].build(str(tmp_path))
    modules["safety_mix"].build(str(tmp_path))


def test_the_mix_is_parlais_byte_for_byte_and_leaves_the_random_states_alone(standins, tmp_path, monkeypatch):
    from parlai.tasks.safety_mix import build as theirs

    ours = tmp_path / "ours"
    for folder in (ours, tmp_path / "safety_mix"):
        folder.mkdir()
        shutil.copy(standins / MIX.folder / "single_turn_safety.json", folder)
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    make_mix(ours)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    monkeypatch.setattr(theirs, "RESOURCES", [])
    theirs.build(str(tmp_path))
    assert {path.name for path in ours.iterdir()} == set(MIX.holds)
    for name in MIX.holds:
        assert (ours / name).read_bytes() == (tmp_path / "safety_mix" / name).read_bytes()
