"""An empty folder with a small repository of tasks and some presets, and a way to run our scripts in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FILES = {
    "compat_demo/__init__.py": "",
    "compat_demo/tasks/__init__.py": "",
    "compat_demo/tasks/plain/__init__.py": "",
    "compat_demo/tasks/plain/agents.py": """
import os
from pathlib import Path
from parlai.core import loader
from parlai.core.teachers import DialogTeacher
from parlai.utils.distributed import get_rank

class DefaultTeacher(DialogTeacher):
    def __init__(self, opt, shared=None):
        opt["datafile"] = "none"
        super().__init__(opt, shared)
        if "NOTE_RANKS" in os.environ:
            Path(f"knows_us.{get_rank()}").write_text(str("safety:" in loader.REGISTERED_REPOS))
    def setup_data(self, path):
        for number in range(7):
            yield {"text": f"hello number {number}", "labels": [f"good day {number}"]}, True
    def get(self, *args, **kwargs):
        if os.environ.get("FAILING_RANK") == str(get_rank()):
            raise RuntimeError("this rank fails")
        return super().get(*args, **kwargs)

class ShoutedTeacher(DefaultTeacher):
    def setup_data(self, path):
        yield {"text": "HELLO", "labels": ["GOOD DAY"]}, True
""",
    "compat_demo/tasks/chat/__init__.py": "",
    "compat_demo/tasks/chat/worlds.py": """
from parlai.tasks.interactive.worlds import InteractiveWorld as StockInteractive
from parlai.tasks.self_chat.worlds import SelfChatWorld as StockSelfChat

class InteractiveWorld(StockInteractive): ...
class InteractiveLoudWorld(StockInteractive): ...
class SelfChatWorld(StockSelfChat): ...
""",
    "presets/quick.opt": '{"batchsize": 3}',
    "presets/nested/x.opt": '{"text_truncate": 3}',
    ".parlai/opt_presets/mine.opt": '{"batchsize": 5}',
}


def prepare(folder: Path) -> Path:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run(folder: Path, script: str, *arguments: str, skip: str = "", check: bool = True, **variables: str) -> Any:
    """Run a script of this folder in `folder`; the JSON that it leaves, or the finished process without `check`."""
    environment = {
        **os.environ,
        "HOME": str(folder),
        "PARLAI_DATAPATH": str(folder / "data"),
        "PARLAI_SAFETY_SKIP_REPAIRS": skip,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(folder)]),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / script), "out.json", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if not check:
        return done
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())
