"""Downloads against a local server: whole, checked, renamed, or not there at all."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib
import json
import sys
import threading

import pytest
from parlai.core.build_data import modelzoo_path

from parlai_safety import resources, zoo
from parlai_safety.errors import SafetyError

CONTENT = b"weights" * 1000


@pytest.fixture
def server(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    (served / "model").write_bytes(CONTENT)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def register_model(tmp_path, monkeypatch):
    """Write a registry with one model and make ParlAI look at it anew."""

    def register(url: str, sha256: str) -> None:
        folder = tmp_path / "zoo"
        folder.mkdir(exist_ok=True)
        files = [{"name": "model", "url": url, "sha256": sha256}]
        (folder / "registry.json").write_text(json.dumps({"models": {"toy": {"card": "toy.md", "files": files}}}))
        monkeypatch.setitem(resources._FOLDERS, "zoo", folder)
        for name in [name for name in sys.modules if name.startswith("parlai.zoo.safety")]:
            monkeypatch.delitem(sys.modules, name)
        importlib.invalidate_caches()

    return register


def test_a_model_comes_by_its_zoo_name_and_is_not_fetched_twice(server, register_model, tmp_path):
    register_model(f"{server}/model", hashlib.sha256(CONTENT).hexdigest())
    path = modelzoo_path(str(tmp_path / "data"), "zoo:safety/toy/model")
    assert path == str(tmp_path / "data" / "models" / "safety" / "toy" / "model")
    assert open(path, "rb").read() == CONTENT
    register_model("http://127.0.0.1:1/gone", hashlib.sha256(CONTENT).hexdigest())
    assert modelzoo_path(str(tmp_path / "data"), "zoo:safety/toy/model") == path


@pytest.mark.parametrize(
    ("address", "digest", "words"),
    [
        ("/model", "0" * 64, "The registry expects 000"),
        ("/none", hashlib.sha256(CONTENT).hexdigest(), "could not be downloaded .*404"),
        (None, hashlib.sha256(CONTENT).hexdigest(), "could not be downloaded"),
    ],
)
def test_what_cannot_be_had_whole_is_not_there_at_all(server, register_model, tmp_path, address, digest, words):
    register_model(f"{server}{address}" if address else "http://127.0.0.1:1/model", digest)
    with pytest.raises(SafetyError, match=words):
        zoo.download("toy", tmp_path / "data")
    assert list((tmp_path / "data" / "models" / "safety" / "toy").iterdir()) == []


def test_an_altered_file_is_fetched_again(server, register_model, tmp_path):
    register_model(f"{server}/model", hashlib.sha256(CONTENT).hexdigest())
    folder = zoo.download("toy", tmp_path / "data")
    (folder / "model").write_bytes(b"altered")
    zoo.download("toy", tmp_path / "data")
    assert (folder / "model").read_bytes() == CONTENT


def test_unknown_names_are_told(register_model, tmp_path):
    register_model("http://127.0.0.1:1/model", "0" * 64)
    with pytest.raises(SafetyError, match="Did you mean 'toy'"):
        zoo.download("toyy", tmp_path)
    with pytest.raises(SafetyError, match="The registry lists toy"):
        modelzoo_path(str(tmp_path), "zoo:safety/other/model")


def test_the_shipped_registry_reads_and_each_model_has_a_card():
    models = zoo.registry()
    assert isinstance(models, dict)
    for entry in models.values():
        assert (resources.folder("zoo") / entry["card"]).is_file()
        assert all(len(file["sha256"]) == 64 for file in entry["files"])
