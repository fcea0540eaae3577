"""What our commands share."""

from __future__ import annotations

from parlai_safety.files import sha256
from parlai_safety.scripts.common import _files_of


def test_the_identity_of_a_model_holds_every_file_that_its_options_name(tmp_path, monkeypatch):
    """A base model with its options and dictionary, the judges that guide it, a folder; no file where none is named."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "model.opt", "model.dict", "a.npz", "b.npz", "unnamed", "hf/weights"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = _files_of(
        {
            "base_model": str(tmp_path / "model"),
            "guidance_judge": f"linear:{tmp_path}/a.npz+toxicity:{tmp_path}/b.npz",
            "model_name": "hf",
            "endpoint_url": "http://127.0.0.1:8000/v1",
            "word": "odd:",
            "topk": 10,
            "judge": "hf:hf",
            "spaced": f"linear: {tmp_path}/a.npz",
            "long": "x:" + "y" * 5000,
            "empty": "",
        }
    )
    names = {"base_model": "model", "base_model.opt": "model.opt", "base_model.dict": "model.dict"}
    names |= {"guidance_judge 1": "a.npz", "guidance_judge 2": "b.npz", "model_name/weights": "hf/weights"}
    names |= {"judge 1/weights": "hf/weights", "spaced 1": "a.npz"}
    assert found == {key: sha256(tmp_path / name) for key, name in names.items()}
