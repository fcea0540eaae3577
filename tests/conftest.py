"""What all tests share: one thread, no hub, a data folder of their own, and small models that train in a second."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

# No test hangs on how quick the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent

TINY_MODEL = {
    "n_layers": 1,
    "embedding_size": 16,
    "ffn_size": 32,
    "n_heads": 2,
    "n_positions": 128,
    "text_truncate": 64,
    "label_truncate": 32,
}


def pytest_collection_modifyitems(items):
    """Files with slow tests first, the longest before all: one that begins last would leave the other workers idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path.name != "test_readme.py"))


@pytest.fixture(scope="session", autouse=True)
def _own_data_folder(tmp_path_factory):
    """Keep ParlAI's data folder out of site-packages."""
    os.environ["PARLAI_DATAPATH"] = str(tmp_path_factory.mktemp("parlai_data"))
    yield


@pytest.fixture(scope="session", autouse=True)
def _registered():
    """Register with ParlAI, as the command line does, but leave sys.excepthook alone."""
    import torch

    torch.set_num_threads(1)
    from parlai_safety import plugin

    plugin.register()
    plugin.register_mutators()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, or a skip that says how to have it."""
    folder = Path(os.environ.get("SAFETY_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "safety_labels.jsonl.gz").is_file():
        pytest.skip("no real data: set SAFETY_DATA to the folder that holds safety_labels.jsonl.gz")
    return folder
