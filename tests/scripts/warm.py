"""`parlai` in processes of their own, without the seconds of imports that each start costs.

One process imports what every command imports: torch, ParlAI and its scripts, nothing of ours. A command is a fork of
it with a folder, variables, streams and an exit status of its own. It is for tests of what a command does. What a start
does (what is found and registered, which command is known) is tested with new processes, by `tests/scripts/
test_command_line.py` and by the commands of the README.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from pathlib import Path

PARLAI = Path(sys.executable).parent / "parlai"
STREAMS = ("stdin", "stdout", "stderr")


@functools.cache
def _server() -> subprocess.Popen[str]:
    """It ends with this process, which closes its input."""
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )


def warm(arguments: list[str], cwd: Path, *, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `parlai` with these arguments in `cwd`, to its end."""
    server = _server()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in STREAMS]
        files[0].write_text(stdin)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        job = {"arguments": arguments, "cwd": str(cwd), "env": environment, "files": [str(path) for path in files]}
        print(json.dumps(job), file=server.stdin, flush=True)
        status = server.stdout.readline()
        assert status, f"the process that starts {arguments} is gone"
        out, err = (path.read_text() for path in files[1:])
    return subprocess.CompletedProcess([str(PARLAI), *arguments], int(status), out, err)


def _serve() -> None:
    from parlai import scripts

    sys.path[0] = str(PARLAI.parent)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    for module in pkgutil.iter_modules(scripts.__path__, "parlai.scripts."):
        importlib.import_module(module.name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _become(arguments: list[str], cwd: str, env: dict[str, str], files: list[str]) -> None:
    from parlai.__main__ import main

    for number, (path, flags) in enumerate(zip(files, (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT] * 2), strict=True)):
        os.dup2(os.open(path, flags), number)
    sys.stdin = open(0, closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [str(PARLAI), *arguments]
    sys.exit(main())


if __name__ == "__main__":
    _serve()
