"""Conversations as the tokens of a causal language model: the tokenizer's chat template, a custom one, or plain lines.

The reply is framed as the template frames the assistant's turns, which is found out by rendering one. A special token
or an added token of the frame that stands in somebody's text is taken out, however the tokenizer's normaliser lets it
be written, so that nobody can write a role's marker into the prompt; a template whose marks are ordinary text gives no
such safety. Knows tokenizers of transformers; knows neither options nor ParlAI. Left out: tools, images, thoughts
before a reply (templates that know `enable_thinking` are told no, and what a template opens for a reply without closing
it in a told one is no part of the prompt), and templates that want more than roles and contents. A template that writes
today's date makes other prompts tomorrow.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from parlai_safety.errors import SafetyError

TOKENIZER, PLAIN = "tokenizer", "plain"
_PERSONA = re.compile(r"(your|partner's) persona:", re.IGNORECASE)
"""How a line begins that tells a persona, in ConvAI2, Blended Skill Talk and Multi-Session Chat as ParlAI has them."""
HEARD, SAID = "Yonder3", "Zebra7"
"""Texts that every template leaves as they are, to find what stands around a turn."""
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}{{ message['content'] }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
)
"""The plain form as a template: turns as lines, the answer's end token after the last one."""


class Turn(NamedTuple):
    """What somebody said: role "user" or "assistant"."""

    role: str
    text: str


class ChatFormat:
    """Turns into a prompt's tokens, a reply into the tokens to be learned.

    Args:
        tokenizer: of transformers.
        template: "tokenizer" (its own chat template), "plain" (turns as lines, as in ParlAI's text), or the path of a
            Jinja file.
        system: the system prompt; empty for none. In the plain form it is the first line.

    Attributes:
        end: the id that ends a reply: what the template closes the assistant's turn with, else the tokenizer's own.

    Raises:
        SafetyError: the tokenizer has no template or no end token, the file cannot be read or is no template, or the
            template refuses a system prompt.
    """

    def __init__(self, tokenizer: Any, *, template: str = TOKENIZER, system: str = "") -> None:
        self.tokenizer, self.system = tokenizer, system
        self.plain = template == PLAIN
        self.template: str | None = None
        if template not in (TOKENIZER, PLAIN):
            self.template = _read(template)
        elif template == TOKENIZER and not tokenizer.chat_template:
            raise SafetyError(
                "The tokenizer has no chat template",
                "It belongs to a base model, which was trained on text without roles",
                "Give --chat-template plain, or --chat-template FILE.jinja with a template of yours",
            )
        self._specials: dict[str, int] = {}
        for token in tokenizer.all_special_tokens:
            if token.strip(" "):  # some folders write "" for a token that there is none of
                self._specials[token] = tokenizer.convert_tokens_to_ids(token)
        for id_, added in tokenizer.added_tokens_decoder.items():
            if added.special and added.content.strip(" "):
                self._specials[added.content] = id_
        self._user_first = False
        self._gap, self._opening, self._before, self._after = "", "", "", ""
        self._lead = f"{HEARD}\n"
        self.end = self._own_end() if self.plain else self._learn_frame()
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._special_ids = set(self._specials.values())
        self._mark_ids = set(self._special_ids)
        if tokenizer.unk_token and tokenizer.unk_token not in (tokenizer.bos_token, tokenizer.eos_token):
            self._mark_ids.discard(tokenizer.unk_token_id)  # which stands for any unknown letter
        self._lead_ids = self._ids(self._lead)

    @property
    def special_ids(self) -> list[int]:
        """Ids of tokens that are no text."""
        return sorted(self._special_ids)

    def prompt(self, turns: Sequence[Turn], *, limit: int | None = None) -> list[int]:
        """The tokens of a conversation up to where the reply begins.

        Args:
            turns: oldest first. Neighbours of one role become one turn. White space around a turn does not count.
            limit: tokens at most; the oldest turns go first, then the beginning of the last one.

        Returns:
            The ids; none for a conversation without turns.

        Raises:
            SafetyError: the frame alone, without any words, is longer than the limit.
        """
        left = _joined([Turn(turn.role, self.clean(turn.text)) for turn in turns])
        ids = self._prompt(left)
        if limit is None or len(ids) <= limit:
            return ids
        most = len(left) - 1  # the last turn stays
        gone = bisect_left(range(1, most), True, key=lambda first: len(self._prompt(left[first:])) <= limit)
        last = left[min(1 + gone, most) :]
        ids = self._prompt(last)
        return ids if len(ids) <= limit else self._cut(left[-1], limit)

    def reply(self, text: str) -> list[int]:
        """The tokens of a reply as the assistant says it, behind a prompt and without the end token."""
        framed = f"{self._before}{self.clean(text)}{self._after}"
        ids, lead = self._ids(self._lead + framed), self._lead_ids
        # Read behind a prompt, as some tokenizers write a text's first word in another way than those behind it.
        return ids[len(lead) :] if ids[: len(lead)] == lead else self._ids(framed)

    def words(self, text: str, *, inside: bool = False) -> list[int]:
        """The tokens of a text alone: at the beginning of a reply or, with `inside`, behind a word and a space."""
        before = f"{HEARD} " if inside else self._lead
        lead, ids = self._ids(before.rstrip(" ")), self._ids(before + self.clean(text))
        return ids[len(lead) :] if ids[: len(lead)] == lead else self._ids(self.clean(text))

    def text(self, ids: Sequence[int]) -> str:
        """The words of a reply's tokens; special tokens and ids beyond the tokenizer's are left out."""
        known = [int(id_) for id_ in ids if 0 <= int(id_) < len(self.tokenizer) and int(id_) not in self._special_ids]
        return self._told(known).strip().removesuffix(self._after.strip()).strip()

    def clean(self, text: str) -> str:
        """A text with spaces for the special tokens that somebody wrote into it, and without white space around it.

        Where the tokenizer reads a special token out of other letters, such as wide ones, its normalised text is given.
        """
        text = text.encode("utf-8", "replace").decode("utf-8")  # half a pair of surrogates is no letter
        while True:
            text = self._marks.sub(" ", text)
            ids = self._ids(text)
            if not self._mark_ids.isdisjoint(ids):
                text = self._told([id_ for id_ in ids if id_ not in self._mark_ids])
            elif not self._marks.search(text):
                return text.strip()

    def as_template(self) -> str:
        """A Jinja template that renders what `prompt` reads, for use with the same tokenizer elsewhere."""
        if self.plain:
            return PLAIN_TEMPLATE
        text = str(self.template or self.tokenizer.get_chat_template())
        if "enable_thinking" in text:
            text = "{% if enable_thinking is not defined %}{% set enable_thinking = false %}{% endif %}" + text
        if not self._gap and not self._opening:
            return text
        gap, opening = json.dumps(self._gap), json.dumps(self._opening)
        end = f"{{{{ whole.removesuffix({gap}) + {opening} if add_generation_prompt else whole }}}}"
        return f"{{% set whole %}}{text}{{% endset %}}{end}"

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _told(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def _prompt(self, turns: Sequence[Turn]) -> list[int]:
        if not turns:
            return []
        if not self.plain:
            return self._ids(self._to_reply(turns))
        lines = [line for line in (self.system, *(turn.text for turn in turns)) if line]
        begin = self.tokenizer.bos_token_id
        return ([] if begin is None else [begin]) + (self._ids("\n".join(lines) + "\n") if lines else [])

    def _cut(self, turn: Turn, limit: int) -> list[int]:
        """The prompt of one turn without as much of its beginning as is needed."""
        frame = self._prompt([Turn(turn.role, "")])
        room = limit - len(frame)
        if room < 0:
            raise SafetyError(
                f"A prompt may have {limit} tokens, and its frame without any words has {len(frame)}",
                "The system prompt and the marks of the roles leave no room for what was said",
                "Raise --text-truncate, or give a shorter --system-prompt",
            )
        words = self._ids(turn.text)
        while True:  # a text cut at a token may be spelled in another way
            text = self._told(words[max(0, len(words) - room) :]).lstrip("\ufffd ")
            ids = self._prompt([Turn(turn.role, self.clean(text))])
            if len(ids) <= limit:
                return ids
            room -= 1

    def _render(self, turns: Sequence[Turn], *, to_reply: bool, system_prompt: str | None = None) -> str:
        told = self.system if system_prompt is None else system_prompt
        system = [{"role": "system", "content": told}] if told else []
        first = [{"role": "user", "content": ""}] if self._user_first and turns and turns[0].role != "user" else []
        messages = [*system, *first, *({"role": turn.role, "content": turn.text} for turn in turns)]
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=to_reply,
                enable_thinking=False,
            )
        )

    def _to_reply(self, turns: Sequence[Turn]) -> str:
        return self._render(turns, to_reply=True).removesuffix(self._gap) + self._opening

    def _learn_frame(self) -> int:
        """Find what the template writes around a reply, and with which token it ends."""
        import jinja2

        fails = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
        user, reply = Turn("user", HEARD), Turn("assistant", SAID)
        try:
            head, whole = self._render([user], to_reply=True), self._render([user, reply], to_reply=False)
        except fails as error:
            raise SafetyError(
                f"The chat template refuses a user's turn with its answer ({str(error)[:120]})",
                "It does not take a system prompt, or it is no template of a chat"
                if self.system
                else "It is no template of a chat",
                "Leave --system-prompt out, or give another --chat-template (plain, or a Jinja file)",
            ) from error
        try:
            self._render([reply, user], to_reply=True)
        except fails:
            self._user_first = True
        for told, text, rendered in (
            ("user's words", HEARD, head),
            ("assistant's words", SAID, whole),
            ("system prompt", self.system.strip(), head),
        ):
            if text not in rendered:
                raise SafetyError(
                    f"The chat template leaves the {told} out",
                    "A prompt is made by rendering the conversation, and this part of it does not show in it",
                    "Give another --chat-template (plain, or a Jinja file), or leave --system-prompt out if it is that",
                )
        frames = [head, whole]
        with contextlib.suppress(*fails):
            frames.append(self._render([user, reply, user], to_reply=True, system_prompt=HEARD))
        for id_, added in self.tokenizer.added_tokens_decoder.items():
            if re.search(r"[^\w\s]", added.content) and any(added.content in frame for frame in frames):
                self._specials[added.content] = id_
        start = whole.rindex(SAID)
        shared = os.path.commonprefix([head, whole[:start]])
        if HEARD not in shared:
            shared = head
        # What comes before every reply belongs to the prompt, but for white space, which is part of a token.
        before = whole[len(shared) : start] if whole.startswith(shared) else ""
        self._opening = before.rstrip()
        self._before = before[len(self._opening) :]
        if not self._opening:
            self._before = shared[len(shared.rstrip(" ")) :] + self._before
            shared = shared.rstrip(" ")
        self._gap = head[len(shared) :]
        self._lead = shared[shared.rindex(HEARD) :] + self._opening
        after = whole[start + len(SAID) :]
        found = [(after.index(token), -len(token), id_) for token, id_ in self._specials.items() if token in after]
        if not found:
            return self._own_end()
        place, _, end = min(found)
        self._after = after[:place]
        return int(end)

    def _own_end(self) -> int:
        end = self.tokenizer.eos_token_id
        if end is None:
            raise SafetyError(
                "The tokenizer has no end token",
                "A model learns by it where a reply ends",
                "Set eos_token in its tokenizer_config.json",
            )
        return int(end)


def as_turns(text: str) -> list[Turn]:
    """The lines of ParlAI's `text` as turns: the last line is the user's, those before it alternate.

    Lines at the beginning that tell a persona ("your persona: ...") are one turn of the user's before all others. Where
    there is white space alone, the user said nothing; where there is no text at all, there is no turn.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    personas = list(itertools.takewhile(_PERSONA.match, lines))
    told = lines[len(personas) :]
    behind = range(len(told) - 1, -1, -1)
    turns = [Turn("assistant" if far % 2 else "user", line) for far, line in zip(behind, told, strict=True)]
    first = [Turn("user", "\n".join(personas))] if personas or (text and not told) else []
    return first + turns


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    joined: list[Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            turn = Turn(turn.role, f"{joined.pop().text}\n{turn.text}")
        joined.append(turn)
    return joined


def _read(path: str) -> str:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        text = Path(path).read_text(encoding="utf-8")
        # As transformers reads it, whose templates may mark the assistant's part and leave a loop.
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
            text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
    except (OSError, UnicodeDecodeError, jinja2.TemplateSyntaxError) as error:
        raise SafetyError(
            f"--chat-template got {path!r} ({str(error)[:120]})",
            f"It is {TOKENIZER!r}, {PLAIN!r}, or the path of a Jinja template, and this cannot be read as one",
            f"Give --chat-template {TOKENIZER}, --chat-template {PLAIN} or an existing file",
        ) from error
    return text
