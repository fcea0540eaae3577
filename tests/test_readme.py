"""The README is a test: its commands run as they stand, its generated tables are those of the code."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from parlai_safety import inventory
from parlai_safety.agents.causal import CausalOptions
from parlai_safety.agents.classifiers import ClassifierOptions
from parlai_safety.agents.collapse import CollapseOptions
from parlai_safety.agents.control import AskedOptions, ControlOptions
from parlai_safety.agents.cringe.cringe import CringeOptions
from parlai_safety.agents.labelled import OutputOptions
from parlai_safety.agents.reference import ReferenceOptions
from parlai_safety.loops.annotate import AnnotateOptions
from parlai_safety.loops.bake import TeacherOptions
from parlai_safety.loops.triples import TripleOptions
from parlai_safety.mutators.bake import BakeOptions
from parlai_safety.mutators.filters import AuthorOptions, UtteranceOptions
from parlai_safety.mutators.judged import JudgedOptions
from parlai_safety.options import options_table
from tests.conftest import ROOT
from tests.tiny_causal import tiny_causal

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)


def test_the_option_table_is_the_codes():
    assert options_table(CringeOptions) in README


def test_the_tables_of_the_methods_are_the_codes():
    names = ("cringe/METHODS.md", "adpo/README.md", "safety_recipes/README.md")
    pages = [ROOT / "projects" / name for name in names]
    page = "".join(path.read_text(encoding="utf-8") for path in pages)
    found = 0
    for name in sorted({item.name.split()[1].removeprefix("safety:").split("/")[0] for item in inventory.agents()}):
        module = importlib.import_module(f"parlai_safety.agents.{name}.{name}")
        for thing, kind in vars(module).items():
            if thing.endswith("Options") and kind.__module__ == module.__name__ and name != "endpoint":
                assert f"`-m safety:{name}`" in page
                assert not dataclasses.fields(kind) or options_table(kind) in page, name
                found += 1
    assert found == 15
    shared = (
        ClassifierOptions,
        OutputOptions,
        ControlOptions,
        AskedOptions,
        ReferenceOptions,
        CollapseOptions,
        TripleOptions,
    )
    for kind in (*shared, JudgedOptions, UtteranceOptions, AuthorOptions, BakeOptions, TeacherOptions, AnnotateOptions):
        assert options_table(kind) in page, kind
    causal = (ROOT / "projects" / "second_door" / "CAUSAL_LM.md").read_text(encoding="utf-8")
    assert options_table(CausalOptions) in causal


def test_no_command_is_longer_than_a_line():
    lines = [line for block in BLOCKS for line in block.splitlines()]
    assert len(lines) > 15
    assert max(map(len, lines)) <= 110


def test_every_path_that_is_named_exists():
    for path in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def hf_model(tmp_path_factory):
    """What a reader's HF_MODEL names."""
    return tiny_causal(tmp_path_factory.mktemp("hf_model"))


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS[1:], ids=lambda block: block.split("\n")[0][:40])
def test_the_commands_run(block, hf_model, tmp_path_factory):
    """All blocks but the first, which clones and runs the whole job, in one folder and in order."""
    folder = tmp_path_factory.getbasetemp() / "readme"
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "HF_MODEL": str(hf_model),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
