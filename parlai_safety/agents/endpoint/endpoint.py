"""`-m safety:endpoint`: a chat model behind an OpenAI-compatible server, such as vLLM, as a ParlAI agent.

Own code, after the public description of the route `POST /v1/chat/completions`. It leaves out streaming, tools, log
probabilities, and therefore perplexity and training.

The lines of an episode become messages of the user and the assistant in turn, the last line being the user's. A request
that fails for good gives an act without text and with a short `error`, which an evaluation counts as unscored; what
would fail for every reply alike (the key, the address, the model, the parameters) ends in an error at once.

The key is read from an environment variable at the moment of a request. It is never in the options, a log or an error.
"""

from __future__ import annotations

import os
import queue
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from parlai.core.agents import Agent
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser

from parlai_safety.agents.common import SafetyAgentMixin
from parlai_safety.errors import SafetyError
from parlai_safety.options import add_options, option, options_from

ROUTE = "/chat/completions"
MESSAGES = "endpoint_messages"
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
WORTH_ANOTHER_TRY = frozenset({408, 425, 429})
# Refused for what this one conversation holds. The codes are OpenAI's, the sentence is vLLM's.
ABOUT_THIS_CONTEXT = frozenset({"context_length_exceeded", "content_filter", "content_policy_violation"})
TOO_LONG = "maximum context length"


@dataclass(frozen=True)
class EndpointOptions:
    """The options of the endpoint, declared once."""

    endpoint_url: str = option(
        "http://127.0.0.1:8000/v1",
        "Address of the server, up to and with /v1; never a key or password in it.",
        aliases=("--url",),
    )
    endpoint_model: str = option("", "Name of the model on that server; GET URL/models lists them.")
    endpoint_system: str = option("", "System prompt before every conversation; empty = none is sent.")
    endpoint_temperature: float = option(1.0, "Temperature of sampling; 0 = the likeliest token.", low=0, high=2)
    endpoint_max_tokens: int = option(128, "Most tokens a reply; 0 = as many as the server allows.", low=0)
    endpoint_timeout: float = option(60.0, "Seconds that the server may stay silent in one request.", low=0.01)
    endpoint_retries: int = option(4, "Further tries after status 408, 425, 429, 5xx or a broken connection.", low=0)
    endpoint_parallel: int = option(8, "Requests of one batch that run at the same time.", low=1)
    endpoint_requests_per_second: float = option(0.0, "Most requests begun a second, all tries; 0 = no limit.", low=0)
    endpoint_key_env: str = option(
        "OPENAI_API_KEY", "Name of the environment variable with the key; no key is sent if there is no such variable."
    )
    endpoint_seed: int | None = option(
        None,
        "Send a seed with each request: this number plus a draw from Python's random state, so that the samples of one "
        "prompt differ and a seeded run repeats itself as far as the server does.",
        low=0,
    )


class Answer(NamedTuple):
    """What came of one conversation sent to the server.

    Attributes:
        text: the reply, or None where there is none.
        error: why there is none, in a few words; None where there is one.
    """

    text: str | None
    error: str | None


class ChatServer:
    """A chat model on a server; safe to share between threads and agents.

    Args:
        options: see `EndpointOptions`.

    Raises:
        SafetyError: the address, the model's name or the name of the key's variable cannot be right.
    """

    def __init__(self, options: EndpointOptions) -> None:
        self.options = options
        self.url = _address(options.endpoint_url) + ROUTE
        if not options.endpoint_model.strip():
            raise SafetyError(
                "--endpoint-model is empty",
                f"The server at {self._base} may hold several models and has to be told which one is asked",
                f"Give the name that {self._base}/models lists",
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", options.endpoint_key_env):
            # What stands there may be the key itself, so it is not repeated.
            raise SafetyError(
                "--endpoint-key-env got something that is not the name of an environment variable",
                "Options are saved and shown, so the key itself must never be one of them",
                "Put the key into a variable (export OPENAI_API_KEY=...) and give the variable's name",
            )
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._next_start = 0.0

    def ask_all(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[Answer]:
        """Send conversations, `endpoint_parallel` at once, and return their answers in the same order.

        Args:
            conversations: each a list of messages, `{"role": "user" or "assistant", "content": text}`, oldest first.

        Raises:
            SafetyError: the server refuses the key, the address, the model or the parameters.
        """
        # Drawn here and not in the threads: their order is not repeatable.
        base = self.options.endpoint_seed
        seeds = [None if base is None else (base + random.getrandbits(31)) % 2**31 for _ in conversations]
        stop = threading.Event()
        if len(conversations) == 1:
            return [self._ask(conversations[0], seeds[0], stop)]
        with ThreadPoolExecutor(self.options.endpoint_parallel) as pool:
            asked = [pool.submit(self._ask, *pair, stop) for pair in zip(conversations, seeds, strict=True)]
            try:
                # As they finish, not in their order: an error behind a request that pauses must not wait for it.
                for future in as_completed(asked):
                    future.result()
                return [future.result() for future in asked]
            except BaseException:
                stop.set()  # the others wait no longer, and those in the queue never start
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    @property
    def _base(self) -> str:
        return self.url.removesuffix(ROUTE)

    def _ask(self, messages: Sequence[Mapping[str, str]], seed: int | None, stop: threading.Event) -> Answer:
        body = self._body(messages, seed)
        tries = self.options.endpoint_retries + 1
        for number in range(1, tries + 1):
            self._take_turn(stop)
            if stop.is_set():
                return Answer(None, "stopped")
            answer, pause = self._try_once(body)
            if pause is None:
                return answer
            if number < tries:
                stop.wait(min(max(pause, FIRST_PAUSE * 2 ** (number - 1)), LONGEST_PAUSE))
        return Answer(None, f"{answer.error} ({tries} {'try' if tries == 1 else 'tries'})")

    def _body(self, messages: Sequence[Mapping[str, str]], seed: int | None) -> dict[str, Any]:
        system = self.options.endpoint_system
        body: dict[str, Any] = {
            "model": self.options.endpoint_model,
            "messages": [*([{"role": "system", "content": system}] if system else []), *messages],
            "temperature": self.options.endpoint_temperature,
        }
        if self.options.endpoint_max_tokens:
            body["max_tokens"] = self.options.endpoint_max_tokens
        if seed is not None:
            body["seed"] = seed
        return body

    def _try_once(self, body: Mapping[str, Any]) -> tuple[Answer, float | None]:
        """One request: its answer, and the least seconds to pause before another try (None = no other try)."""
        import requests

        key = self._key()
        try:
            with self._session() as session:
                response = session.post(
                    self.url,
                    json=body,
                    timeout=self.options.endpoint_timeout,
                    allow_redirects=False,
                    # Given even where there is no key: otherwise `requests` takes a password from the user's .netrc.
                    auth=_Bearer(key),
                )
        except requests.Timeout:
            return Answer(None, f"no answer within {self.options.endpoint_timeout:g} seconds"), 0.0
        # Only the kind of error is kept: its text may hold more of the request than anybody should read.
        except requests.RequestException as error:
            return Answer(None, f"connection failed: {type(error).__name__}"), 0.0
        status = response.status_code
        content = _json(response)
        if status in WORTH_ANOTHER_TRY or status >= 500:
            return Answer(None, f"HTTP status {status}"), _retry_after(response.headers.get("Retry-After"))
        if not 200 <= status < 300:
            code, words = _complaint(content)
            if status in (400, 413, 422) and (code in ABOUT_THIS_CONTEXT or TOO_LONG in words):
                return Answer(None, f"HTTP status {status}: {code if code in ABOUT_THIS_CONTEXT else TOO_LONG}"), None
            raise self._refusal(status, words.replace(key, "[key]") if key else words)
        return _answer(content)

    def _refusal(self, status: int, words: str) -> SafetyError:
        name, model = self.options.endpoint_key_env, self.options.endpoint_model
        got = f"The server at {self._base} answered with HTTP status {status} when it was asked for the model {model!r}"
        if status in (401, 403):
            # The server's own words are left out: some servers repeat the key in them.
            state = "is set" if os.environ.get(name) else "is not set"
            why = f"It did not accept the key; the environment variable {name} {state}"
            instead = f"Put a valid key into {name}, or name another variable with --endpoint-key-env"
        elif status == 404:
            why = f"There is no such address or no such model{_quoted(words)}"
            instead = f"Compare --endpoint-url and --endpoint-model with what {self._base}/models lists"
        elif 300 <= status < 400:
            why = "It points to another address, and a request with a key is never passed on"
            instead = "Give that address as --endpoint-url"
        else:
            why = f"It would refuse every other request with these options too{_quoted(words)}"
            instead = "Change --endpoint-model, --endpoint-temperature or --endpoint-max-tokens (0 leaves it out)"
        return SafetyError(got, why, instead)

    def _key(self) -> str:
        name = self.options.endpoint_key_env
        key = os.environ.get(name, "").strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise SafetyError(
                f"The environment variable {name} holds something that cannot be a key",
                "A key is one word of plain characters, since it travels in a header of the request",
                f"Copy the key again: export {name}=...",
            )
        return key

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """A session for one request at a time: connections are kept open, and `requests` does not share them safely."""
        import requests

        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            session = requests.Session()
        try:
            yield session
        finally:
            self._idle.put(session)

    def _take_turn(self, stop: threading.Event) -> None:
        if self.options.endpoint_requests_per_second:
            with self._lock:
                start = max(time.monotonic(), self._next_start)
                self._next_start = start + 1 / self.options.endpoint_requests_per_second
            stop.wait(max(0.0, start - time.monotonic()))


class EndpointAgent(SafetyAgentMixin, Agent):
    """A chat model on a server, with ParlAI's history.

    An observation's lines are turns, the last one the user's; the agent's own reply is the assistant's. Where the
    observation has a label the label is remembered in the reply's place, as ParlAI's own agents do. An observation with
    `episode_done` ends the history after its reply. A context with an even number of lines begins with the assistant,
    which some chat templates refuse.
    """

    backbone = Agent

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of `EndpointOptions`."""
        add_options(parser, EndpointOptions, "Endpoint: a chat model behind an OpenAI-compatible server")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.id = "Endpoint"
        super().__init__(opt, shared)
        self.server: ChatServer = shared["server"] if shared else ChatServer(options_from(opt, EndpointOptions))
        self._turns: list[dict[str, str]] = []

    def share(self) -> dict[str, Any]:
        """ParlAI's share with the server, so that all copies keep one rate limit and its connections."""
        return {**super().share(), "server": self.server}

    def observe(self, observation: Any) -> Any:
        """Remember a message; what is returned carries the conversation so far to `batch_act`."""
        observation = Message(observation)
        lines = [line.strip() for line in str(observation.get("text") or "").split("\n")]
        lines = [line for line in lines if line]
        for behind, line in zip(range(len(lines) - 1, -1, -1), lines, strict=True):
            self._remember("assistant" if behind % 2 else "user", line)
        observation.force_set(MESSAGES, [dict(turn) for turn in self._turns] if lines else [])
        self.observation = observation
        return observation

    def self_observe(self, self_message: Mapping[str, Any] | None) -> None:
        """Remember the reply (or the label, where there was one), or forget all at the end of an episode."""
        if self.observation is None or self.observation.get("episode_done"):
            self.reset()
            return
        labels = self.observation.get("labels") or self.observation.get("eval_labels")
        reply = labels[0] if labels else (self_message or {}).get("text")
        if reply:
            self._remember("assistant", reply)

    def act(self) -> Message:
        """Reply to what was observed, and remember the reply."""
        reply = self.batch_act([self.observation])[0]
        self.self_observe(reply)
        return reply

    def batch_act(self, observations: Sequence[Mapping[str, Any] | None]) -> list[Message]:
        """Reply to observations of this agent's copies.

        Args:
            observations: as `observe` returned them; None or one without text gets an act without text.

        Returns:
            Acts with `text`, or with `error`, a few words, where there is no text.

        Raises:
            SafetyError: the server refuses the key, the address, the model or the parameters.
        """
        asked = [(observation or {}).get(MESSAGES) or [] for observation in observations]
        answers = iter(self.server.ask_all([messages for messages in asked if messages]))
        acts = []
        for messages in asked:
            act = Message({"id": self.getID(), "episode_done": False})
            answer = next(answers) if messages else Answer(None, "there was nothing to reply to")
            act.update({"error": answer.error} if answer.text is None else {"text": answer.text})
            acts.append(act)
        return acts

    def reset(self) -> None:
        """Forget the conversation."""
        super().reset()
        self._turns = []

    def _remember(self, role: str, text: str) -> None:
        """Add a turn; two in a row of one speaker become one, since chat templates want the roles in turn."""
        if self._turns and self._turns[-1]["role"] == role:
            self._turns[-1]["content"] += f"\n{text}"
        else:
            self._turns.append({"role": role, "content": text})


class _Bearer:
    """Puts the key into the request's header, or nothing where there is none."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> Any:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _address(url: str) -> str:
    """The base of the server's routes, without a slash at its end."""
    if "@" in url or "?" in url:
        # Not repeated: what stands there may be secret.
        raise SafetyError(
            "--endpoint-url holds a user, a password or a query",
            "Options are saved and shown, so nothing secret may stand in the address",
            "Give the address alone, and the key by the variable that --endpoint-key-env names",
        )
    try:
        parts = urlsplit(url.strip())
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, or the brackets of an IPv6 address are broken
        usable = False
    if not usable:
        raise SafetyError(
            f"--endpoint-url got {url!r}",
            "It is the address of a server and begins with http:// or https://",
            "Give for example --endpoint-url http://127.0.0.1:8000/v1",
        )
    return url.strip().rstrip("/").removesuffix(ROUTE)


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _answer(content: Any) -> tuple[Answer, float | None]:
    """Read the body of a successful request; one that is no chat completion is worth another try."""
    try:
        choice = content["choices"][0]
        text = choice["message"].get("content") or ""
        finish = choice.get("finish_reason")
        if not isinstance(text, str):
            raise TypeError
    except (TypeError, KeyError, IndexError, AttributeError):
        return Answer(None, "the server's answer is not a chat completion"), 0.0
    if not text.strip():
        ended = f", finish_reason {finish}" if isinstance(finish, str) and re.fullmatch(r"\w{1,30}", finish) else ""
        return Answer(None, f"the reply is empty{ended}"), None
    return Answer(text.strip(), None), None


def _complaint(content: Any) -> tuple[str, str]:
    """Code and words of an error body; empty where there are none."""
    error = content.get("error", content) if isinstance(content, Mapping) else None
    if isinstance(error, Mapping):
        return str(error.get("code") or ""), str(error.get("message") or "")
    return "", error if isinstance(error, str) else ""


def _quoted(words: str) -> str:
    words = " ".join(words.split())
    return f" (it says: {words[:200]})" if words else ""


def _retry_after(value: str | None) -> float:
    """Seconds that the server asks to wait: a number or a date, RFC 9110 section 10.2.3; 0 where it says nothing."""
    if not value:
        return 0.0
    try:
        if value.strip().isdigit():
            return float(value)
        date = parsedate_to_datetime(value)
        return max(0.0, (date.astimezone(timezone.utc) - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, OverflowError):
        return 0.0
