"""The contract of everything that is registered; the numbers found are asserted, so that nothing drops out unseen."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest
from parlai.core.agents import Agent
from parlai.core.loader import REGISTERED_REPOS, SCRIPT_REGISTRY, load_agent_module, load_teacher_module
from parlai.core.params import ParlaiParser
from parlai.core.torch_agent import TorchAgent

import parlai_safety
from parlai_safety import inventory, plugin
from parlai_safety.agents.common import SafetyAgentMixin, dotted_path
from parlai_safety.agents.wrapped import WrappedAgent
from parlai_safety.judges.spec import parse
from tests.conftest import ROOT

EVERYTHING = inventory.everything()
EXPECTED = {"agents": 40, "tasks": 54, "mutators": 13, "judges": 11, "commands": 26}


def names(kind: str) -> list[str]:
    return [item.name.split(" ", 1)[1] if kind != "judges" else item.name for item in EVERYTHING[kind]]


def test_the_number_of_registered_things():
    assert {kind: len(items) for kind, items in EVERYTHING.items()} == EXPECTED


@pytest.mark.parametrize("item", [item for items in EVERYTHING.values() for item in items], ids=lambda item: item.name)
def test_each_thing_has_a_line_of_its_own(item):
    assert 10 < len(item.line) < 140, item
    assert not item.line.endswith(".")


@pytest.mark.parametrize("name", names("agents"))
def test_an_agent_resolves_and_keeps_its_dotted_path(name):
    kind = load_agent_module(name)
    assert issubclass(kind, SafetyAgentMixin) and issubclass(kind, Agent)
    # A model behind a server has no parameters here, and what stands before another agent has that one's; every other
    # agent of ours learns with ParlAI.
    assert issubclass(kind, TorchAgent) or issubclass(kind, WrappedAgent) or name == "safety:endpoint"
    assert issubclass(kind, kind.backbone)
    assert load_agent_module(dotted_path(kind)) is kind
    parser = ParlaiParser(False, False)
    kind.add_cmdline_args(parser, None)


@pytest.mark.parametrize("name", names("tasks"))
def test_a_task_resolves(name):
    kind = load_teacher_module(name)
    assert kind.__module__.startswith("parlai_safety.tasks.")
    kind.add_cmdline_args(ParlaiParser(True, False), None)


@pytest.mark.parametrize("form", names("judges"))
def test_a_judges_form_is_in_the_grammar(form):
    spec = form.replace("[", "").replace("]", "")
    assert len(parse(spec)) == 1


@pytest.mark.parametrize("name", names("commands"))
def test_a_command_has_a_parser_and_a_description(name):
    parser = SCRIPT_REGISTRY[name].klass.setup_args()
    assert len(parser.description) > 20
    assert name.startswith("safety_")


def test_registration_is_idempotent():
    before = dict(REGISTERED_REPOS), dict(SCRIPT_REGISTRY)
    plugin.register()
    plugin.register()
    plugin.register_mutators()
    assert (dict(REGISTERED_REPOS), dict(SCRIPT_REGISTRY)) == before


def every_module() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(parlai_safety.__path__, "parlai_safety.")]
    return [name for name in found if not name.endswith("__main__")]


def test_every_module_imports_and_says_what_it_is():
    modules = every_module()
    assert len(modules) > 50
    for name in modules:
        module = importlib.import_module(name)
        assert (inspect.getdoc(module) or "").strip(), f"{name} has no docstring"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, parlai_safety, parlai_safety.errors, parlai_safety.files, parlai_safety.compat;"
    code += "print([m for m in ('torch', 'parlai', 'numpy', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_parlais_own_projects_are_not_shadowed_from_the_root():
    code = "import importlib.util as u; print(u.find_spec('projects.safety_bench') is not None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "True"


def test_the_namespace_of_the_hook_has_no_init():
    assert not list((ROOT / "parlai_internal").rglob("__init__.py"))
    assert not list((ROOT / "projects").rglob("__init__.py")) and not list((ROOT / "zoo").rglob("__init__.py"))
