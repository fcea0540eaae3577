"""`parlai safety_zoo build NAME`: train a model of the zoo from the corpus that ships, and measure it.

An entry of the registry names a job, the job's recipe and what of its run is the model; the jobs are those of this
package, so a model of the zoo is exactly what `parlai safety_demo` or `parlai safety_judges` makes. Entries of one job
share its run, which is kept in `models/safety/.work`. PyTorch uses the number of threads that the entry names, and a
training that was cut short begins anew, so that a second build on the same machine gives the same bytes;
`--again true` builds a second time and compares.

The published weights are without the optimiser's state, and the options beside them without paths of this machine and
with the decoding that was measured. Left out: uploading.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from filelock import FileLock, Timeout

from parlai_safety import __version__, resources, zoo
from parlai_safety.corpus.load import DATA_FOLDER
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.coherence import coherence_scorer
from parlai_safety.evaluation.evasive import evasive_detector
from parlai_safety.evaluation.generate import load_agent
from parlai_safety.evaluation.model_card import FILE, evaluation_of_generator, evaluation_of_judge
from parlai_safety.evaluation.results import Evaluation
from parlai_safety.evaluation.run import Plan, evaluate
from parlai_safety.evaluation.suites import load_suite
from parlai_safety.files import sha256, write_json
from parlai_safety.judges.card import card_path, make_card, write_card
from parlai_safety.judges.data import measuring_examples
from parlai_safety.judges.spec import load_judge
from parlai_safety.loops.demo import run_demo
from parlai_safety.loops.methods import run_methods
from parlai_safety.loops.sources import source_of
from parlai_safety.loops.training import quiet
from parlai_safety.runs import Run, alone, hardware, versions
from parlai_safety.zoo.fetch import written_to
from parlai_safety.zoo.store import install, locked, now, workspace

SUITES = ("adversarial", "ordinary")
TAKEN = ("model", "model.opt", "model.dict", "model.dict-vocab.json", "model.dict-merges.txt")
FILES_OF_A_MODEL = ("bpe_merge", "bpe_vocab", "dict_file", "init_model", "model_file")
OF_THIS_MACHINE = ("datapath", "override", "parlai_home", "starttime")
"""Options that ParlAI sets anew wherever a model is loaded."""
BATCH_SIZE = 64
MAX_UNSCORED = 0.02
LARGEST_SEED = 2**32 - 1  # NumPy's and scikit-learn's generators take no other


class Built(NamedTuple):
    """What a build made.

    Attributes:
        folder: the model's folder.
        fresh: whether it was built now; otherwise it was there already.
        differing: of a second build, the files whose bytes differ from the first one's; None where there was none.
    """

    folder: Path
    fresh: bool
    differing: list[str] | None


def build(
    name: str, datapath: str | Path, *, seed: int | None = None, again: bool = False, runs: Path | None = None
) -> Built:
    """Build a model of the zoo, its manifest, and its evaluation (`evaluation.json`), unless it is there.

    Args:
        name: an entry of the registry that has a recipe.
        datapath: ParlAI's data folder.
        seed: of everything that is random; None for the entry's own, which its card is about.
        again: build in any case, from nothing, and compare the files with those that are there.
        runs: folder of the jobs' runs, which entries of one job share; None for `.work`, or of a second build a new
            one (see `new_runs`) of its own.

    Raises:
        SafetyError: the name is unknown, the model is one to download, or the seed is out of range.
    """
    entry = zoo.entry(name)
    if entry.build is None:
        raise SafetyError(
            f"zoo:safety/{name} is not built",
            "Its publishers trained it, on data and machines of theirs",
            f"Type parlai safety_zoo download {name}",
        )
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise SafetyError(
            f"The seed is {seed}",
            f"Random generators here take whole numbers from 0 to {LARGEST_SEED}",
            "Give such a number, or none for the entry's own: --seed 1",
        )
    recipe = entry.build if seed is None else replace(entry.build, seed=seed)
    folder = zoo.folder_of(entry, datapath)
    with written_to(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if recipe.judged_by is not None:
        build(recipe.judged_by, datapath)
    if again and runs is None:
        with new_runs(datapath) as own:
            return build(name, datapath, seed=seed, again=True, runs=own)
    with locked(folder), _threads(recipe.threads):
        before = zoo.manifest_of(folder) if zoo.state_of(entry, datapath) == "ready" else None
        if before is not None and before["seed"] != recipe.seed:
            before = None
        if before is not None and not again:
            if (folder / FILE).is_file():
                return Built(folder, False, None)
            before = None  # stopped before it was measured: its run is there, and is no second build
        work = (runs or folder.parent / ".work") / _run_name(recipe)
        with workspace(folder) as content:
            command = f"parlai safety_zoo build {name}" + ("" if recipe == entry.build else f" --seed {recipe.seed}")
            _run(recipe, work, command)
            _take(recipe, work, content)
            start = time.monotonic()
            with quiet():
                measured = _measure(entry, recipe, content, work, str(datapath))
            made = {
                "how": "built",
                "command": command,
                "time": now(),
                "seed": recipe.seed,
                "threads": recipe.threads,
                "recipe": {"job": recipe.job, "recipe": recipe.recipe, "take": recipe.take},
                "data": source_of(None).hashes,
                "versions": versions(),
                "hardware": hardware(),
                "seconds": {
                    "the whole job, with all its models": _seconds(work),
                    "measuring this model": round(time.monotonic() - start, 1),
                },
            }
            manifest = install(entry, folder, made, content)
        differing = None if before is None else _differing(before["files"], manifest["files"])
        write_json(folder / FILE, {**measured, "second_build": differing, "manifest": manifest})
    return Built(folder, True, differing)


@contextmanager
def new_runs(datapath: str | Path) -> Iterator[Path]:
    """A folder for the runs of second builds, removed at the end; entries that are given the same one share it."""
    parent = Path(datapath) / "models" / "safety"
    with written_to(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for lock in parent.glob(".again-*/.used"):
            with suppress(Timeout), FileLock(lock, timeout=0):  # free: whoever used it was killed
                shutil.rmtree(lock.parent, ignore_errors=True)
        new = Path(tempfile.mkdtemp(dir=parent, prefix=".again-"))
    try:
        with FileLock(new / ".used"):
            yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in {*first, *second} if first.get(name) != second.get(name))


# --- the job ------------------------------------------------------------------------------------------------------


def _train_judges(*, recipe_path: Path | None, out: Path, seed: int, data: Path | None, command: str) -> None:
    """What `parlai safety_judges` does, as a stage of a run."""
    source = source_of(data)
    run = Run(out, {"seed": seed, "data": source.hashes, "version": __version__})
    run.stage("judges", lambda folder: source.train_judges(folder, seed)._asdict())


JOBS: dict[str, Callable[..., Any]] = {"judges": _train_judges, "demo": run_demo, "methods": run_methods}


def _run(recipe: zoo.Recipe, work: Path, command: str) -> None:
    """Run the job, or what is left of it."""
    if recipe.job not in JOBS:
        raise SafetyError(
            f"The registry names the job {recipe.job!r}",
            f"The jobs that build models are {', '.join(JOBS)}",
            "Install the package again, or mend zoo/registry.json",
        )
    # ParlAI's training would go on from its checkpoint with its examples in another order.
    for leftover in work.rglob("model.checkpoint*"):
        leftover.unlink()
    path = None if recipe.recipe is None else resources.recipe(recipe.recipe)
    with alone(work):
        JOBS[recipe.job](recipe_path=path, out=work, seed=recipe.seed, data=None, command=command)


def _run_name(recipe: zoo.Recipe) -> str:
    """The job, and a mark of what its run depends on."""
    text = "" if recipe.recipe is None else resources.recipe(recipe.recipe).read_text(encoding="utf-8")
    facts = [text, recipe.seed, recipe.threads, __version__, sha256(DATA_FOLDER.parent / "manifest.json")]
    return f"{recipe.job}-{zlib.crc32(json.dumps(facts).encode()):08x}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch with so many threads while the block runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(work: Path) -> float:
    """Of all stages of a run, over all its calls."""
    spent = (float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) for path in work.rglob("done.json"))
    return round(sum(spent), 1)


# --- its model ----------------------------------------------------------------------------------------------------


def _take(recipe: zoo.Recipe, work: Path, content: Path) -> None:
    """Copy the model out of the run."""
    source = work / recipe.take
    if source.is_file():
        shutil.copy(source, content / source.name)
        card = Path(f"{source}.card.json")
        if card.is_file():
            shutil.copy(card, content / card.name)
        return
    for name in TAKEN[2:]:
        if (source / name).is_file():
            shutil.copy(source / name, content / name)
    states = torch.load(source / "model", map_location="cpu", weights_only=True)
    torch.save({"model": states["model"]}, content / "model")
    options = json.loads((source / "model.opt").read_text(encoding="utf-8"))
    write_json(content / "model.opt", _portable(options, work) | _decoding(recipe))


def _portable(options: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """A model's options without what holds on this machine alone; ParlAI finds the dictionary beside the model."""

    def here(key: str, value: Any) -> bool:
        return key in OF_THIS_MACHINE or (isinstance(value, str) and (key in FILES_OF_A_MODEL or str(work) in value))

    return {key: value for key, value in options.items() if not here(key, value)}


def _decoding(recipe: zoo.Recipe) -> dict[str, Any]:
    """How the job's recipe has its models speak."""
    assert recipe.recipe is not None
    content = yaml.safe_load(resources.recipe(recipe.recipe).read_text(encoding="utf-8"))
    return dict(content["decoding"])


def _measure(entry: zoo.Entry, recipe: zoo.Recipe, content: Path, work: Path, datapath: str) -> dict[str, Any]:
    """The evaluation of a judge on labelled talk of the test split, or of a generator on the suites."""
    if entry.kind == "judge":
        return _measure_judge(entry, content, recipe.seed)
    return evaluation_of_generator(entry, _evaluate(entry, recipe, content, work, datapath))


def _measure_judge(entry: zoo.Entry, content: Path, seed: int) -> dict[str, Any]:
    judge: Any = load_judge(f"linear:{content / entry.model}")
    judge.spec, judge.file = entry.zoo_path, content / entry.model
    before = json.loads(card_path(judge).read_text(encoding="utf-8"))
    source = measuring_examples(None, seed=seed)
    card = make_card(
        judge,
        source.examples,
        measured_on=source.name,
        files=source.files,
        trained_on=before["trained_on"],
        extra={key: value for key, value in before.items() if key.startswith("agreement_with_")},
    )
    write_card(card, card_path(judge))
    return evaluation_of_judge(entry, card)


def _evaluate(entry: zoo.Entry, recipe: zoo.Recipe, content: Path, work: Path, datapath: str) -> Evaluation:
    path = content / entry.model
    plan = Plan(
        name=entry.name,
        system={"model_file": entry.zoo_path, "sha256": sha256(path)},
        suites=[load_suite(name, limit=recipe.limit) for name in SUITES],
        judges=[load_judge(f"zoo:safety/{recipe.judged_by}", datapath=datapath)],
        out=work / "zoo" / entry.name,
        seed=recipe.seed,
        batch_size=BATCH_SIZE,
        max_unscored=MAX_UNSCORED,
        retry_unscored=False,
        command=f"parlai safety_eval -mf {entry.zoo_path} --suite {','.join(SUITES)} "
        f"--judge zoo:safety/{recipe.judged_by} --limit {recipe.limit} --seed {recipe.seed} --out FOLDER",
        evasive=evasive_detector(),
        coherence=coherence_scorer(None, resources.cache_folder()),
        settings={"data": None, "limit": recipe.limit, "samples": None},
    )
    return evaluate(plan, lambda: load_agent(str(path), loglevel="error"))
