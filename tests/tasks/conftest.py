"""The stand-ins of the released data sets, written once."""

from __future__ import annotations

import pytest

from parlai_safety.tasks.standins import standin_folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data folder of ParlAI's kind."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def standins(data):
    """The folder of the stand-ins in that data folder; ParlAI's own tasks can read it too."""
    return standin_folder(data)
