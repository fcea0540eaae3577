"""`safety:endpoint` against a small server on this machine: history, retries, limits, errors, and the key's secrecy."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import random
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.interactive import Interactive
from parlai.scripts.self_chat import SelfChat

from parlai_safety.agents.endpoint import endpoint
from parlai_safety.agents.endpoint.endpoint import EndpointAgent, EndpointOptions
from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.generate import replies
from parlai_safety.options import options_from

KEY = "sk-not-a-real-key-0123456789"
DOTTED = "parlai_safety.agents.endpoint.endpoint:EndpointAgent"


def completion(text, finish="stop"):
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


def echo(body):
    """A model that repeats the last message."""
    return 200, {}, completion(f"You said: {body['messages'][-1]['content']}")


class Server:
    """Counts requests, keeps them, and answers as `behaviour(body)` says: (status, headers, JSON value or text)."""

    def __init__(self):
        self.behaviour, self.bodies, self.headers, self.paths = echo, [], [], []
        self.running = self.peak = 0
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                    outer.running += 1
                    outer.peak = max(outer.peak, outer.running)
                try:
                    answer = outer.behaviour(body)
                finally:
                    with lock:
                        outer.running -= 1
                if answer is None:  # break the connection
                    self.close_connection = True
                    return
                status, headers, value = answer
                data = (value if isinstance(value, str) else json.dumps(value)).encode()
                self.send_response(status)
                for name, text in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def in_turn(self, *answers):
        """Answer with these, one a request, and then as `echo`."""
        queue = list(answers)
        self.behaviour = lambda body: queue.pop(0) if queue else echo(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def options(server, **more):
    return {
        "model": "safety:endpoint",
        "endpoint_url": server.url,
        "endpoint_model": "tiny-chat",
        "endpoint_retries": 2,
        "endpoint_timeout": 5.0,
        **more,
    }


def agent_for(server, **more):
    return create_agent(Opt({**options(server, **more), "datapath": "unused"}))


def say(agent, text, done=False):
    agent.observe(Message({"id": "human", "text": text, "episode_done": done}))
    return agent.act()


def roles(body):
    return [(message["role"], message["content"]) for message in body["messages"]]


def test_a_request_holds_the_model_the_settings_and_the_message(server):
    act = say(agent_for(server, endpoint_temperature=0.5, endpoint_max_tokens=40), "Good morning.")
    assert act["text"] == "You said: Good morning." and "error" not in act and act["id"] == "Endpoint"
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies == [
        {
            "model": "tiny-chat",
            "messages": [{"role": "user", "content": "Good morning."}],
            "temperature": 0.5,
            "max_tokens": 40,
        }
    ]
    assert "Authorization" not in server.headers[0]


def test_the_system_prompt_comes_first_and_zero_tokens_are_left_out(server):
    say(agent_for(server, endpoint_system="Be kind.", endpoint_max_tokens=0), "Hello there.")
    assert roles(server.bodies[0]) == [("system", "Be kind."), ("user", "Hello there.")]
    assert "max_tokens" not in server.bodies[0]


@pytest.mark.parametrize("ending", ["", "/", "/chat/completions"])
def test_the_address_may_be_given_in_three_ways(server, ending):
    assert say(agent_for(server, endpoint_url=server.url + ending), "Hello there.")["text"]
    assert server.paths == ["/v1/chat/completions"]


def test_lines_are_turns_and_the_last_is_the_users(server):
    say(agent_for(server), "Hello.\nHello, you.\n\n  What is new?  ")
    assert roles(server.bodies[0]) == [("user", "Hello."), ("assistant", "Hello, you."), ("user", "What is new?")]
    say(agent_for(server), "I spoke first.\nAnd now you.")
    assert roles(server.bodies[1]) == [("assistant", "I spoke first."), ("user", "And now you.")]


def test_the_history_grows_and_ends_with_the_episode(server):
    agent = agent_for(server)
    say(agent, "One.")
    say(agent, "Two.", done=True)
    say(agent, "Three.")
    first = [("user", "One."), ("assistant", "You said: One."), ("user", "Two.")]
    assert [roles(body) for body in server.bodies] == [first[:1], first, [("user", "Three.")]]
    agent.reset()
    say(agent, "Four.")
    assert roles(server.bodies[3]) == [("user", "Four.")]


def test_a_label_is_remembered_in_the_place_of_the_reply(server):
    agent = agent_for(server)
    agent.observe(Message({"text": "One.", "eval_labels": ["Gold."], "episode_done": False}))
    agent.act()
    say(agent, "Two.")
    assert roles(server.bodies[1]) == [("user", "One."), ("assistant", "Gold."), ("user", "Two.")]


def test_two_turns_of_one_speaker_become_one_message(server):
    server.in_turn((200, {}, completion("")))
    agent = agent_for(server)
    assert "text" not in say(agent, "One.")
    say(agent, "Two.")
    assert roles(server.bodies[1]) == [("user", "One.\nTwo.")]


def test_clones_answer_in_order_share_the_server_and_keep_their_own_history(server):
    agent = agent_for(server)
    contexts = [[f"Question {'x' * i}?"] for i in range(20)]
    said = {reply[0]: reply[1] for reply in replies(agent, contexts, seed=1, batch_size=6)}
    assert said == {i: f"You said: Question {'x' * i}?" for i in range(20)}
    assert all(len(body["messages"]) == 1 for body in server.bodies) and len(server.bodies) == 20
    assert agent.clone().server is agent.server and isinstance(agent.clone(), EndpointAgent)
    assert agent.opt["model"] == DOTTED


def test_a_batch_has_the_asked_number_of_requests_at_once(server):
    def ask(parallel):
        agent = agent_for(server, endpoint_parallel=parallel, endpoint_retries=0)
        observations = [agent.clone().observe(Message({"text": f"Turn {i}."})) for i in range(6)]
        assert [act.get("text") for act in agent.batch_act(observations)] == [f"You said: Turn {i}." for i in range(6)]

    together = threading.Barrier(3, timeout=10)

    def in_threes(body):
        together.wait()
        return echo(body)

    server.behaviour = in_threes
    ask(3)
    assert server.peak == 3
    server.behaviour, server.peak = echo, 0
    ask(1)
    assert server.peak == 1


def test_no_more_requests_a_second_than_asked_for_over_all_copies(server):
    agent = agent_for(server, endpoint_requests_per_second=20, endpoint_parallel=4)
    began = time.monotonic()
    list(replies(agent, [[f"Turn {i}."] for i in range(6)], seed=1, batch_size=3))
    assert len(server.bodies) == 6
    assert time.monotonic() - began >= 5 / 20  # the sixth starts five intervals after the first


@pytest.mark.parametrize("status", [429, 408, 500, 503])
def test_a_passing_failure_is_tried_again(server, status):
    server.in_turn((status, {}, {"error": {"message": "busy"}}), (status, {}, "no JSON"))
    assert say(agent_for(server), "Hello there.")["text"] == "You said: Hello there."
    assert len(server.bodies) == 3 and server.bodies[0] == server.bodies[2]


def test_pauses_double_and_retry_after_is_kept(server, monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.5)
    pauses = []

    class Unhurried(threading.Event):
        def wait(self, timeout=None):
            pauses.append(timeout)

    later = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=30))
    server.in_turn(
        (429, {}, "busy"),
        (429, {"Retry-After": "7"}, "busy"),
        (503, {"Retry-After": later}, "busy"),
        (503, {"Retry-After": "100000"}, "busy"),
        (503, {"Retry-After": "soon"}, "busy"),
    )
    chat = endpoint.ChatServer(options_from(options(server, endpoint_retries=5), EndpointOptions))
    assert chat._ask([{"role": "user", "content": "Hello."}], None, Unhurried()).text == "You said: Hello."
    assert pauses[:2] == [0.5, 7.0]
    assert 25 < pauses[2] <= 30
    assert pauses[3:] == [endpoint.LONGEST_PAUSE, 8.0]


def test_what_fails_for_good_has_no_text_and_a_short_reason(server):
    server.behaviour = lambda body: (503, {}, "down") if "bad" in body["messages"][-1]["content"] else echo(body)
    agent = agent_for(server)
    observations = [agent.clone().observe(Message({"text": text})) for text in ("good", "bad", "fine")]
    acts = agent.batch_act(observations)
    assert [act.get("text") for act in acts] == ["You said: good", None, "You said: fine"]
    assert "text" not in acts[1] and acts[1]["error"] == "HTTP status 503 (3 tries)"
    assert len(server.bodies) == 2 + 3


def test_a_broken_connection_and_a_silent_server(server):
    server.behaviour = lambda body: None
    act = say(agent_for(server), "Hello there.")
    assert "text" not in act and act["error"] == "connection failed: ConnectionError (3 tries)"
    assert len(server.bodies) == 3
    gate = threading.Event()
    server.behaviour = lambda body: gate.wait(5) and None
    act = say(agent_for(server, endpoint_timeout=0.1, endpoint_retries=0), "Hello there.")
    gate.set()
    assert "text" not in act and act["error"] == "no answer within 0.1 seconds (1 try)"


def test_nobody_listens(server):
    closed = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = closed.server_port
    closed.server_close()
    act = say(agent_for(server, endpoint_url=f"http://127.0.0.1:{port}/v1"), "Hello there.")
    assert "text" not in act and act["error"] == "connection failed: ConnectionError (3 tries)"


@pytest.mark.parametrize("value", ["<html>", [], {"choices": []}, {"choices": [{"message": {"content": ["x"]}}]}])
def test_an_answer_of_another_form_is_no_reply(server, value):
    server.behaviour = lambda body: (200, {}, value)
    act = say(agent_for(server), "Hello there.")
    assert "text" not in act and act["error"] == "the server's answer is not a chat completion (3 tries)"


def test_an_empty_reply_is_none_and_not_asked_for_again(server):
    server.in_turn((200, {}, completion(None, "content_filter")), (200, {}, completion(" \n ", KEY)))
    agent = agent_for(server)
    act = say(agent, "Hello there.")
    assert "text" not in act and act["error"] == "the reply is empty, finish_reason content_filter"
    assert say(agent, "Hello again.")["error"] == "the reply is empty"
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    "status, error, reason",
    [
        (400, {"code": "content_filter", "message": "no"}, "content_filter"),
        (400, {"code": "context_length_exceeded", "message": "no"}, "context_length_exceeded"),
        (400, {"code": 400, "message": "This model's maximum context length is 16 tokens."}, "maximum context length"),
    ],
)
def test_a_refusal_of_one_conversation_is_no_reply_and_no_stop(server, status, error, reason):
    server.in_turn((status, {}, {"error": error}))
    agent = agent_for(server)
    assert say(agent, "Hello there.")["error"] == f"HTTP status {status}: {reason}"
    assert say(agent, "Hello again.")["text"] and len(server.bodies) == 2


@pytest.mark.parametrize(
    "status, parts",
    [
        (401, ["MY_KEY is set", "--endpoint-key-env"]),
        (403, ["MY_KEY is set"]),
        (404, ["tiny-chat", "/models lists", "it says: no such thing"]),
        (400, ["tiny-chat", "it says: no such thing", "--endpoint-max-tokens"]),
        (422, ["every other request"]),
        (307, ["another address", "--endpoint-url"]),
    ],
)
def test_what_would_repeat_for_every_reply_is_an_error(server, monkeypatch, status, parts):
    monkeypatch.setenv("MY_KEY", KEY)
    server.behaviour = lambda body: (status, {"Location": "/v1/other"}, {"error": {"message": "no such thing"}})
    agent = agent_for(server, endpoint_key_env="MY_KEY")
    with pytest.raises(SafetyError) as caught:
        say(agent, "Hello there.")
    assert server.url in caught.value.got and str(status) in caught.value.got
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert len(server.bodies) == 1


def test_an_error_in_a_batch_ends_the_batch(server):
    def refuse(body):
        time.sleep(0.05)
        return 404, {}, {"error": "gone"}

    server.behaviour = refuse
    agent = agent_for(server, endpoint_parallel=2)
    observations = [agent.clone().observe(Message({"text": f"Turn {i}."})) for i in range(40)]
    with pytest.raises(SafetyError, match="it says: gone"):
        agent.batch_act(observations)
    assert len(server.bodies) < 20


def test_an_error_wakes_those_that_wait_for_another_try(server):
    both = threading.Barrier(2, timeout=10)

    def behaviour(body):
        both.wait()
        if "wait" in body["messages"][-1]["content"]:
            return 503, {"Retry-After": "40"}, "busy"
        time.sleep(0.2)
        return 404, {}, {"error": "gone"}

    server.behaviour = behaviour
    agent = agent_for(server)
    began = time.monotonic()
    with pytest.raises(SafetyError, match="it says: gone"):
        agent.batch_act([agent.clone().observe(Message({"text": text})) for text in ("wait", "fail")])
    assert time.monotonic() - began < 20 and len(server.bodies) == 2


def test_nothing_to_reply_to(server):
    agent = agent_for(server)
    assert agent.act()["error"] == "there was nothing to reply to"
    agent.observe(Message({"episode_done": False}))
    acts = agent.batch_act([None, {}, agent.observation])
    assert [act.get("text") for act in acts] == [None] * 3 and server.bodies == []


def test_seeds_differ_within_a_batch_and_repeat_with_the_run(server):
    def sent(**more):
        server.bodies.clear()
        agent = agent_for(server, endpoint_parallel=1, **more)
        random.seed(5)
        agent.batch_act([agent.clone().observe(Message({"text": "The same."})) for _ in range(5)])
        return [body.get("seed") for body in server.bodies]

    first = sent(endpoint_seed=1)
    assert len(set(first)) == 5 and all(0 <= seed < 2**31 for seed in first)
    assert sent(endpoint_seed=1) == first
    assert sent(endpoint_seed=2) == [(seed + 1) % 2**31 for seed in first]
    assert sent() == [None] * 5


def test_a_seed_may_be_zero_and_without_one_no_random_number_is_drawn(server):
    agent = agent_for(server)
    before = random.getstate()
    say(agent, "Hello there.")
    assert random.getstate() == before and "seed" not in server.bodies[0]
    say(agent_for(server, endpoint_seed=0), "Hello there.")
    assert isinstance(server.bodies[1]["seed"], int)


def test_the_key_travels_in_the_header_and_nowhere_else(server, monkeypatch, tmp_path, capfd, caplog):
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    caplog.set_level(logging.DEBUG)
    server.in_turn((503, {}, f"{KEY} is busy"), (200, {}, completion("Hello.")))
    agent = agent_for(server, endpoint_key_env="MY_KEY", verbose=True)
    act = say(agent, "Hello there.")
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {KEY}"] * 2
    agent.opt.save(str(tmp_path / "bot.opt"))
    agent.opt.log()
    held = [json.dumps(act), (tmp_path / "bot.opt").read_text(), repr(agent.opt.history), repr(vars(agent.server))]
    held += [json.dumps(server.bodies), repr(agent.share()), repr(agent.observation)]
    for status in (400, 401, 404, 500):
        server.behaviour = lambda body, status=status: (status, {}, {"error": {"message": f"The key {KEY} is bad"}})
        try:
            held.append(json.dumps(say(agent, "Hello there.")))
        except SafetyError as error:
            held += [str(error), repr(pickle.dumps(error))]
    printed = capfd.readouterr()
    held += [printed.out, printed.err, caplog.text]
    assert "MY_KEY" in held[1] and "HTTP status 500" in "".join(held)
    for text in held:
        assert KEY not in text and KEY[5:20] not in text


@pytest.mark.parametrize("bad", ["two words", "sk-\x07bell", "sk-ü"])
def test_a_broken_key_is_not_shown(server, monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(SafetyError, match="OPENAI_API_KEY holds something that cannot be a key") as caught:
        say(agent_for(server), "Hello there.")
    assert bad not in str(caught.value) and server.bodies == []


def test_a_key_in_the_options_is_refused_and_not_shown(server):
    for wrong in ({"endpoint_key_env": KEY}, {"endpoint_url": f"http://user:{KEY}@127.0.0.1/v1"}):
        with pytest.raises(SafetyError, match="Options are saved and shown") as caught:
            agent_for(server, **wrong)
        assert KEY not in str(caught.value)
    with pytest.raises(SafetyError) as caught:
        agent_for(server, endpoint_url=f"{server.url}?key={KEY}")
    assert KEY not in str(caught.value)


def test_no_password_of_the_netrc_file_is_sent(server, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    say(agent_for(server), "Hello there.")
    assert "Authorization" not in server.headers[0]
    # The file is one that `requests` would have used.
    import requests

    requests.post(f"{server.url}/chat/completions", json={"messages": [{"content": "x"}]}, timeout=5)
    assert server.headers[1]["Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"endpoint_model": " "}, "--endpoint-model is empty"),
        ({"endpoint_url": "127.0.0.1:8000"}, "begins with http"),
        ({"endpoint_url": "http://host:port/v1"}, "begins with http"),
        ({"endpoint_url": "http://[::1/v1"}, "begins with http"),
        ({"endpoint_parallel": 0}, "--endpoint-parallel"),
        ({"endpoint_timeout": 0}, "--endpoint-timeout"),
    ],
)
def test_wrong_options_are_refused_at_once(server, wrong, match):
    with pytest.raises(SafetyError, match=match):
        agent_for(server, **wrong)


def test_interactive_talks_and_forgets_after_done(server, monkeypatch, capsys):
    typed = iter(["Good morning.", "How are you?", "[DONE]", "New talk.", "[EXIT]"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    Interactive.main(**options(server), loglevel="error")
    assert [len(body["messages"]) for body in server.bodies] == [1, 3, 1]
    assert "You said: How are you?" in capsys.readouterr().out


def test_interactive_goes_on_after_a_failure(server, monkeypatch, capsys):
    typed = iter(["Good morning.", "Still there?", "[EXIT]"])
    monkeypatch.setattr("builtins.input", lambda prompt="": next(typed))
    server.in_turn((500, {}, ""), (500, {}, ""), (500, {}, ""))
    Interactive.main(**options(server), loglevel="error")
    assert roles(server.bodies[-1]) == [("user", "Good morning.\nStill there?")]
    assert "You said: Good morning." in capsys.readouterr().out


def test_self_chat_alternates_and_writes_no_key(server, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    counter = iter(range(100))
    server.behaviour = lambda body: (200, {}, completion(f"Reply {next(counter)}."))
    SelfChat.main(**options(server), selfchat_max_turns=3, outfile=str(tmp_path / "talk"), loglevel="error")
    assert roles(server.bodies[0]) == [("user", "Hi!")]
    assert roles(server.bodies[1]) == [("user", "Reply 0.")]
    assert roles(server.bodies[2]) == [("user", "Hi!"), ("assistant", "Reply 0."), ("user", "Reply 1.")]
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert files and all(KEY not in path.read_text() for path in files)


def test_a_batch_world_evaluates_it(server, tmp_path):
    talk = tmp_path / "talk.jsonl"
    rows = [{"context": [f"Say {i}."], "reply": f"You said: Say {i}."} for i in range(7)]
    talk.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.behaviour = lambda body: (500, {}, "") if "Say 3." in str(body) else echo(body)
    report = EvalModel.main(
        **options(server), task="safety:file", safety_file=str(talk), batchsize=3, datatype="valid", loglevel="error"
    )
    # ParlAI counts accuracy over the examples that have a reply; the one without is in `exs` alone.
    assert (report["accuracy"]._numer, report["accuracy"]._denom, float(report["exs"])) == (6, 6, 7)
    assert len(server.bodies) == 6 + 3


def test_plain_python_loads_it_from_an_opt_file(server, tmp_path):
    agent = agent_for(server)
    agent.opt.save(str(tmp_path / "bot.opt"))
    loaded = create_agent_from_model_file(str(tmp_path / "bot"))
    assert isinstance(loaded, EndpointAgent) and loaded.opt["model"] == DOTTED
    assert say(loaded, "Hello there.")["text"] == "You said: Hello there."
