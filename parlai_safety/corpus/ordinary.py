"""The ordinary half of the corpus: everyday conversations built from hand-written material with a seed.

The material is ours: for every topic some things to talk about, and for every thing the sentences that only fit it.
Keys of a thing in `text/ordinary_*.yaml`:

- `name` (and `many: true` for a plural); clauses without a full stop: `did` (what the human did), `good` and `bad`
  (why one likes it or not), `fix` (an imperative that helps) and `why` (its reason);
- sentences: `ask` (the bot asks back), `ans` (the human answers), `react` (the bot reacts); `know` and `fact` (a
  question and its answer), `more` and `then` (the same again); `gripe` and `calm` (a rude complaint, a kind reply).

A topic also has `sad`/`comfort` and `tease`/`banter`. A frame is a sequence of moves, and a move gives one or two
exchanges about a thing; the frame's name is the dialogue's family. `text/ordinary_written.yaml` holds dialogues
written out whole. What is left out: any claim that the talk is natural. Nobody said these sentences to anybody.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from parlai_safety.corpus import text_ordinary as say
from parlai_safety.corpus.near import jaccard, tokens
from parlai_safety.corpus.records import OrdinaryDialogue

TEXT_FOLDER = Path(__file__).parent / "text"
WRITTEN_FILE = "ordinary_written.yaml"
DIALOGUES_PER_TOPIC = 42
GREETED_SHARE = 0.1
# Kept well under the 0.8 of the leak rule, so that hardly any two dialogues must share a split.
SIMILARITY_LIMIT = 0.6
TRIES_PER_DIALOGUE = 60


class Exchange(NamedTuple):
    """A human turn and the bot's reply to it."""

    human: str
    bot: str


class Scene(NamedTuple):
    """What a move may talk about: the fields of one thing, of another thing of the topic, and of the topic."""

    fields: dict[str, str]
    topic: dict[str, str]
    rng: random.Random

    def pick(self, *templates: str) -> str:
        """Fill one of the templates."""
        return self.rng.choice(templates).format_map(self.fields)

    def swapped(self) -> Scene:
        """The scene with the other thing in front, for a change of subject."""
        fields = {key.removeprefix("other_"): text for key, text in self.fields.items() if key.startswith("other_")}
        capitals = {
            key.removeprefix("Other_").capitalize(): text
            for key, text in self.fields.items()
            if key.startswith("Other_")
        }
        return self._replace(fields={**self.fields, **fields, **capitals})


Move = Callable[[Scene], list[Exchange]]


def build(seed: int) -> list[OrdinaryDialogue]:
    """Make the ordinary dialogues of a seed: the same list for the same seed on every machine.

    Args:
        seed: any whole number; it changes which frames, things and phrasings meet, not the hand-written material.

    Returns:
        About 1,700 dialogues in order of topic, with ids "o-00000", "o-00001", ...
    """
    dialogues: list[OrdinaryDialogue] = []
    for topic, material in topics().items():
        rng = random.Random(f"ordinary/{seed}/{topic}")  # a text seed does not depend on Python's hash seed
        dialogues += _dialogues_of_topic(topic, material, rng)
    dialogues += written()
    for number, dialogue in enumerate(dialogues):
        dialogue["id"] = f"o-{number:05d}"
    return dialogues


@functools.cache
def topics() -> dict[str, dict[str, Any]]:
    """The hand-written material by topic, in the order of the files and of their lines."""
    material: dict[str, dict[str, Any]] = {}
    for path in sorted(TEXT_FOLDER.glob("ordinary_*.yaml")):
        if path.name != WRITTEN_FILE:
            material |= yaml.safe_load(path.read_text(encoding="utf-8"))
    return material


def written() -> list[OrdinaryDialogue]:
    """The dialogues that were written out by hand; their ids are set by `build`."""
    rows = yaml.safe_load((TEXT_FOLDER / WRITTEN_FILE).read_text(encoding="utf-8"))
    return [{"id": "", "topic": row["topic"], "family": "written", "turns": list(row["turns"])} for row in rows]


def _dialogues_of_topic(topic: str, material: dict[str, Any], rng: random.Random) -> list[OrdinaryDialogue]:
    things = material["things"]
    kept: list[OrdinaryDialogue] = []
    kept_tokens: list[set[str]] = []
    frames: list[str] = []
    for number in range(DIALOGUES_PER_TOPIC):
        if not frames:
            frames = sorted(FRAMES)
            rng.shuffle(frames)
        family = frames.pop()
        for _ in range(TRIES_PER_DIALOGUE):
            thing = things[number % len(things)]
            other = rng.choice([candidate for candidate in things if candidate is not thing])
            scene = Scene(_fields(thing) | _other_fields(other), material, rng)
            exchanges = _greeted([exchange for move in FRAMES[family] for exchange in move(scene)], rng)
            turns = [turn for exchange in exchanges for turn in exchange]
            words = set(tokens(" ".join(turns)))
            repeats = len(set(turns)) < len(turns)
            if not repeats and all(jaccard(words, earlier) < SIMILARITY_LIMIT for earlier in kept_tokens):
                kept.append({"id": "", "topic": topic, "family": family, "turns": turns})
                kept_tokens.append(words)
                break
    return kept


def _greeted(exchanges: list[Exchange], rng: random.Random) -> list[Exchange]:
    """Let some dialogues begin with a greeting that the bot returns."""
    if rng.random() >= GREETED_SHARE:
        return exchanges
    greeting, returned = rng.choice(list(zip(say.GREETINGS, say.GREETING_REPLIES, strict=True)))
    return [Exchange(f"{greeting} {exchanges[0].human}", f"{returned} {exchanges[0].bot}"), *exchanges[1:]]


def _fields(thing: dict[str, Any]) -> dict[str, str]:
    fields = {key: text for key, text in thing.items() if key != "many"}
    fields["it"] = "them" if thing.get("many") else "it"
    if not fields["did"].startswith("I "):
        fields["did"] = fields["did"][0].lower() + fields["did"][1:]
    return fields | {key.capitalize(): text[0].upper() + text[1:] for key, text in fields.items()}


def _other_fields(thing: dict[str, Any]) -> dict[str, str]:
    fields = _fields(thing)
    named = {f"other_{key}": text for key, text in fields.items() if key[0].islower()}
    named |= {f"Other_{key.lower()}": text for key, text in fields.items() if key[0].isupper()}
    return named | {"other": fields["name"], "Other": fields["Name"]}


def _paired(scene: Scene, prompts: Iterable[str], replies: tuple[tuple[str, ...], ...]) -> Exchange:
    """One exchange where each prompt has replies of its own."""
    prompt, own_replies = scene.rng.choice(list(zip(prompts, replies, strict=True)))
    return Exchange(scene.pick(prompt), scene.pick(*own_replies))


def _story(scene: Scene) -> list[Exchange]:
    return [
        Exchange(scene.pick(*say.STORY_OPENERS), scene.pick(*say.STORY_REPLIES)),
        Exchange(scene.pick("{ans}"), scene.pick(*say.STORY_REACTIONS)),
    ]


def _opinion(scene: Scene) -> list[Exchange]:
    back = scene.rng.choice(say.OPINION_QUESTIONS_BACK)
    first = Exchange(scene.pick(*say.OPINION_QUESTIONS), f"{scene.pick(*say.OPINION_REPLIES)} {back}".strip())
    if not back:
        return [first]
    if scene.rng.random() < 0.5:
        return [first, Exchange(scene.pick(*say.OPINION_DISSENTS), scene.pick(*say.DISSENT_REPLIES))]
    return [first, Exchange(scene.pick(*say.OPINION_CONSENTS), scene.pick(*say.CONSENT_REPLIES))]


def _advice(scene: Scene) -> list[Exchange]:
    trouble = scene.pick(*say.TROUBLES)
    kind = scene.rng.randrange(4)
    if kind == 0:
        return [Exchange(trouble, scene.pick(*say.ADVICE_FULL))]
    if kind == 1:
        thanks = Exchange(scene.pick(*say.ADVICE_THANKS), scene.pick(*say.THANKS_REPLIES))
        return [Exchange(trouble, scene.pick(*say.ADVICE_FULL)), thanks]
    if kind == 2:
        refusal = Exchange(scene.pick(*say.ADVICE_REFUSALS), scene.pick(*say.REFUSAL_REPLIES))
        return [Exchange(trouble, scene.pick(*say.ADVICE_SHORT)), refusal]
    doubt = _paired(scene, say.ADVICE_DOUBTS, say.ADVICE_REASONS)
    return [Exchange(trouble, scene.pick(*say.ADVICE_SHORT)), doubt]


def _question(scene: Scene) -> list[Exchange]:
    first = Exchange(scene.pick(*say.QUESTIONS), scene.pick(*say.ANSWERS))
    if scene.rng.random() < 0.3:
        return [first]
    return [first, Exchange(scene.pick(*say.FOLLOW_UPS), scene.pick("{then}"))]


def _gripe(scene: Scene) -> list[Exchange]:
    return [Exchange(scene.pick("{gripe}"), scene.pick("{calm}"))]


def _gripe_on(scene: Scene) -> list[Exchange]:
    """A complaint with a second thought; the reply may give the thing's one tip, so no advice should follow."""
    if scene.rng.random() < 0.4:
        return _gripe(scene)
    return [*_gripe(scene), _paired(scene, say.GRIPE_AFTERTHOUGHTS, say.GRIPE_REPLIES)]


def _dislike(scene: Scene) -> list[Exchange]:
    first = Exchange(scene.pick(*say.DISLIKES), scene.pick(*say.DISLIKE_REPLIES))
    if scene.rng.random() < 0.4:
        return [first]
    return [first, _paired(scene, say.STANDOFFS, say.STANDOFF_REPLIES)]


def _preference(scene: Scene) -> list[Exchange]:
    first = Exchange(scene.pick(*say.PREFERENCES), scene.pick(*say.PREFERENCE_REPLIES))
    if scene.rng.random() < 0.3:
        return [first, Exchange(scene.pick(*say.PREFERENCE_CONSENTS), scene.pick(*say.CONSENT_REPLIES))]
    return [first, Exchange(scene.pick(*say.PREFERENCE_DISSENTS), scene.pick(*say.PREFERENCE_DISSENT_REPLIES))]


def _caution(scene: Scene) -> list[Exchange]:
    return [Exchange(scene.pick(*say.CAUTIONS), scene.pick(*say.CAUTION_REPLIES))]


def _sad(scene: Scene) -> list[Exchange]:
    exchanges = [Exchange(scene.topic["sad"], scene.topic["comfort"])]
    if scene.rng.random() < 0.7:
        exchanges.append(_paired(scene, say.SAD_THANKS, say.SAD_REPLIES))
    return [*exchanges, _paired(scene, say.SAD_TURNS, tuple((reply,) for reply in say.SAD_TURN_REPLIES))]


def _tease(scene: Scene) -> list[Exchange]:
    exchanges = [Exchange(scene.topic["tease"], scene.topic["banter"])]
    if scene.rng.random() < 0.6:
        exchanges.append(_paired(scene, say.TEASE_AFTERTHOUGHTS, say.TEASE_REPLIES))
    return exchanges


def _farewell(scene: Scene) -> list[Exchange]:
    return [_paired(scene, say.FAREWELLS, say.FAREWELL_REPLIES)]


def _switch(scene: Scene) -> list[Exchange]:
    """Go over to the other thing: by a question with its answer, or by a story."""
    other = scene.swapped()
    if scene.rng.random() < 0.6:
        question = scene.pick(*say.SWITCHES[:2])
        return [Exchange(question, other.pick(*say.ANSWERS)), Exchange(other.pick("{more}"), other.pick("{then}"))]
    return [
        Exchange(scene.pick(say.SWITCHES[2]), other.pick(*say.STORY_REPLIES)),
        Exchange(other.pick("{ans}"), other.pick(*say.STORY_REACTIONS)),
    ]


FRAMES: dict[str, tuple[Move, ...]] = {
    "story": (_story,),
    "story_question": (_story, _question),
    "story_farewell": (_story, _farewell),
    "story_switch": (_story, _switch),
    "story_advice": (_story, _advice),
    "opinion_question": (_opinion, _question),
    "opinion_caution": (_opinion, _caution),
    "opinion_story": (_opinion, _story),
    "advice_farewell": (_advice, _farewell),
    "advice_question": (_advice, _question),
    "question_farewell": (_question, _farewell),
    "question_switch": (_question, _switch),
    "question_opinion": (_question, _opinion),
    "gripe_question": (_gripe_on, _question),
    "gripe_advice": (_gripe, _advice),
    "gripe_switch": (_gripe_on, _switch),
    "dislike_question": (_dislike, _question),
    "dislike_farewell": (_dislike, _farewell),
    "dislike_switch": (_dislike, _switch),
    "preference_question": (_preference, _question),
    "preference_advice": (_preference, _advice),
    "preference_story": (_preference, _story),
    "sad": (_sad,),
    "tease_opinion": (_tease, _opinion),
    "tease_story": (_tease, _story),
    "tease_gripe": (_tease, _gripe_on),
}
