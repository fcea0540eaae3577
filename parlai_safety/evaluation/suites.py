"""Suites: what a system is asked, with a version and a hash each, so that two evaluations can tell that they agree.

Shipped suites are data files beside this module or splits of the corpus that ships; `--data` replaces three of them by
real data of the same kind. Two more are the sets of 180 contexts each on which Xu et al. (2020, arXiv:2010.07079) let
people judge replies; they are downloaded. Any ParlAI task is a suite too (`task:NAME`), and so is a file of contexts
(`file:PATH`). A suite says nothing about models or judges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from parlai_safety.corpus.load import DATA_FOLDER, load_adversarial, load_ordinary
from parlai_safety.errors import SafetyError, did_you_mean
from parlai_safety.files import bad_row, read_rows, row_field, row_turns, sha256
from parlai_safety.judges.probes import identity_contexts
from parlai_safety.tasks.chat.agents import FILE as CHAT_FILE
from parlai_safety.tasks.chat.agents import chat_rows
from parlai_safety.tasks.labels.agents import FILE as LABELS_FILE
from parlai_safety.tasks.labels.agents import label_rows

FOLDER = Path(__file__).parent / "suites"
PROMPTS_FILE = "toxicity_prompts.jsonl.gz"
DEFAULT_LIMIT = 1000
SAMPLES_OF_A_PROMPT = 25  # Gehman et al. 2020, arXiv:2009.11462: 25 continuations a prompt
CHAT_DIALOGUES = 2000
TURNS = 7

Kind = Literal["replies", "continuations", "conversations"]
T = TypeVar("T")


class Item(NamedTuple):
    """One thing that a system is asked.

    Attributes:
        id: unique in the suite, and the same in every run.
        context: turns, oldest first, the last one to be answered; a prompt is one turn to be continued.
        conversation: items that share it are not independent.
        category: what kind of item, or None.
        group: the identity group that a probe names, or None.
        references: replies that people gave; may be empty.
        script: in a conversation, what the partner says after each of the bot's turns but the last.
    """

    id: str
    context: tuple[str, ...]
    conversation: str
    category: str | None = None
    group: str | None = None
    references: tuple[str, ...] = ()
    script: tuple[str, ...] = ()


class Suite(NamedTuple):
    """What a system is asked, all of it.

    Attributes:
        name: as the user typed it.
        version: rises when the meaning of the suite changes.
        kind: "replies", "continuations" (judged without the prompt) or "conversations" (several turns).
        title: for headings.
        about: what it holds, who wrote it, what a result means.
        offensive: whether its items need a warning before they are shown.
        samples: replies an item.
        items: in a fixed order.
        file: the data file that the items come from, or None: a judge that was measured on the same file has known
            error rates here.
        file_sha256: of that file.
    """

    name: str
    version: int
    kind: Kind
    title: str
    about: str
    offensive: bool
    samples: int
    items: tuple[Item, ...]
    file: str | None = None
    file_sha256: str | None = None

    @property
    def sha256(self) -> str:
        """A hash of everything that a system is asked."""
        content = [self.version, self.kind, self.samples, [list(item) for item in self.items]]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def known_suites() -> dict[str, str]:
    """The suites: how each is written, and one line about it."""
    lines = {name: about for name, (_, about) in _SHIPPED.items()}
    return {
        **lines,
        **{name: about for name, (*_, about) in _HUMAN.items()},
        "task:NAME": "contexts of any ParlAI task, such as task:bot_adversarial_dialogue:HumanSafetyEvaluation",
        "file:PATH": "contexts of a JSONL file: context (list of turns); id, category, conversation, reference if any",
    }


def load_suite(
    name: str,
    *,
    data: Path | None = None,
    limit: int | None = DEFAULT_LIMIT,
    samples: int | None = None,
    datapath: str | None = None,
) -> Suite:
    """Load a suite by its name.

    Args:
        name: see `known_suites`.
        data: a folder of real data, from which adversarial, ordinary and prompts are read instead of what ships.
        limit: at most so many items, spread evenly over all; None for all. The same limit gives the same items.
        samples: replies an item; None for the suite's own number.
        datapath: ParlAI's data folder, for its tasks; None = ParlAI's default.

    Raises:
        SafetyError: there is no such suite, a file is missing or malformed, or a number is out of range.
    """
    if (limit is not None and limit < 1) or (samples is not None and samples < 1):
        raise SafetyError(
            f"The suite {name!r} was asked for with limit {limit} and {samples} samples",
            "Both are counts of at least 1",
            "Leave them out for all items and the suite's own number of samples",
        )
    kind, _, argument = name.partition(":")
    if kind == "task" and argument:
        suite = _task(name, argument, datapath)
    elif kind == "file" and argument:
        suite = _file(name, Path(argument))
    elif name in _SHIPPED:
        suite = _SHIPPED[name][0](data)
    elif name in _HUMAN:
        suite = _human(name, datapath)
    else:
        near = did_you_mean(name, _SHIPPED | _HUMAN, "Use one of them")
        raise SafetyError(f"--suite got {name!r}", f"The suites are {', '.join(known_suites())}", near)
    ids = [item.id for item in suite.items]
    if not ids or len(set(ids)) < len(ids):
        raise SafetyError(
            f"The suite {name!r} has {len(ids)} items with {len(set(ids))} different ids",
            "An id names one item, and pairs the replies of two systems",
            "Give every item an id of its own, or leave all ids out",
        )
    items = tuple(spread(suite.items, limit or len(ids)))
    return suite._replace(items=items, samples=samples or suite.samples)


def distinct_contexts(rows: Iterable[Any]) -> list[list[str]]:
    """The contexts of rows, each once, in order of first appearance."""
    return [list(context) for context in dict.fromkeys(tuple(row.context) for row in rows)]


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spread over the sequence: a subset that depends on no seed."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _adversarial(data: Path | None) -> Suite:
    about = "A person provokes, insults, baits or probes; the system answers the last turn. "
    if data is None:
        items = [Item(row["id"], tuple(row["context"]), row["id"], row["style"]) for row in load_adversarial("test")]
        about += "Contexts of the test split of the corpus that ships, written by the authors about invented people."
    else:
        first: dict[tuple[str, ...], str] = {}
        for row in label_rows(_data_file(data, LABELS_FILE), "test", speaker="bot"):
            if row.context:
                first.setdefault(tuple(row.context), row.fields["provenance"]["source"])
        items = [Item(_id(context), context, context[0], source) for context, source in first.items()]
        about += f"Contexts of labelled bot turns in {LABELS_FILE}, test split by a hash of the first turn."
    file = DATA_FOLDER / "adversarial.test.jsonl" if data is None else data / LABELS_FILE
    title = "Adversarial dialogue"
    return Suite("adversarial", 1, "replies", title, about, True, 1, tuple(items), file.name, sha256(file))


def _ordinary(data: Path | None) -> Suite:
    about = "Everyday talk; the system answers, and what a person answered is the reference. "
    items = []
    if data is None:
        for row in load_ordinary("test"):
            turns = tuple(row["turns"])
            for at in range(1, len(turns), 2):
                items.append(Item(f"{row['id']}-{at}", turns[:at], row["id"], references=(turns[at],)))
        about += "Dialogues of the test split of the corpus that ships."
    else:
        for chat in chat_rows(_data_file(data, CHAT_FILE), "test", max_dialogues=CHAT_DIALOGUES):
            context = tuple(chat.context)
            source = chat.fields["provenance"]["source"]
            item = Item(_id((*context, chat.reply)), context, chat.fields["provenance"]["dialogue"], source)
            items.append(item._replace(references=(chat.reply,)))
        items = list({item.id: item for item in items}.values())
        about += f"The first {CHAT_DIALOGUES} dialogues of {CHAT_FILE} in the test split by a hash of the first turn."
    file = DATA_FOLDER / "ordinary.test.jsonl" if data is None else data / CHAT_FILE
    title = "Ordinary dialogue"
    return Suite("ordinary", 1, "replies", title, about, False, 1, tuple(items), file.name, sha256(file))


def _prompts(data: Path | None) -> Suite:
    if data is None:
        return _from_yaml("prompts")
    items = []
    for where, row in read_rows(_data_file(data, PROMPTS_FILE)):
        prompt = row_field(row, "prompt", str, where)
        category = "challenging" if row_field(row, "challenging", bool, where) else "other"
        items.append(Item(_id((prompt,)), (prompt,), prompt, category))
    items = list({item.id: item for item in items}.values())
    about = (
        f"Beginnings of web sentences from {PROMPTS_FILE} (RealToxicityPrompts, arXiv:2009.11462), half of them "
        "challenging; each is continued 25 times, and the continuation is judged without the prompt."
    )
    title = "Toxicity prompts"
    return Suite("prompts", 1, "continuations", title, about, True, SAMPLES_OF_A_PROMPT, tuple(items))


def _identity(data: Path | None) -> Suite:
    # Replies to one question resemble each other whatever group it names. In the order of a hash, a limit that takes
    # evenly spaced items takes questions and groups alike.
    items = tuple(
        Item(probe.id, (probe.text,), "-".join(probe.id.split("-", 2)[:2]), category=probe.axis, group=probe.group)
        for probe in sorted(identity_contexts(), key=lambda probe: _id((probe.id,)))
    )
    about = (
        "Kind questions that name a group of people, from templates written by the authors. A fair system answers "
        "all groups alike; the report names the largest gap. A judge has gaps of its own: see its card."
    )
    return Suite("identity", 1, "replies", "Identity probes", about, False, 1, items)


def _from_yaml(name: str) -> Suite:
    import yaml

    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    kind = content["kind"]
    assert kind in get_args(Kind)
    items = []
    for row in content["items"]:
        turns = tuple(row.get("turns", ()))
        context = turns[:1] or tuple(row.get("context", ())) or (row["prompt"],)
        items.append(Item(row["id"], context, row["id"], row.get("category"), script=turns[1:]))
    return Suite(
        name,
        content["version"],
        kind,
        content["title"],
        " ".join(content["about"].split()),
        content["offensive"],
        content.get("samples", 1),
        tuple(items),
    )


def with_partner(suite: Suite) -> Suite:
    """A suite of conversations whose partner is a model: openings instead of scripts. Other suites as they are."""
    import yaml

    if suite.kind != "conversations":
        return suite
    openers = yaml.safe_load((FOLDER / "multiturn.yaml").read_text(encoding="utf-8"))["openers"]
    items = tuple(Item(f"opener-{n:02}", (text,), f"opener-{n:02}") for n, text in enumerate(openers, 1))
    return suite._replace(items=items)


def _shipped_file(name: str) -> Callable[[Path | None], Suite]:
    return lambda data: _from_yaml(name)


_SHIPPED: dict[str, tuple[Callable[[Path | None], Suite], str]] = {
    "adversarial": (_adversarial, "replies to provoking, insulting, baiting or probing talk"),
    "ordinary": (_ordinary, "replies to everyday talk, with references: quality, and false alarms"),
    "prompts": (_prompts, "25 continuations a sentence beginning: expected maximum toxicity"),
    "overrefusal": (
        _shipped_file("overrefusal"),
        "harmless questions that sound alarming: does the system dodge them?",
    ),
    "identity": (_identity, "kind questions that name groups of people: is one group answered worse?"),
    "multiturn": (_shipped_file("multiturn"), f"up to {TURNS} turns with an adversarial partner: when does it fail?"),
}


def _file(name: str, path: Path) -> Suite:
    items = []
    for number, (where, row) in enumerate(read_rows(path), 1):
        context = tuple(row_turns(row, "context", where, at_least=1))
        references = row.get("references") or ([row["reference"]] if row.get("reference") else [])
        if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
            raise bad_row(where, "a reference that is not text", "reference is a string, references a list of strings")
        conversation = str(row.get("conversation") or context[0])
        group, category = (str(row[key]) if row.get(key) else None for key in ("group", "category"))
        identity = str(row.get("id") or f"{number}-{_id(context)}")
        items.append(Item(identity, context, conversation, category, group, tuple(references)))
    return Suite(name, 1, "replies", path.name, f"Contexts of the file {path.name}.", True, 1, tuple(items))


_HUMAN: dict[str, tuple[str, str, str]] = {
    "human_adversarial": (
        "HumanSafetyTeacher",
        "Adversarial contexts for people's judgement",
        "180 contexts in which people provoked a bot, whose answers people judge (downloaded)",
    ),
    "human_nonadversarial": (
        "HumanNonadvTeacher",
        "Ordinary contexts for people's judgement",
        "180 contexts without provocation, whose answers people judge (downloaded)",
    ),
}


def _human(name: str, datapath: str | None) -> Suite:
    """One of the two fixed sets: all turns of a context, of which only the reply to the last one is judged."""
    teacher, title, about = _HUMAN[name]
    try:
        contexts = [turns for turns, _ in _task_turns(f"parlai_safety.tasks.bad.agents:{teacher}", datapath)]
    except SafetyError as error:
        raise SafetyError(
            f"The suite {name!r} has no data: {error.got}",
            error.why,
            "Run the command once where there is a network, and copy the folder bot_adversarial_dialogue of ParlAI's "
            "data folder from there (-dp names that folder); or use --suite adversarial, which ships",
        ) from error
    # The labels are what the bots of that time said, or classes, and no reply that ought to be given.
    items = tuple(Item(f"{number}-{_id(turns)}", turns, turns[0]) for number, turns in enumerate(contexts))
    kind = "adversarial" if name == "human_adversarial" else "non-adversarial"
    about = (
        f"The {len(items)} contexts of Bot-Adversarial Dialogue's {kind} evaluation set "
        "(arXiv:2010.07079), each with all turns before the reply. The published figure is the share of "
        "replies that people call OK, for which parlai safety_human exports and reads labels."
    )
    return Suite(name, 1, "replies", title, about, True, 1, items)


def _task(name: str, task: str, datapath: str | None) -> Suite:
    """The contexts of a ParlAI task, test split, with the turns before them in their episode."""
    items = []
    for number, (context, label) in enumerate(_task_turns(task, datapath)):
        references = (label,) if label and not (label.startswith("__") and label.endswith("__")) else ()
        items.append(Item(f"{number}-{_id(context)}", context, context[0], references=references))
    about = f"Contexts of ParlAI's task {task}, test split, each with the turns before it in its episode."
    return Suite(name, 1, "replies", task, about, True, 1, tuple(items))


def _task_turns(task: str, datapath: str | None) -> Iterator[tuple[tuple[str, ...], str | None]]:
    from parlai.core.agents import create_agent
    from parlai.core.params import ParlaiParser
    from parlai.core.worlds import create_task

    folder = {} if datapath is None else {"datapath": datapath}
    parser = ParlaiParser(True, True)
    opt = parser.parse_kwargs(task=task, datatype="test", model="repeat_label", batchsize=1, **folder)
    world = create_task(opt, create_agent(opt))
    history: list[str] = []
    while not world.epoch_done():
        world.parley()
        act = world.acts[0]
        if not act.get("text"):
            continue
        history += str(act["text"]).split("\n")
        label = (act.get("eval_labels") or act.get("labels") or [None])[0]
        yield tuple(history), label
        history = [] if act.get("episode_done") else [*history, *([label] if label else [])]
    world.shutdown()


def _data_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise SafetyError(
            f"There is no file {name} in {str(folder)!r}",
            "With --data this suite is read from that file",
            "Name the folder that holds it, or leave --data out to use what ships",
        )
    return folder / name


def _id(turns: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(turns).encode()).hexdigest()[:16]
