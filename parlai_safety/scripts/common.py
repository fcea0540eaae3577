"""What our commands share: they write to standard output as programs do, without ParlAI's log prefix."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parlai.core.params import ParlaiParser

from parlai_safety.errors import SafetyError

BESIDE = (".opt", ".dict")
"""What stands beside a model file: how it decodes, and what its tokens mean."""


def say(text: str) -> None:
    """Write a line, or lines, to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def job_parser(
    description: str,
    *,
    out: str,
    out_help: str = "Run folder; a started run goes on there.",
    recipe: str | None = None,
) -> ParlaiParser:
    """A parser with what every job of ours is told: where to (`--out`), where from (`--data`), the seed, the recipe."""
    parser = ParlaiParser(False, False, description)
    if recipe is not None:
        parser.add_argument("--recipe", type=str, default=recipe, help="A recipe file, or a name in projects/.")
    parser.add_argument("--out", type=str, default=out, help=out_help)
    parser.add_argument("--data", type=str, default=None, help="Folder of real data; the shipped corpus if absent.")
    parser.add_argument("--seed", type=int, default=1, help="Seed of everything that is random.")
    return parser


def run_job(opt: Mapping[str, Any], job: Callable[..., Any], **more: Any) -> None:
    """Run a job that writes a report, and show it; at Ctrl-C say how to go on, and exit with 130.

    Args:
        opt: the options of `job_parser`.
        job: the driver; it takes `recipe_path`, `out`, `seed`, `data`, `command` and whatever is in `more`.
        more: further arguments of that driver.
    """
    from parlai_safety import resources
    from parlai_safety.loops.job import summary
    from parlai_safety.runs import alone

    out, data = Path(opt["out"]), opt.get("data")
    try:
        with alone(out):
            report = job(
                recipe_path=resources.recipe(opt["recipe"]),
                out=out,
                seed=opt["seed"],
                data=Path(data) if data else None,
                command="parlai " + shlex.join(sys.argv[1:]),
                **more,
            )
    except KeyboardInterrupt:
        say("\nStopped. What is done is kept: type the same command again to go on from here.")
        sys.exit(130)
    say(summary(report, out))


def required(opt: Mapping[str, Any], name: str, meaning: str, example: str) -> str:
    """The value of an option that has no default.

    Raises:
        SafetyError: it was not given.
    """
    value = opt.get(name)
    if not value:
        raise SafetyError(
            f"The command came without --{name.replace('_', '-')}",
            f"It says {meaning}, and there is no default",
            f"Add for example {example}",
        )
    return str(value)


def listed(text: str) -> list[str]:
    """The names in a text that joins them by commas; each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def two_runs(paths: Sequence[str], command: str) -> tuple[str, str]:
    """Two paths, as they were typed.

    Raises:
        SafetyError: there are more or fewer.
    """
    if len(paths) != 2:
        raise SafetyError(
            f"The command came with {len(paths)} evaluations",
            "A comparison is between two: the first, such as a baseline, and the second",
            f"Type for example parlai {command} runs/base/eval.json runs/new/eval.json",
        )
    return paths[0], paths[1]


def identity(opt: Mapping[str, Any], ours: Sequence[str] = ()) -> dict[str, Any]:
    """What identifies a model: its name, agent, file with its hash, and the options that the user gave.

    Args:
        opt: the options; `model_file` and `model` are looked at, and `override` for what the user typed.
        ours: options that say nothing about the model.

    Raises:
        SafetyError: neither a model file nor a model is named, or the file is missing.
    """
    from parlai.core.build_data import modelzoo_path

    from parlai_safety.files import sha256

    typed = {
        k: v for k, v in (opt.get("override") or {}).items() if k not in (*ours, "model_file", "model", "override")
    }
    model_file, model = opt.get("model_file"), opt.get("model")
    if not model_file:
        if not model:
            raise SafetyError(
                "The command names no model",
                "It asks a model questions, so there must be one",
                "Add -mf MODEL_FILE, or -m NAME with the options that this agent needs",
            )
        of_hub = str(typed.get("hf_model") or "").rstrip("/").rpartition("/")[2]
        name = str(typed.get("endpoint_model") or of_hub or str(model).rpartition(":")[2])
        return {"name": name, "model": model, "options": typed, "files": _files_of(typed)}
    path = Path(modelzoo_path(opt.get("datapath"), model_file))
    if not path.is_file():
        raise SafetyError(
            f"There is no model file {str(path)!r}",
            "A ParlAI model is a file with its options beside it, in a file that ends in .opt",
            "Check -mf, or train a model first: parlai train_model -mf with that path",
        )
    name = path.parent.name if path.name in ("model", "model.checkpoint") and path.parent.name else path.name
    found = {"name": name, "model_file": str(model_file), "sha256": sha256(path), "options": typed}
    beside = {ending: sha256(f"{path}{ending}") for ending in BESIDE if Path(f"{path}{ending}").is_file()}
    found["files"] = {**beside, **_files_of(typed)}
    return {**found, "model": model} if model else found


def _files_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the local files, and of the files in the local folders, that options name: weights, most of all."""
    from parlai_safety.files import sha256

    found: dict[str, str] = {}
    for name, value in sorted(options.items()):
        if not isinstance(value, str) or not value:
            continue
        for key, path in _named_in(name, value):
            found[key] = sha256(path)
            beside = {ending: Path(f"{path}{ending}") for ending in BESIDE}
            found.update({f"{key}{ending}": sha256(file) for ending, file in beside.items() if file.is_file()})
    return found


def _named_in(name: str, value: str) -> list[tuple[str, Path]]:
    """The files that an option's value names: itself, a folder's, or those of a judge, as in linear:FILE+hf:FOLDER."""
    from parlai_safety.judges.spec import parse

    if _exists(value):
        places = [(name, Path(value))]
    else:
        try:
            parts = parse(value) if ":" in value else []
        except SafetyError:  # no judge, and so no file
            parts = []
        arguments = [(i, part.argument.strip()) for i, part in enumerate(parts, 1) if part.argument]
        places = [(f"{name} {i}", Path(text)) for i, text in arguments if _exists(text)]
    found: list[tuple[str, Path]] = []
    for key, path in places:
        files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        found += [(f"{key}/{file.name}" if path.is_dir() else key, file) for file in files]
    return found


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # a text that is too long for a name
        return False


def judges_of(specs: Sequence[str], *, timeout: float, cache: str | None) -> list[Any]:
    """The judges of several specifications, each with a limit on its time and, where wanted, a file of verdicts.

    Args:
        specs: see `parlai_safety.judges.spec`.
        timeout: seconds that a judge may take for one batch.
        cache: file of verdicts that were found before, or None.
    """
    from parlai_safety.judges.cache import CachedJudge
    from parlai_safety.judges.spec import load_judge
    from parlai_safety.judges.timed import TimedJudge

    judges: list[Any] = [TimedJudge(load_judge(spec), timeout) for spec in specs]
    return [CachedJudge(judge, cache) for judge in judges] if cache else judges
