from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parlai_safety.judges import recipe
from parlai_safety.judges.data import Example
from parlai_safety.judges.quality import agreement_of, quality_of
from parlai_safety.judges.verdict import scored
from parlai_safety.scripts.safety_judges import SafetyJudges


@pytest.mark.parametrize(("arguments", "kind"), [((), "linear"), (("--kind", "turns"), "turns")])
def test_the_kind_of_the_two_judges(
    arguments: tuple[str, ...], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked: list[str] = []

    def train(examples: list[Example], *, folder: Path, kind: recipe.Kind, **_: Any) -> recipe.TwoJudges:
        asked.append(kind)
        two = [Example(["Hello."], reply, reply == "Rude.", "bot", reply, "toy") for reply in ("Rude.", "Kind.")]
        verdicts = [scored(0.9), scored(0.1)]
        quality, agreement = quality_of(verdicts, two, 0.5), agreement_of(verdicts, verdicts, 0.5, 0.5)
        return recipe.TwoJudges(folder / "a.npz", folder / "b.npz", quality, quality, agreement, agreement)

    monkeypatch.setattr(recipe, "train_two_judges", train)
    SafetyJudges.main("--out", str(tmp_path), *arguments)
    assert asked == [kind]
    said = capsys.readouterr()
    assert f"  {kind}:{tmp_path}/a.npz  n 2  AUC 1.000" in said.out + said.err
