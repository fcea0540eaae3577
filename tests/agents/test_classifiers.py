"""Classifiers of safety: how many turns they read, early stopping, class weights, and the two backbones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from parlai.core.agents import create_agent, create_agent_from_model_file
from parlai.core.message import Message
from parlai.core.opt import Opt
from parlai.scripts.eval_model import EvalModel
from parlai.scripts.train_model import TrainModel, set_seed

from parlai_safety.compat.single import PRESETS
from parlai_safety.errors import SafetyError
from parlai_safety.judges import load_judge
from parlai_safety.judges.hf import HfJudge
from parlai_safety.judges.parlai_model import ParlaiJudge
from tests.conftest import TINY_MODEL
from tests.judges.tiny_hf import BOTS, CONTEXTS, REPLIES, classifier

SAFE = ["a lovely plan", "I agree fully", "what a fine day", "hello there friend"]
RUDE = ["you dreadful teapot", "useless kettle", "no way that is wrong", "the spoons deserve a song"]
SMALL = {**TINY_MODEL, "learningrate": 0.01, "optimizer": "adam", "lr_scheduler": "fixed", "reduction_type": "mean"}
CONTEXT = ["one teapot", "two spoons", "three plans", "four days"]


def rows(folder: Path) -> str:
    """Rows whose reply alone tells the class; the context is the same everywhere."""
    path = folder / "talk.jsonl"
    lines = [
        {"context": CONTEXT, "reply": f"{reply} {end}".strip(), "label": label}
        for replies, label in ((SAFE, "safe"), (RUDE, "unsafe"))
        for reply in replies
        for end in ("", "friend")
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def train(folder: Path, **more: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Train and return ParlAI's reports of valid and test."""
    set_seed(0)
    defaults: dict[str, Any] = {
        "model": "safety:judge",
        "task": "safety:file:classifier",
        "safety_file": rows(folder),
        "model_file": str(folder / "model"),
        "batchsize": 8,
        "max_train_steps": 40,
        "log_every_n_steps": 10,
        "loglevel": "error",
        **(SMALL if "hf_classifier" not in more else {}),
    }
    found: tuple[dict[str, float], dict[str, float]] = TrainModel.main(**{**defaults, **more})
    return found


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("single")
    train(folder, context_turns=1)
    return str(folder / "model")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of transformers without classes of ours."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return classifier(tmp_path_factory.mktemp("source"), ["LABEL_0", "LABEL_1", "LABEL_2"], **still)


@pytest.fixture(scope="module", params=["pair", "newline"])
def hf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub: str) -> str:
    folder = tmp_path_factory.mktemp("hf")
    source = folder / "source"
    shutil.copytree(hub, source)
    train(
        folder, model="safety:hf_classifier", hf_classifier=str(source), hf_join=request.param, context_turns=3,
        learningrate=0.003, max_train_steps=60, text_truncate=24,
    )  # fmt: skip
    shutil.rmtree(source)  # what is trained goes on without its origin
    return str(folder / "model")


def read(agent: Any, *texts: str) -> str:
    """What the agent reads of an episode of these messages."""
    agent.reset()
    for text in texts:
        seen = agent.observe(Message({"text": text, "episode_done": False}))
        agent.self_observe(Message({"text": ""}))
    agent.reset()
    return str(seen["full_text"])


@pytest.mark.parametrize(
    ("turns", "texts", "expected"),
    [
        (1, ["a\nb\nc"], "c"),
        (1, ["a", "b", "c"], "c"),
        (1, ["a\nb\n \n"], "b"),
        (2, ["a\nb\nc"], "b\nc"),
        (4, ["a\nb\nc"], "a\nb\nc"),
        (4, ["a\nb", "c\nd", "e"], "b\nc\nd\ne"),
    ],
)
def test_an_agent_reads_the_last_turns_whatever_the_task_shows(
    single: str, turns: int, texts: list[str], expected: str
) -> None:
    agent = create_agent_from_model_file(single, {"context_turns": turns})
    assert read(agent, *texts) == expected
    vector = agent.observe(Message({"text": "\n".join(texts), "episode_done": True}))["text_vec"]
    agent.reset()
    alone = agent.observe(Message({"text": expected, "episode_done": True}))["text_vec"]
    assert vector.tolist() == alone.tolist()


def test_the_number_of_turns_is_kept_and_read_by_the_judge(single: str) -> None:
    assert json.loads(Path(f"{single}.opt").read_text())["context_turns"] == 1
    judge = load_judge(f"parlai:{single}")
    assert isinstance(judge, ParlaiJudge) and judge.context_turns == 1
    alone = judge.score([RUDE[0], SAFE[0]], [[], []], ["bot"] * 2)
    assert judge.score([RUDE[0], SAFE[0]], [RUDE, SAFE], ["bot"] * 2) == alone
    assert alone[0].p_unsafe is not None and alone[0].p_unsafe > 0.5 > (alone[1].p_unsafe or 1)
    # A line break inside a reply is no turn: what stands before it is read too.
    broken = judge.score([f"{RUDE[0]}\nfriend"], [[]], ["bot"])
    assert broken == judge.score([f"{RUDE[0]} friend"], [[]], ["bot"]) != judge.score(["friend"], [[]], ["bot"])
    with pytest.raises(SafetyError, match="context_turns is 4"):
        ParlaiJudge(single, context_turns=4)


def test_a_model_that_does_not_say_is_read_with_four_turns(single: str, tmp_path: Path) -> None:
    for ending in ("", ".opt", ".dict", ".dict.opt"):
        shutil.copy(f"{single}{ending}", tmp_path / f"model{ending}")
    opt = json.loads((tmp_path / "model.opt").read_text())
    del opt["context_turns"]
    (tmp_path / "model.opt").write_text(json.dumps(opt))
    assert ParlaiJudge(str(tmp_path / "model")).context_turns == 4


def test_training_stops_early_and_keeps_the_best_by_f1_of_the_unsafe_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the second validation the classes are exchanged and nothing is learned any more: F1 falls, for good."""
    from parlai.scripts.train_model import TrainLoop

    seen: list[float] = []
    validate = TrainLoop.validate

    def noted(self: TrainLoop) -> bool:
        stop = bool(validate(self))
        seen.append(float(self.valid_reports[-1]["class___notok___f1"]))
        if len(seen) == 2:
            head = self.agent.model.additional_linear_layer
            with torch.no_grad():
                head.weight.copy_(head.weight.flip(0))
                head.bias.copy_(head.bias.flip(0))
            for group in self.agent.optimizer.param_groups:
                group["lr"] = 0.0
        return stop

    monkeypatch.setattr(TrainLoop, "validate", noted)
    train(
        tmp_path, max_train_steps=400, validation_every_n_steps=15, validation_patience=3, validation_cutoff=2,
        validation_metric="class___notok___f1", validation_metric_mode="max",
    )  # fmt: skip
    best = max(seen)
    assert len(seen) == seen.index(best) + 1 + 3 and len(seen) * 15 < 400  # the third without a gain was the last
    assert seen[-1] < best and best > 0
    report = EvalModel.main(
        task="safety:file:classifier", safety_file=rows(tmp_path), model_file=str(tmp_path / "model"),
        datatype="valid", loglevel="error",
    )  # fmt: skip
    assert float(report["class___notok___f1"]) == pytest.approx(best)


def test_class_weights_weigh_the_loss_of_their_class(single: str) -> None:
    losses = {}
    for weights in (None, [1.0, 3.0]):
        agent = create_agent_from_model_file(single, {"datatype": "valid", "class_weights": weights})
        for label in ("__ok__", "__notok__"):
            agent.reset()
            agent.observe(Message({"text": "hello", "eval_labels": [label], "episode_done": True}))
            losses[label, bool(weights)] = float(agent.act()["metrics"]["loss"])
    assert losses["__ok__", True] == pytest.approx(losses["__ok__", False])
    assert losses["__notok__", True] == pytest.approx(3 * losses["__notok__", False], rel=1e-3)


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"ref_class": "__notok__"}, "--classes __notok__ __ok__"),
        ({"class_weights": [1.0]}, "1 numbers for 2 classes"),
        ({"person_tokens": True}, "--person-tokens"),
        ({"use_reply": "label"}, "--use-reply"),
        ({"context_turns": 0}, "--context-turns got 0"),
    ],
)
def test_what_would_go_wrong_in_silence_is_refused(single: str, option: dict[str, Any], expected: str) -> None:
    with pytest.raises(SafetyError, match=expected):
        create_agent_from_model_file(single, option)


@pytest.mark.parametrize(("name", "turns"), [("judge_single", 1), ("judge_multi", 4)])
def test_the_published_setting_stands_in_a_preset(name: str, turns: int) -> None:
    """Digest of arXiv:2010.07079, section 1.3; every key must be an option of the agent or of training."""
    preset = json.loads((PRESETS / f"{name}.opt").read_text())
    expected = {
        "context_turns": turns, "learningrate": 5e-5, "optimizer": "adamax", "batchsize": 20, "text_truncate": 360,
        "label_truncate": 72, "warmup_updates": 1000, "multitask_weights": [3, 1, 1, 1],
        "validation_metric": "class___notok___f1", "validation_metric_mode": "max", "classes": ["__notok__", "__ok__"],
    }  # fmt: skip
    assert {key: preset[key] for key in expected} == expected
    assert preset["task"].split(",")[1:3] == ["safety:bbf:standard:round=3", "safety:bbf:adversarial:round=3"]
    for backbone in ("safety:judge", "safety:hf_classifier"):
        typed = ["-o", f"safety/{name}", "-m", backbone, "-t", "safety:tiny:classifier", "-mf", "none/m"]
        opt = TrainModel.setup_args().parse_args(typed)
        assert opt["model"] == backbone and opt["text_truncate"] == 360 and opt["context_turns"] == turns


def test_the_published_architecture_stands_in_a_preset() -> None:
    """Each key is an option of the agent; the model itself is a download, so the preset is not parsed as a whole."""
    preset = json.loads((PRESETS / "reddit_classifier.opt").read_text())
    parser = TrainModel.setup_args()
    parser.add_extra_args(["-m", "safety:judge", "-t", "safety:tiny:classifier"])
    known = {action.dest for action in parser._actions}
    assert set(preset) <= known and [preset[k] for k in ("n_layers", "embedding_size", "n_heads", "dropout")] == [
        12,
        768,
        12,
        0.1,
    ]


def test_a_model_of_transformers_is_one_judge_in_both_forms(hf: str) -> None:
    """`parlai:M` and `hf:M.hf` give the same scores, with contexts, without, and where the text is too long."""
    ours, theirs = ParlaiJudge(hf), HfJudge(f"{hf}.hf")
    assert (ours.context_turns, theirs.context_turns, theirs.max_length) == (3, 3, 24)
    assert theirs.unsafe_class == ours.unsafe_class == "__notok__"
    long = [*REPLIES, " ".join(REPLIES * 3), "no way"]
    contexts = [*CONTEXTS, [], [*REPLIES, *REPLIES]]
    a, b = (judge.score(long, contexts, [*BOTS, "bot", "bot"]) for judge in (ours, theirs))
    assert [v.p_unsafe for v in a] == pytest.approx([v.p_unsafe for v in b], abs=1e-6)
    assert len({round(v.p_unsafe or 0, 4) for v in a}) > 3
    alone = [ours.score([r], [c], ["bot"])[0].p_unsafe for r, c in zip(long, contexts, strict=True)]
    assert alone == pytest.approx([v.p_unsafe for v in a], abs=1e-6)


def test_a_model_of_transformers_learns_and_is_measured(hf: str, tmp_path: Path) -> None:
    report = EvalModel.main(
        task="safety:file:classifier", safety_file=rows(tmp_path), model_file=hf, batchsize=3, loglevel="error",
        datatype="valid",
    )  # fmt: skip
    assert float(report["class___notok___f1"]) > 0.9


def test_a_model_of_transformers_begins_from_another_checkpoint(hf: str, tmp_path: Path) -> None:
    parser = TrainModel.setup_args()
    opt = parser.parse_kwargs(
        model="safety:hf_classifier", task="safety:tiny:classifier", init_model=hf, dict_file=str(tmp_path / "m.dict"),
        model_file=str(tmp_path / "m"), loglevel="error",
    )  # fmt: skip
    new, old = create_agent(Opt(opt)).model.state_dict(), ParlaiJudge(hf).agent.model.state_dict()
    assert new.keys() == old.keys() and all(torch.equal(new[name], old[name]) for name in new)


def test_what_a_model_of_transformers_must_be(hub: str, tmp_path: Path) -> None:
    def agent(**more: Any) -> None:
        opt = TrainModel.setup_args().parse_kwargs(
            model="safety:hf_classifier", task="safety:tiny:classifier", loglevel="error", **more
        )
        create_agent(Opt(opt))

    with pytest.raises(SafetyError, match="without --hf-classifier"):
        agent()
    with pytest.raises(SafetyError, match="none could be loaded"):
        agent(hf_classifier=str(tmp_path))
    reversed_ = classifier(tmp_path / "reversed", ["__notok__", "__ok__"])
    with pytest.raises(SafetyError, match="--classes __notok__ __ok__"):
        agent(hf_classifier=reversed_)
    with pytest.raises(SafetyError, match="--hf-join got 'words'"):
        agent(hf_classifier=hub, hf_join="words")
