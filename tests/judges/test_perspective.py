"""Against a server of our own on this machine; nothing here knows the real one."""

from __future__ import annotations

import datetime
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge
from parlai_safety.judges.cache import CachedJudge
from parlai_safety.judges.perspective import KEY_VARIABLE, Clock, PerspectiveJudge
from parlai_safety.judges.verdict import Verdict, scored

KEY = "not-a-real-key-123"


class Service(ThreadingHTTPServer):
    """Answers in the order of `plan`, each (status, body, headers); where it is empty, with len(text) / 100."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[tuple[int, Any, dict[str, str]]] = []
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        score = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": len(body["comment"]["text"]) / 100}}}}
        status, answer, headers = self.server.plan.pop(0) if self.server.plan else (200, score, {})
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class Watch:
    """A clock that moves only when somebody sleeps, from the first second of 2026-11-20 on."""

    def __init__(self, day: datetime.date = datetime.date(2026, 11, 20)) -> None:
        self.seconds, self.pauses = 0.0, []  # type: ignore[var-annotated]
        start = datetime.datetime(2026, 11, 20, tzinfo=datetime.timezone.utc).timestamp()
        self.clock = Clock(lambda: day, lambda: self.seconds, self.sleep, lambda: start + self.seconds)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 6))
        self.seconds += seconds


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "*")
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def judge_of(service: Service, watch: Watch, **settings: Any) -> PerspectiveJudge:
    return PerspectiveJudge(
        **({"address": service.address, "clock": watch.clock, "queries_per_second": 1e6} | settings)
    )


def score(judge: Any, *replies: str) -> list[Verdict]:
    return judge.score(list(replies), [["a turn before"]] * len(replies), ["bot"] * len(replies))


def error(status: str, **reason: str) -> dict[str, Any]:
    return {"error": {"status": status, "message": f"long prose that repeats {KEY}", "details": [reason]}}


def test_one_request_a_reply_with_the_key_in_a_header(service: Service) -> None:
    assert score(judge_of(service, Watch()), "hello", "", "good day") == [
        scored(0.05),
        Verdict(None, "the reply is empty"),
        scored(0.08),
    ]
    assert len(service.seen) == 2
    path, headers, body = service.seen[0]
    assert path == "/v1alpha1/comments:analyze" and headers["X-Goog-Api-Key"] == KEY
    assert body == {
        "comment": {"text": "hello", "type": "PLAIN_TEXT"},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {"scoreType": "PROBABILITY"}},
        "doNotStore": True,
    }


def test_requests_keep_to_the_rate(service: Service) -> None:
    watch = Watch()
    score(judge_of(service, watch, queries_per_second=0.5), "a", "b", "c")
    assert watch.pauses == [2.0, 2.0]


def test_what_passes_is_tried_again_with_growing_pauses(service: Service) -> None:
    watch, later = Watch(), {"Retry-After": "Fri, 20 Nov 2026 00:01:00 GMT"}
    service.plan = [(500, {}, {}), (503, {}, {}), (429, {}, {"Retry-After": "7"}), (429, {}, later)]
    assert score(judge_of(service, watch), "hello") == [scored(0.05)]
    # 1 s, 2 s, the 7 s asked for, and the rest of the first minute, of which 10 s are over.
    assert [pause for pause in watch.pauses if pause > 1e-3] == [1.0, 2.0, 7.0, 50.0]
    assert len(service.seen) == 5


def test_a_pause_asked_for_is_not_endless(service: Service) -> None:
    watch = Watch()
    service.plan = [(429, {}, {"Retry-After": "86400"})]
    assert score(judge_of(service, watch), "hello") == [scored(0.05)]
    assert max(watch.pauses) == 300.0


def test_what_does_not_pass_is_unscored_and_then_ends(service: Service) -> None:
    watch = Watch()
    service.plan = [(503, {}, {})] * 5
    verdicts = score(judge_of(service, watch), "hello", "good day")
    assert verdicts == [Verdict(None, "the service answered HTTP 503, 5 times"), scored(0.08)]
    assert [pause for pause in watch.pauses if pause > 1e-3] == [1.0, 2.0, 4.0, 8.0]
    service.plan = [(503, {}, {})] * 50
    with pytest.raises(SafetyError, match="no answer for 10 replies in a row .*HTTP 503"):
        score(judge_of(service, watch), *(f"reply {index}" for index in range(20)))
    assert not service.plan


def test_no_answer_at_all_is_unscored(service: Service) -> None:
    address = service.address
    service.shutdown()
    service.server_close()
    verdicts = score(PerspectiveJudge(address=address, clock=Watch().clock), "hello")
    assert verdicts == [Verdict(None, "the service gave no answer (ConnectionError), 5 times")]


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (
            (400, error("INVALID_ARGUMENT", errorType="COMMENT_TOO_LONG"), {}),
            "HTTP 400 INVALID_ARGUMENT COMMENT_TOO_LONG",
        ),
        ((400, b"no JSON", {}), "the service answered HTTP 400"),
        ((302, {}, {"Location": "http://127.0.0.1:9/"}), "HTTP 302"),
        ((200, {"attributeScores": {}}, {}), "holds no score for TOXICITY"),
        ((200, b"no JSON", {}), "holds no score for TOXICITY"),
        (
            (200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 1.5}}}}, {}),
            "the judge returned p_unsafe = 1.5",
        ),
    ],
)
def test_what_another_try_would_not_mend_is_unscored_at_once(service: Service, plan: Any, reason: str) -> None:
    service.plan = [plan]
    first, second = score(judge_of(service, Watch()), "hello", "good day")
    assert first.p_unsafe is None and reason in (first.reason or "")
    assert second == scored(0.08) and len(service.seen) == 2


@pytest.mark.parametrize(
    "plan",
    [
        (400, error("INVALID_ARGUMENT", reason="API_KEY_INVALID"), {}),
        (403, error("PERMISSION_DENIED", reason="SERVICE_DISABLED"), {}),
        (401, {}, {}),
    ],
)
def test_a_key_that_is_refused_ends_it_without_showing_the_key(service: Service, plan: Any) -> None:
    service.plan = [plan]
    with pytest.raises(SafetyError, match=f"refuses the key in {KEY_VARIABLE}.*toxicity:FILE") as caught:
        score(judge_of(service, Watch()), "hello", "good day")
    assert KEY not in str(caught.value) and len(service.seen) == 1


def test_the_key_stands_nowhere(service: Service, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    service.plan = [(400, error("INVALID_ARGUMENT"), {})]
    judge = judge_of(service, Watch())
    cached = CachedJudge(judge, tmp_path / "scores")
    shown = [
        str(cached.score(["hello", "good day"], [[], []], ["bot", "bot"])),
        judge.spec,
        str(vars(judge)),
        caplog.text,
    ]
    assert service.seen and "comments:analyze" in caplog.text
    assert not any(KEY in text for text in [*shown, *(path for path, _, _ in service.seen)])
    assert KEY.encode() not in (tmp_path / "scores").read_bytes()


def test_it_says_when_it_ends_and_what_replaces_it(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    today = Clock(lambda: datetime.date(2026, 12, 31))
    monkeypatch.setattr("parlai_safety.judges.perspective.Clock", lambda *_: today)
    judge = load_judge("perspective", threshold=0.75)
    assert isinstance(judge, PerspectiveJudge) and judge.threshold == 0.75
    assert "ends after 31 December 2026" in caplog.text and "toxicity:FILE" in caplog.text
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(SafetyError, match=f"{KEY_VARIABLE} holds no key.*toxicity:FILE"):
        load_judge("perspective")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    over = Clock(lambda: datetime.date(2027, 1, 1))
    monkeypatch.setattr("parlai_safety.judges.perspective.Clock", lambda *_: over)
    with pytest.raises(SafetyError, match="ended after 31 December 2026.*parlai safety_toxicity.*toxicity:FILE"):
        load_judge("perspective")


def test_a_cache_answers_without_key_and_after_the_end(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path, judge = tmp_path / "scores", judge_of(service, Watch())
    first = score(CachedJudge(judge, path), "hello", "good day")
    monkeypatch.delenv(KEY_VARIABLE)
    late = judge_of(service, Watch(datetime.date(2027, 3, 1)), threshold=0.25)
    cached = CachedJudge(late, path)
    assert score(cached, "hello", "good day") == first and cached.threshold == 0.25
    with pytest.raises(SafetyError, match="ended after"):
        score(cached, "hello", "something new")
    loaded = load_judge(f"perspective:{path}")
    assert isinstance(loaded, CachedJudge) and loaded.path == path
    with pytest.raises(SafetyError, match="holds no key|ended after"):
        score(loaded, "something new")


def test_settings_and_fingerprint() -> None:
    for wrong in ({"queries_per_second": 0}, {"timeout_seconds": -1}):
        with pytest.raises(SafetyError, match="queries_per_second is"):
            PerspectiveJudge(**wrong)  # type: ignore[arg-type]
    plain = PerspectiveJudge()
    same = PerspectiveJudge(threshold=0.9, queries_per_second=5, timeout_seconds=1)
    others = [PerspectiveJudge(attribute="INSULT"), PerspectiveJudge(address="http://localhost:1")]
    assert plain.fingerprint == same.fingerprint
    assert len({plain.fingerprint, *(judge.fingerprint for judge in others)}) == 3
