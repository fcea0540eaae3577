"""The trainers of the second door: losses and gradients, accumulation, resume, saving, adapters, rows."""

from __future__ import annotations

import importlib
import math
import sys
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from parlai_safety.errors import SafetyError
from parlai_safety.integrations.trl.rows import tokenized
from parlai_safety.losses import TokenLabel, adpo_loss, cringe_loss
from tests.tiny_causal import tiny_causal

from .trl_rows import (
    TOXIC,
    TRAINERS,
    adpo_rows,
    adpo_trainer,
    bot,
    cringe_rows,
    cringe_trainer,
    model_of,
    tokenizer_of,
    user,
    weights_of,
    words,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One tiny model of each kind; 403 words, so that the control token is one of them and no layer is resized."""
    root = tmp_path_factory.mktemp("models")
    made = {kind: tiny_causal(root / kind, kind, vocab_size=410) for kind in ("llama", "gpt2", "opt")}
    for folder in made.values():
        assert tokenizer_of(folder).convert_tokens_to_ids(TOXIC) < 410
    return made


@pytest.fixture(scope="module")
def folder(folders):
    return folders["llama"]


def gradients(trainer: Any, loss: Tensor) -> dict[str, Tensor]:
    weights = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)


def logps(model: Any, prompt: list[int], reply: list[int]) -> Tensor:
    """log p of one reply, from the model's own logits, without padding or batches."""
    scores = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return scores.gather(-1, torch.tensor(reply)[:, None]).sum()


# Losses.


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_cringe_is_the_loss_of_the_package(folders, tmp_path, kind):
    """In chunks of three tokens or all at once: loss and gradients of `cringe_loss` on the model's own logits."""
    trainer = cringe_trainer(folders[kind], tmp_path, chunk_tokens=3)
    trainer.model.eval()
    batch = trainer.collate(list(trainer.train_dataset)[:6])
    assert set(batch["token_label"].tolist()) == {1, 0, -1}
    assert batch["attention_mask"].eq(0).any()
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    expected = cringe_loss(
        logits,
        batch["input_ids"][:, 1:],
        batch["token_label"],
        batch["completion_mask"][:, 1:],
        alpha=0.7,
        generator=None,
    )
    expected_gradients = gradients(trainer, expected.loss)
    for chunk in (3, None):
        trainer.args.chunk_tokens = chunk
        found = trainer.compute_loss(trainer.model, batch)
        torch.testing.assert_close(found, expected.loss, rtol=1e-12, atol=1e-12)
        assert_equal(gradients(trainer, found), expected_gradients)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"paired": True, "per_token": True},
        {"anchor": "reference", "paired": True},
        {"joint": True, "nll_weight": 0.5},
    ],
)
def test_adpo_is_the_loss_of_the_package(folder, tmp_path, form):
    """Loss and gradients of `adpo_loss` on replies that are scored one by one, away from the reference."""
    trainer = adpo_trainer(folder, tmp_path, chunk_tokens=5, **form)
    policy, reference = trainer.model, model_of(folder)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.05)
    rows = list(trainer.train_dataset)[:5]
    expected = {name: [] for name in ("pc", "pr", "pt", "rc", "rr", "rt", "tc", "tt")}
    for row in rows:
        toxic = row["toxic_ids"] or row["chosen_ids"]
        for key, model, prompt, reply in (
            ("pc", policy, "prompt_ids", row["chosen_ids"]),
            ("pr", policy, "prompt_ids", row["rejected_ids"]),
            ("pt", policy, "prompt_ids", toxic),
            ("rc", reference, "prompt_ids", row["chosen_ids"]),
            ("rr", reference, "prompt_ids", row["rejected_ids"]),
            ("rt", reference, "prompt_ids", toxic),
            ("tc", reference, "toxic_prompt_ids", row["chosen_ids"]),
            ("tt", reference, "toxic_prompt_ids", toxic),
        ):
            scored = logps(model, row[prompt], reply)
            expected[key].append(scored if key[0] == "p" else scored.detach())
    output = adpo_loss(
        *(torch.stack(values) for values in expected.values()),
        beta=0.2,
        chosen_tokens=torch.tensor([len(row["chosen_ids"]) for row in rows]),
        rejected_tokens=torch.tensor([len(row["rejected_ids"]) for row in rows]),
        toxic_tokens=torch.tensor([len(row["toxic_ids"]) for row in rows]),
        has_toxic=torch.tensor([bool(row["toxic_ids"]) for row in rows]),
        **form,
    )
    found = trainer.compute_loss(policy, trainer.collate(rows))
    torch.testing.assert_close(found, output.loss, rtol=1e-11, atol=1e-11)
    assert_equal(gradients(trainer, found), gradients(trainer, output.loss), tolerance=1e-9)
    logged = trainer._metrics()
    has_toxic = torch.tensor([bool(row["toxic_ids"]) for row in rows])
    policy_chosen, reference_chosen = torch.stack(expected["pc"]).detach(), torch.stack(expected["rc"])
    gap = torch.stack(expected["tt"]) - torch.stack(expected["rt"])
    assert math.isclose(logged["rewards/toxic"], output.toxic_rewards[has_toxic].mean().item(), rel_tol=1e-9)
    assert math.isclose(logged["logps/chosen_drift"], (policy_chosen - reference_chosen).mean().item(), rel_tol=1e-9)
    assert ("toxic/gap" in logged) is (form.get("anchor") != "reference")
    if "toxic/gap" in logged:
        assert math.isclose(logged["toxic/gap"], gap[has_toxic].mean().item(), rel_tol=1e-9)
    margins = output.chosen_rewards - output.rejected_rewards
    assert math.isclose(logged["rewards/accuracies"], margins.gt(0).double().mean().item())


def test_without_the_toxic_term_it_is_trls_dpo(folder, tmp_path):
    """Loss and gradients of TRL's own DPOTrainer, on the same rows of text and of messages."""
    from trl import DPOConfig, DPOTrainer

    for chat in (True, False):
        rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in adpo_rows(6, chat=chat)]
        ours = adpo_trainer(folder, tmp_path, rows=rows, toxic_weight=0.0)
        theirs = DPOTrainer(
            model_of(folder),
            model_of(folder),
            DPOConfig(
                output_dir=str(tmp_path), use_cpu=True, bf16=False, beta=0.2, report_to=[], gradient_checkpointing=False
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer_of(folder),
        )
        for trainer in (ours, theirs):
            with torch.no_grad():
                for weight in trainer.model.parameters():
                    weight.mul_(1.05)
        found = ours.compute_loss(ours.model, ours.collate(list(ours.train_dataset)))
        batch = theirs.data_collator(list(theirs.train_dataset))
        expected = theirs.compute_loss(theirs.model, batch)
        torch.testing.assert_close(found, expected.double(), rtol=1e-6, atol=1e-6)
        assert_equal(gradients(ours, found), gradients(theirs, expected), tolerance=2e-6)


def test_a_model_that_changes_its_scores_is_scored_in_full(tmp_path):
    """Gemma 2 squashes its scores after the output layer; the loss is still that of the model's own logits."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    folder = tiny_causal(tmp_path / "llama")
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=410,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=2.0,
        initializer_range=0.3,
    )
    trainer = cringe_trainer(folder, tmp_path, model=Gemma2ForCausalLM(config).double())
    batch = trainer.collate(list(trainer.train_dataset)[:6])
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    mask = batch["completion_mask"][:, 1:]
    expected = cringe_loss(logits, batch["input_ids"][:, 1:], batch["token_label"], mask, alpha=0.7, generator=None)
    found = trainer.compute_loss(trainer.model, batch)
    assert trainer._full_logits == {Gemma2ForCausalLM: True}
    torch.testing.assert_close(found, expected.loss, rtol=1e-9, atol=1e-9)


def encoder(**settings: Any) -> Any:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertLMHeadModel(BertConfig(vocab_size=410, initializer_range=0.3, **sizes, **settings))


def test_a_model_that_looks_ahead_is_refused(folder, tmp_path):
    """BERT loads as a causal language model and is an encoder all the same; as a decoder it is one."""
    trainer = cringe_trainer(folder, tmp_path, model=encoder())
    assert "BertLMHeadModel looks at tokens that come later" in refused(trainer.train)
    ahead = {"ref_model": encoder(), "toxic_model": encoder()}
    trainer = adpo_trainer(folder, tmp_path, more=ahead)
    assert "BertLMHeadModel looks at tokens that come later" in refused(trainer.train)
    cringe_trainer(folder, tmp_path, model=encoder(is_decoder=True), max_steps=1).train()


def test_the_draws_are_torchs_own(folder, tmp_path):
    """With k > 1 the positives follow torch's seed, which checkpoints keep."""
    trainer = cringe_trainer(folder, tmp_path, k=20)
    batch = trainer.collate(list(trainer.train_dataset))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] == losses[1] != losses[2]


# Training.


@pytest.mark.parametrize("method", TRAINERS)
def test_one_batch_of_eight_is_eight_of_one(folder, tmp_path, method):
    """Two steps of gradient descent; replies of 1 to 8 tokens, and contexts with and without a toxic one."""
    ends, losses = [], []
    for size in (8, 1):
        more = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size, "logging_steps": 1}
        model = model_of(folder)
        model.accepts_loss_kwargs = False  # for which Trainer would divide the loss by the steps once more
        trainer = TRAINERS[method](folder, tmp_path, model=model, **more)
        start = weights_of(trainer)
        trainer.train()
        ends.append(weights_of(trainer))
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert_equal(ends[1], ends[0])
    assert max((ends[0][name] - start[name]).abs().max().item() for name in start) > 1e-3
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", TRAINERS)
def test_resume_is_a_straight_run(folder, tmp_path, method):
    """Four steps, and two with a checkpoint and two from it: the same weights to the last bit, draws included."""
    draws = {"k": 5} if method == "cringe" else {}
    more = {"per_device_train_batch_size": 3, "optim": "adamw_torch", "learning_rate": 1e-2, **draws}
    straight = TRAINERS[method](folder, tmp_path / "straight", max_steps=4, **more)
    straight.train()
    saving = {"save_strategy": "steps", "save_steps": 2}
    TRAINERS[method](folder, tmp_path / "parts", max_steps=4, **{**more, **saving}).train()
    resumed = TRAINERS[method](folder, tmp_path / "parts", max_steps=4, **more)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for name, weight in weights_of(straight).items():
        assert torch.equal(weights_of(resumed)[name], weight), name


def test_cringe_teaches_what_to_say_and_what_not(folder, tmp_path):
    """A model that has learned to say both says, after CRINGE, the one more readily and the other less."""
    rows = [
        {"prompt": user(words(i, 2)), "completion": bot(["good day", "the cat"][i % 2]), "label": None}
        for i in range(8)
    ]
    plain = cringe_trainer(folder, tmp_path, max_steps=6, rows=rows)
    plain.train()
    labelled = [{**row, "label": i % 2 == 0} for i, row in enumerate(rows)]
    trainer = cringe_trainer(folder, tmp_path, model=plain.model, max_steps=6, rows=labelled)
    before = trainer.evaluate(labelled)
    trainer.train()
    after = trainer.evaluate(labelled)
    assert after["eval_follow/nll"] < before["eval_follow/nll"] - 0.05
    assert after["eval_avoid/nll"] > before["eval_avoid/nll"] + 1.0
    assert after["eval_avoid/contrastive"] < before["eval_avoid/contrastive"]


@pytest.mark.parametrize("method", TRAINERS)
def test_evaluation_counts_items_and_not_batches(folder, tmp_path, method):
    """The loss of eight rows is the same in batches of 8, 3 and 1, and leaves the metrics of training as they were."""
    losses = []
    for size in (8, 3, 1):
        trainer = TRAINERS[method](folder, tmp_path, per_device_eval_batch_size=size)
        batch = trainer.collate(list(trainer.train_dataset)[:4])
        trainer.compute_loss(trainer.model, batch)
        alone = trainer._metrics()
        trainer.compute_loss(trainer.model, batch)
        found = trainer.evaluate(trainer.train_dataset.select(range(8)), metric_key_prefix="test")
        assert trainer._metrics() == alone
        losses.append(found["test_loss"])
    whole = trainer.collate(list(trainer.train_dataset)[:8])
    expected = trainer.compute_loss(trainer.model.eval(), whole).item()
    assert all(math.isclose(loss, expected, rel_tol=1e-6) for loss in losses), (losses, expected)


def test_adpo_parts_the_replies(folder, tmp_path):
    """After training, chosen replies have gained on rejected and toxic ones, which have lost."""
    trainer = adpo_trainer(folder, tmp_path, max_steps=8, learning_rate=0.1, more={"eval_dataset": adpo_rows(8)})
    start = trainer.evaluate()
    assert abs(start["eval_rewards/chosen"]) < 1e-9 and start["eval_rewards/toxic_accuracies"] == 0
    trainer.train()
    end = trainer.evaluate()
    assert end["eval_rewards/chosen"] > 0 > end["eval_rewards/rejected"]
    assert end["eval_logps/toxic"] < start["eval_logps/toxic"]
    assert end["eval_rewards/accuracies"] > 0.8 and end["eval_rewards/toxic_accuracies"] > 0.8
    assert end["eval_loss"] < start["eval_loss"]


def test_the_reference_stays_what_it_was(folder, tmp_path):
    """It is a copy, which training does not move, and the control token is only in what the toxic model reads."""
    trainer = adpo_trainer(folder, tmp_path)
    trainer.train()
    assert_equal(dict(trainer.ref_model.state_dict()), dict(model_of(folder).state_dict()), 0.0)
    assert not any(weight.requires_grad for weight in trainer.ref_model.parameters())
    toxic_id = trainer.processing_class.convert_tokens_to_ids(TOXIC)
    batch = trainer.collate(list(trainer.train_dataset))
    assert not batch["input_ids"].eq(toxic_id).any()
    assert batch["toxic_input_ids"].eq(toxic_id).sum(-1).eq(1).all()


def test_dropout_is_off(folders, tmp_path):
    """GPT-2 has it by default; the trained model in training is the reference all the same."""
    trainer = adpo_trainer(folders["gpt2"], tmp_path)
    trainer.model.train()
    trainer.compute_loss(trainer.model, trainer.collate(list(trainer.train_dataset)[:4]))
    assert abs(trainer._metrics()["logps/chosen_drift"]) < 1e-9
    trainer = adpo_trainer(folders["gpt2"], tmp_path, disable_dropout=False)
    trainer.model.train()
    trainer.compute_loss(trainer.model, trainer.collate(list(trainer.train_dataset)[:4]))
    assert abs(trainer._metrics()["logps/chosen_drift"]) > 1e-3


@pytest.mark.parametrize("paired", [False, True])
def test_precomputed_scores_are_those_of_the_models(folder, tmp_path, paired):
    """Scored beforehand, in batches of three: the same weights after training, and no frozen model is kept."""
    direct = adpo_trainer(folder, tmp_path, paired=paired, more={"eval_dataset": adpo_rows(5)})
    early = adpo_trainer(
        folder,
        tmp_path,
        paired=paired,
        precompute_ref_log_probs=True,
        per_device_eval_batch_size=3,
        more={"eval_dataset": adpo_rows(5)},
    )
    assert early.ref_model is None and "toxic_toxic_logps" in early.train_dataset.column_names
    for trainer in (direct, early):
        trainer.train()
    assert_equal(weights_of(early), weights_of(direct), tolerance=1e-6)
    torch.testing.assert_close(early.evaluate()["eval_loss"], direct.evaluate()["eval_loss"], rtol=1e-6, atol=1e-6)
    with pytest.raises(SafetyError, match="the reference is gone"):
        early.evaluate(adpo_rows(3))


def test_a_toxic_model_and_a_reference_of_ones_own(folders, folder, tmp_path):
    """Both are asked, the toxic model on the plain context where there is no control token."""
    other, toxic = (
        tiny_causal(tmp_path / "other", seed=1, vocab_size=410),
        tiny_causal(tmp_path / "t", seed=2, vocab_size=410),
    )
    trainer = adpo_trainer(
        folder, tmp_path, toxic_token=None, more={"ref_model": model_of(other), "toxic_model": model_of(toxic)}
    )
    row = trainer.train_dataset[0]
    scores = trainer._frozen_scores(trainer.model, trainer.collate([row]))
    for name, model, reply in (
        ("ref_chosen_logps", other, "chosen_ids"),
        ("ref_toxic_logps", other, "toxic_ids"),
        ("toxic_toxic_logps", toxic, "toxic_ids"),
    ):
        expected = logps(model_of(model), row["prompt_ids"], row[reply]).detach()
        torch.testing.assert_close(scores[name][0], expected, rtol=1e-9, atol=1e-9)


def test_what_is_saved_loads_and_says_the_same(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    trainer = cringe_trainer(folder, tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(loaded(ids).logits, trainer.model(ids).logits)
    assert "forward" not in vars(trainer.model) and "forward" not in vars(trainer.model.lm_head)


@pytest.mark.parametrize("method", TRAINERS)
def test_adapters_alone_are_trained(folder, tmp_path, method):
    """With LoRA, on the output layer too, no weight of the base moves; without it, ADPO has its reference."""
    from peft import LoraConfig

    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "lm_head"], lora_dropout=0.1)
    # With the older way of checkpointing, layers below which nothing is trained learn only if their inputs may.
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = TRAINERS[method](folder, tmp_path, more={"peft_config": adapter}, **checkpointing)
    start = weights_of(trainer)
    if method == "adpo":
        assert trainer.ref_model is None
    trainer.train()
    for name, weight in weights_of(trainer).items():
        assert torch.equal(weight, start[name]) is ("lora_" not in name), name
    if method == "adpo":
        row = trainer.train_dataset[0]
        trainer.model.train()
        scores = trainer._frozen_scores(trainer.model, trainer.collate([row]))
        assert trainer.model.training
        expected = logps(model_of(folder), row["prompt_ids"], row["chosen_ids"]).detach()
        torch.testing.assert_close(scores["ref_chosen_logps"][0], expected, rtol=1e-9, atol=1e-9)
        trained = trainer.model
        with pytest.raises(SafetyError, match="merge_and_unload"):
            adpo_trainer(folder, tmp_path, model=trained)
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


# Rows.


def test_only_completions_count(folder, tmp_path):
    """The completion is what the template puts after the prompt's own text; a cut prompt keeps its end."""
    trainer = cringe_trainer(folder, tmp_path, max_length=12)
    tokenizer = trainer.processing_class
    row = trainer.train_dataset[5]
    whole = tokenizer.apply_chat_template(
        cringe_rows()[5]["prompt"] + cringe_rows()[5]["completion"], tokenize=True, return_dict=True
    )["input_ids"]
    assert len(whole) > 12 and (row["prompt_ids"] + row["completion_ids"]) == whole[-12:]
    assert tokenizer.decode(row["completion_ids"]).startswith(cringe_rows()[5]["completion"][0]["content"])
    batch = trainer.collate([row, {**row, "completion_ids": row["completion_ids"][:1]}])
    assert batch["completion_mask"].sum(-1).tolist() == [len(row["completion_ids"]), 1]
    assert batch["input_ids"][1, len(row["prompt_ids"]) + 1 :].eq(tokenizer.pad_token_id).all()


def test_text_gets_its_end_and_an_empty_prompt_its_start(folder, tmp_path):
    rows = [
        {"prompt": "", "completion": "good day", "label": False},
        {"prompt": "Hi.", "completion": " you", "label": None},
    ]
    trainer = cringe_trainer(folder, tmp_path, rows=rows)
    tokenizer, first = trainer.processing_class, trainer.train_dataset[0]
    assert first["prompt_ids"] == [tokenizer.bos_token_id]
    assert tokenizer.decode(first["completion_ids"]) == "good day<|endoftext|>"
    assert [row["token_label"] for row in trainer.train_dataset] == [TokenLabel.NEGATIVE, TokenLabel.PLAIN]


def test_a_completion_that_runs_into_its_prompt_is_one_text_with_it(folder, tmp_path):
    """Where tokens merge across the border, the completion begins with the token that does."""
    rows = [{"prompt": "a good da", "completion": "y to you", "label": True}]
    trainer = cringe_trainer(folder, tmp_path, rows=rows)
    row, whole = trainer.train_dataset[0], trainer.processing_class("a good day to you<|endoftext|>")["input_ids"]
    alone = trainer.processing_class("a good da")["input_ids"]
    assert row["prompt_ids"] + row["completion_ids"] == whole
    assert len(row["prompt_ids"]) < len(alone)


def test_pairs_are_taken_apart_for_cringe(folder, tmp_path):
    """Also where the prompt is what both begin with."""
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in adpo_rows(3)]
    trainer = cringe_trainer(folder, tmp_path, rows=Dataset.from_list(rows))
    assert sorted(row["token_label"] for row in trainer.train_dataset) == [0, 0, 0, 1, 1, 1]
    implicit = [{name: row["prompt"] + row[name] for name in ("chosen", "rejected")} for row in rows]
    assert list(cringe_trainer(folder, tmp_path, rows=implicit).train_dataset) == list(trainer.train_dataset)


@pytest.mark.parametrize("position", ["context_end", "before_reply"])
def test_the_control_token_stands_where_it_is_asked_for(folder, tmp_path, position):
    trainer = adpo_trainer(folder, tmp_path, toxic_token_position=position, rows=adpo_rows(1))
    row = trainer.train_dataset[0]
    text = trainer.processing_class.decode(row["toxic_prompt_ids"])
    plain = trainer.processing_class.decode(row["prompt_ids"])
    assert text.replace(TOXIC, "") == plain
    assert text.endswith(TOXIC) is (position == "before_reply")
    assert (f"{TOXIC}<|im_end|>" in text) is (position == "context_end")


def test_a_cut_leaves_the_control_token(folder, tmp_path):
    """What is cut is the text before it, at the place where the prompt itself is cut, however little that leaves."""
    row = {"prompt": user("a b c d e f g h"), "chosen": bot("x" * 25), "rejected": bot("no"), "toxic": bot("cat")}

    def ids(max_length: int | None) -> dict[str, list[int]]:
        return adpo_trainer(folder, tmp_path, rows=[row], max_length=max_length).train_dataset[0]

    whole = ids(None)
    size, place = len(whole["prompt_ids"]), whole["toxic_prompt_ids"].index(tokenizer_of(folder).vocab[TOXIC])
    for kept in (size, size - 4, 3):
        found, lost = ids(kept + len(whole["chosen_ids"])), size - kept
        assert found["prompt_ids"] == whole["prompt_ids"][lost:]
        assert found["toxic_prompt_ids"] == whole["toxic_prompt_ids"][min(lost, place) :]
    assert 4 < place < size - 3


def test_a_streamed_dataset_trains(folder, tmp_path):
    trainer = cringe_trainer(folder, tmp_path, rows=Dataset.from_list(cringe_rows()).to_iterable_dataset())
    start = weights_of(trainer)
    trainer.train()
    assert any(not torch.equal(weight, start[name]) for name, weight in weights_of(trainer).items())


def test_half_precision_runs(folder, tmp_path):
    """bf16 autocast on the CPU: a finite loss near that of fp32, and fp32 weights."""
    losses = []
    for bf16 in (False, True):
        trainer = cringe_trainer(folder, tmp_path, model=model_of(folder, torch.float32), bf16=bf16, logging_steps=1)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        assert next(trainer.model.parameters()).dtype == torch.float32
        assert trainer._full_logits == {type(trainer.model): False}
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.05 * losses[0]


# What is refused.


def refused(build: Any) -> str:
    with pytest.raises(SafetyError) as error:
        build()
    return str(error.value)


def test_rows_that_cannot_be_learned_from_are_refused(folder, tmp_path):
    def cringe(**change: Any) -> Any:
        return lambda: cringe_trainer(folder, tmp_path, rows=[{**cringe_rows(1)[0], **change}])

    assert "the label 'pos'" in refused(cringe(label="pos"))
    assert "a prompt is a list and its completion text" in refused(cringe(completion="hello"))
    assert "no label" in refused(lambda: cringe_trainer(folder, tmp_path, rows=[{"prompt": "a", "completion": "b"}]))

    def adpo(row: dict[str, Any], **settings: Any) -> Any:
        return lambda: adpo_trainer(folder, tmp_path, rows=[row], **settings)

    row = adpo_rows(1)[0]
    assert "no toxic" in refused(adpo({name: row[name] for name in ("prompt", "chosen", "rejected")}))
    assert "neither a toxic_token nor a toxic_model" in refused(adpo(row, toxic_token=None))
    assert "holds the control token" in refused(adpo({**row, "prompt": user(f"hi {TOXIC}")}))
    assert "tokens to the tokenizer" in refused(adpo(row, toxic_token="[TOXIC]"))
    endless = tokenizer_of(folder)
    endless.eos_token = endless.bos_token = None
    assert "has no token" in refused(lambda: tokenized(endless, {}, "a", [""], None))
    assert "neither a start nor an end token" in refused(lambda: tokenized(endless, {}, "", ["a"], None))
    endless.chat_template = None
    assert "has no chat template" in refused(lambda: tokenized(endless, {}, user("a"), [bot("b")], None))


def test_empty_data_is_refused(folder, tmp_path):
    assert "a dataset has no rows" in refused(lambda: cringe_trainer(folder, tmp_path, rows=[]))
    none = Dataset.from_list(cringe_rows(1)).select([])
    assert "a dataset has no rows" in refused(lambda: cringe_trainer(folder, tmp_path, rows=none))
    row = {**cringe_rows(1)[0], "prompt": []}
    assert "an empty list of messages" in refused(lambda: cringe_trainer(folder, tmp_path, rows=[row]))


SCORES = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0, "ref_toxic_logps": -3.0, "toxic_toxic_logps": -4.0}


@pytest.mark.parametrize("value", [None, math.nan, -math.inf])
@pytest.mark.parametrize("name", ["ref_chosen_logps", "toxic_toxic_logps"])
def test_scores_of_rows_are_numbers(folder, tmp_path, name, value):
    row = {**adpo_rows(1)[0], **SCORES, name: value}
    assert f"a row has {value} as its {name}" in refused(lambda: adpo_trainer(folder, tmp_path, rows=[row]))


def test_scores_of_rows_come_whole(folder, tmp_path):
    """All of a model's or none; without a toxic reply those of it may be None, and count as nothing."""
    bare = {**adpo_rows(1)[0], "toxic": None, **SCORES, "ref_toxic_logps": None, "toxic_toxic_logps": None}
    trainer = adpo_trainer(folder, tmp_path, rows=[{**adpo_rows(1)[0], **SCORES}, bare])
    batch = trainer.collate(list(trainer.train_dataset))
    assert trainer.ref_model is None
    assert {name: batch[name].tolist() for name in SCORES} == {
        name: [value, 0.0 if "toxic" in name else value] for name, value in SCORES.items()
    }
    for name, role in (("ref_toxic_logps", "ref"), ("toxic_toxic_logps", "toxic")):
        row = {key: value for key, value in {**adpo_rows(1)[0], **SCORES}.items() if key != name}
        settings = {"paired": True} if role == "toxic" else {}
        row.update({"toxic_chosen_logps": -5.0} if role == "toxic" else {})
        message = refused(lambda row=row, settings=settings: adpo_trainer(folder, tmp_path, rows=[row], **settings))
        assert f"no {name}" in message


@pytest.mark.parametrize("name", ["ref_model", "toxic_model"])
def test_a_frozen_model_is_another_one(folder, tmp_path, name):
    """The trained model itself would be frozen; adapters around it share its weights."""
    from peft import LoraConfig

    model = model_of(folder)
    message = f"{name} shares its weights"
    assert message in refused(lambda: adpo_trainer(folder, tmp_path, model=model, more={name: model}))
    assert all(weight.requires_grad for weight in model.parameters())
    more = {name: model, "peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    assert message in refused(lambda: adpo_trainer(folder, tmp_path, model=model, more=more))


def test_settings_out_of_range_are_refused(folder, tmp_path):
    assert "alpha is -1" in refused(lambda: cringe_trainer(folder, tmp_path, alpha=-1.0))
    assert "k is 0" in refused(lambda: cringe_trainer(folder, tmp_path, k=0))
    assert "k is 410 for a vocabulary of 410" in refused(lambda: cringe_trainer(folder, tmp_path, k=410))
    assert "chunk_tokens is 0" in refused(lambda: cringe_trainer(folder, tmp_path, chunk_tokens=0))
    assert "max_length is 1" in refused(lambda: cringe_trainer(folder, tmp_path, max_length=1))
    assert "label_smoothing_factor is 0.1" in refused(
        lambda: cringe_trainer(folder, tmp_path, label_smoothing_factor=0.1)
    )
    assert "torch_compile is True" in refused(lambda: cringe_trainer(folder, tmp_path, torch_compile=True))
    assert "beta is 0" in refused(lambda: adpo_trainer(folder, tmp_path, beta=0.0))
    assert "context_end" in refused(lambda: adpo_trainer(folder, tmp_path, toxic_token_position="end"))
    assert "a Linear" in refused(lambda: cringe_trainer(folder, tmp_path, model=torch.nn.Linear(2, 2)))


def test_the_command_line_of_trl_reads_the_configs():
    from trl import TrlParser

    from parlai_safety.integrations.trl import ADPOConfig, CringeConfig

    (found,) = TrlParser(CringeConfig).parse_args_and_config(["--k", "3", "--detach_positive", "--use_cpu"])
    assert (found.k, found.detach_positive, found.alpha) == (3, True, 1.0)
    (found,) = TrlParser(ADPOConfig).parse_args_and_config(["--anchor", "reference", "--gamma", "0.5", "--use_cpu"])
    assert (found.anchor, found.gamma) == ("reference", 0.5)


def test_without_trl_the_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("parlai_safety.integrations.trl")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(SafetyError, match=r"pip install 'parlai_safety\[trl\]'"):
        importlib.import_module("parlai_safety.integrations.trl")
