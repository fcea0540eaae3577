"""What a judge's scores depend on is in its fingerprint; what they do not depend on is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parlai_safety.judges import load_judge
from parlai_safety.judges.combined import CombinedJudge
from parlai_safety.judges.data import Example
from parlai_safety.judges.linear import LinearJudge, train_linear
from parlai_safety.judges.parlai_model import ParlaiJudge
from parlai_safety.judges.toxicity import ToxicityJudge
from parlai_safety.judges.verdict import fingerprint_of
from parlai_safety.judges.wordlist import WordListJudge
from tests.judges.test_parlai_model import train


@pytest.fixture(scope="module")
def linear(opinions: list[Example], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("linear") / "judge.npz"
    train_linear(opinions, seed=1).save(path)
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(tmp_path_factory.mktemp("classifier"), ("__ok__", "__notok__"), "__notok__")


def in_another_process(*specs: str) -> list[str]:
    code = "import sys; from parlai_safety.judges import load_judge\n"
    code += "sys.stderr.write(' '.join(load_judge(spec).fingerprint for spec in sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *specs], capture_output=True, text=True, check=True)
    return done.stderr.split()[-len(specs) :]


def test_it_is_the_same_in_a_new_process_and_for_any_threshold(linear: Path, model_file: str) -> None:
    specs = [f"linear:{linear}", f"parlai:{model_file}", "wordlist", f"linear:{linear}+wordlist"]
    here = [load_judge(spec, threshold=0.9).fingerprint for spec in specs]
    assert in_another_process(*specs) == here == [load_judge(spec).fingerprint for spec in specs]
    assert len(set(here)) == 4
    assert all(len(text) == 64 and set(text) <= set("0123456789abcdef") for text in here)


def test_it_follows_the_content_and_not_the_path(linear: Path, tmp_path: Path) -> None:
    shutil.copy(linear, tmp_path / "copy.npz")
    assert load_judge(f"linear:{tmp_path}/copy.npz").fingerprint == load_judge(f"linear:{linear}").fingerprint
    (tmp_path / "a.txt").write_text("rude\nodd\n")
    (tmp_path / "b.txt").write_text("# the same in another order\nOdd\nrude\n")
    (tmp_path / "c.txt").write_text("rude\neven\n")
    a, b, c = (load_judge(f"wordlist:{tmp_path}/{name}.txt").fingerprint for name in "abc")
    assert a == b != c


def test_each_part_of_a_linear_judge_counts(linear: Path) -> None:
    judge = LinearJudge.load(linear)
    weights, idf = judge.weights.copy(), judge.idf.copy()
    weights[7] += 0.25
    idf[1, 3] += 0.25
    others = [
        LinearJudge(judge.idf, weights, judge.bias, judge.threshold, {}),
        LinearJudge(idf, judge.weights, judge.bias, judge.threshold, {}),
        LinearJudge(judge.idf, judge.weights, judge.bias + 1e-9, judge.threshold, {}),
    ]
    assert len({judge.fingerprint, *(other.fingerprint for other in others)}) == 4
    same = LinearJudge(np.asfortranarray(judge.idf), judge.weights, judge.bias, 0.1, {"facts": "do not score"})
    assert same.fingerprint == judge.fingerprint


def test_trained_judges_keep_the_fingerprints_that_they_had_when_cards_were_first_written() -> None:
    """A card and a cache of verdicts belong to a fingerprint, so format version 1 gives these for ever."""

    def ramp(*shape: int) -> np.ndarray:
        return (np.arange(np.prod(shape)) % 7 / 8).astype(np.float32).reshape(shape)

    linear = LinearJudge(ramp(4, 2**18), ramp(4 * 2**18 + 1), 0.5, 0.5, {})
    toxicity = ToxicityJudge(ramp(2, 2**18), ramp(2 * 2**18 + 7), 0.5, -1.0, 1.5, 0.5, {})
    assert linear.fingerprint.startswith("eae91370c188be3e")
    assert toxicity.fingerprint.startswith("07611e203a6c8125")


def test_each_part_of_a_parlai_judge_counts(model_file: str, tmp_path: Path) -> None:
    for path in Path(model_file).parent.glob("model*"):
        if path.is_file():
            shutil.copy(path, tmp_path)
    copy, options = str(tmp_path / "model"), (tmp_path / "model.opt").read_text()
    (tmp_path / "model.opt").write_text(options.replace(model_file, copy))
    judge = ParlaiJudge(copy)
    found = {judge.fingerprint, ParlaiJudge(copy, context_turns=2).fingerprint}
    found.add(ParlaiJudge(copy, unsafe_class="__ok__").fingerprint)
    words = (tmp_path / "model.dict").read_text()
    (tmp_path / "model.dict").write_text(words.replace("\t2", "\t3", 1))
    found.add(ParlaiJudge(copy).fingerprint)
    (tmp_path / "model.dict").write_text(words)
    assert ParlaiJudge(copy, batch_size=1).fingerprint == judge.fingerprint
    (tmp_path / "model.opt").write_text(options.replace(model_file, copy).replace('"truncate": 64', '"truncate": 32'))
    found.add(ParlaiJudge(copy).fingerprint)
    (tmp_path / "model").write_bytes((tmp_path / "model").read_bytes() + b"\0")
    late = ParlaiJudge(model_file)
    late.agent.opt["model_file"] = copy
    found.add(late.fingerprint)
    assert len(found) == 6


def test_a_combination_counts_its_parts_and_their_thresholds() -> None:
    a, b = WordListJudge(["rude"]), WordListJudge(["odd"])
    whole = CombinedJudge([a, b])
    assert whole.fingerprint == CombinedJudge([b, a], threshold=0.9).fingerprint
    others = [CombinedJudge([a, a]), CombinedJudge([a, WordListJudge(["odd"], threshold=0.4)]), a, b]
    assert len({whole.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_kind_version_and_parts_are_kept_apart() -> None:
    found = [fingerprint_of("a", 1), fingerprint_of("b", 1), fingerprint_of("a", 2), fingerprint_of("a", 1, x="")]
    assert len(set(found)) == 4
    assert fingerprint_of("a", 1, x=1, y=2) == fingerprint_of("a", 1, y=2, x=1)
    # Worked by hand: printf '["a", 1, {"x": 2}]' | sha256sum
    assert fingerprint_of("a", 1, x=2).startswith("e3e6889c8396ffad")
