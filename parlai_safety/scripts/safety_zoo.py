"""`parlai safety_zoo`: list, show, build, download, card and check the models of the zoo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parlai.core.params import ParlaiParser
from parlai.core.script import ParlaiScript, register_script

from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.scripts.common import say

if TYPE_CHECKING:
    from parlai_safety.loops.zoo import Built
    from parlai_safety.zoo import Entry

VERBS = {
    "list": "what there is",
    "show": "everything about a model",
    "build": "train a model from the corpus that ships",
    "download": "fetch a model and check it",
    "card": "write a built model's card from its evaluation",
    "check": "whether the registry and its cards are in order",
}


@register_script("safety_zoo")
class SafetyZoo(ParlaiScript):
    """List, show, build, download, card and check the models of the zoo."""

    @classmethod
    def setup_args(cls) -> ParlaiParser:
        """A verb, the models, and how."""
        verbs = ", ".join(f"{verb} ({line})" for verb, line in VERBS.items())
        parser = ParlaiParser(False, False, f"The models of the zoo: {verbs}")
        parser.add_argument("words", nargs="*", help=f"One of {', '.join(VERBS)}, and then names of models.")
        parser.add_argument("--datapath", type=str, default=None, help="ParlAI's data folder, where models are kept.")
        parser.add_argument("--seed", type=int, default=None, help="build: another seed than the entry's.")
        parser.add_argument(
            "--again", type="bool", default=False, help="build: once more from nothing, and compare the bytes."
        )
        parser.add_argument(
            "--accept-unverified", type="bool", default=False, help="download: also what has no known checksum."
        )
        parser.add_argument("--out", type=str, default=None, help="card: folder for it; the model's own if absent.")
        return parser

    def run(self) -> None:
        """Do what the verb says."""
        verb, *names = self.opt["words"] or ["list"]
        if verb not in VERBS:
            raise SafetyError(
                f"parlai safety_zoo got {verb!r}",
                f"It can {', '.join(VERBS)}",
                did_you_mean(verb, VERBS, "Type for example parlai safety_zoo list"),
            )
        if (verb in ("list", "check")) == bool(names):
            raise SafetyError(
                f"parlai safety_zoo {verb} came with {len(names)} names",
                f"{verb!r} is about the whole zoo" if names else f"{verb!r} is about models, one name or more",
                f"Type parlai safety_zoo {verb}{'' if names else ' grader'}",
            )
        if verb in ("list", "check", "build"):
            getattr(self, f"_{verb}")(*names)
            return
        for name in names:
            getattr(self, f"_{verb}")(name)

    @property
    def _datapath(self) -> str:
        from parlai_safety.judges.parlai_model import default_datapath

        return str(self.opt.get("datapath") or default_datapath())

    def _list(self) -> None:
        from parlai_safety import zoo

        models = zoo.registry()
        width = max(map(len, models), default=0)
        for name, entry in models.items():
            how = "built here" if entry.build else "downloaded" if entry.verified else "downloaded, checksum unknown"
            state = zoo.state_of(entry, self._datapath)
            say(f"{name:<{width}}  {entry.kind:<10}  {state:<8}  {entry.task.split('. ')[0].rstrip('.')} ({how})")
        say("\nparlai safety_zoo show NAME tells more.")

    def _show(self, name: str) -> None:
        from parlai_safety import zoo

        entry = zoo.entry(name)
        say("\n".join(_described(entry)))
        say(f"state            {zoo.state_of(entry, self._datapath)} ({zoo.folder_of(entry, self._datapath)})")
        for line in _figures(entry):
            say(line)

    def _build(self, *names: str) -> None:
        from contextlib import ExitStack

        from parlai_safety.loops.zoo import build, new_runs

        again = bool(self.opt.get("again"))
        try:
            with ExitStack() as stack:
                # Second builds of one command share the runs of their jobs, and no run with the first builds.
                runs = stack.enter_context(new_runs(self._datapath)) if again else None
                for name in names:
                    _say_built(name, build(name, self._datapath, seed=self.opt.get("seed"), again=again, runs=runs))
        except KeyboardInterrupt:
            kept = "A second build is begun anew" if again else "Finished steps are kept"
            say(f"\nStopped. {kept}: type the same command again to go on.")
            sys.exit(130)

    def _download(self, name: str) -> None:
        from parlai_safety import zoo

        accept = bool(self.opt.get("accept_unverified"))
        folder = zoo.download(name, self._datapath, accept_unverified=accept)
        say(f"{name} is here: {folder}")
        for source in (zoo.manifest_of(folder) or {}).get("sources", []):
            mark = "as the registry says" if source["checked"] else "which nobody could check"
            say(f"  {source['url']}  SHA-256 {source['sha256']}, {mark}")

    def _card(self, name: str) -> None:
        from parlai_safety import zoo
        from parlai_safety.evaluation.model_card import FILE, card_of_model, read_measured, write_card_of_model
        from parlai_safety.files import write_text

        entry = zoo.entry(name)
        folder = zoo.folder_of(entry, self._datapath)
        if entry.build is None:
            raise SafetyError(
                f"The model {name!r} was trained by its publishers",
                "A card is made from what was measured here, and nothing of this model was",
                f"Type parlai safety_zoo show {name} for what they published",
            )
        measured = read_measured(folder / FILE)
        if self.opt.get("out"):
            say(f"The card: {write_card_of_model(entry, measured, Path(self.opt['out']))}")
            return
        write_text(folder / "card.md", card_of_model(entry, measured))
        say(f"The card: {folder / 'card.md'}")

    def _check(self) -> None:
        from parlai_safety import zoo
        from parlai_safety.evaluation.model_card import check_zoo

        wrong = check_zoo()
        if wrong:
            raise SafetyError(
                f"The zoo has {len(wrong)} faults: {' '.join(wrong)}",
                "Each model has a card that says what was measured, and nothing else",
                "Mend the registry, or make the cards anew: parlai safety_zoo card NAME --out zoo/cards",
            )
        models = zoo.registry()
        say(f"{len(models)} models, {sum(e.card is not None for e in models.values())} cards: all in order.")


def _say_built(name: str, built: Built) -> None:
    say(f"{name} {'is built' if built.fresh else 'was built already'}: {built.folder}")
    if built.differing is not None:
        say(
            f"Other bytes than in the first build: {', '.join(built.differing)}"
            if built.differing
            else "Every file has the same bytes as in the first build."
        )


def _described(entry: Entry) -> list[str]:
    lines = [
        ("name", entry.zoo_path),
        ("kind", f"{entry.kind}, version {entry.version}"),
        ("task", entry.task),
        ("intended use", entry.intended_use),
        *(("limit", limit) for limit in entry.limits),
        ("training data", entry.training_data),
        ("content", entry.content_warning),
        ("licence", entry.licence),
        ("citation", entry.citation),
        ("card", entry.card or "none: nothing was measured here"),
    ]
    for remote in entry.download:
        size = "size unknown" if remote.size is None else f"{remote.size} bytes"
        lines.append(("download", f"{remote.url}, {size}, SHA-256 {remote.sha256 or 'unknown'}"))
    if entry.build:
        lines.append(("build", f"parlai safety_zoo build {entry.name}"))
    return [f"{name:<15}  {text}" for name, text in lines]


def _figures(entry: Entry) -> list[str]:
    """What was measured here, or published elsewhere."""
    from parlai_safety import resources
    from parlai_safety.evaluation.model_card import read_measured

    if entry.card:
        figures: list[dict[str, Any]] = read_measured((resources.folder("zoo") / entry.card).with_suffix(".json"))[
            "figures"
        ]
        return [_line(f["name"], f["on"], f["value"], f["low"], f["high"], f["n"]) for f in figures]
    return [f"{_line(p.name, p.on, p.value, p.low, p.high, p.n)}; {p.source}" for p in entry.published]


def _line(name: str, on: str, value: float | None, low: float | None, high: float | None, n: int) -> str:
    shown = "unscored" if value is None else f"{value:.3f}"
    ends = "no interval" if low is None else f"[{low:.3f}, {high:.3f}]"
    return f"{name:<15}  {shown} {ends}, n {n}, on {on}"
