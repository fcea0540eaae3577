"""A frozen model: its name, what is stored of it, and models without adapters and without dropout."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from parlai_safety.modeling.frozen import adapters_add_nothing, silence_adapters, silence_dropout, without_adapters
from parlai_safety.modeling.hf import LoraSettings, add_lora, checkpoint_layers, load_lm, read_source
from parlai_safety.modeling.number_store import NumberStore
from parlai_safety.modeling.preference_output import reply_logps
from parlai_safety.modeling.reference import FrozenScores, shape_hash, weights_hash
from tests.tiny_causal import tiny_causal

from .small import make_transformer


def test_a_name_tells_every_number_and_what_is_computed():
    model, same = make_transformer(), make_transformer()
    assert weights_hash(model) == weights_hash(same) and len(weights_hash(model)) == 64
    with torch.no_grad():
        next(reversed(list(same.parameters()))).view(-1)[-1] += 1e-6
    others = [same, make_transformer().double(), make_transformer(n_layers=1)]
    assert len({weights_hash(model), *map(weights_hash, others)}) == 4
    plain = shape_hash(model)
    assert plain == shape_hash(same) == shape_hash(copy.deepcopy(model).eval())
    assert plain == shape_hash(make_transformer(dropout=0.3, attention_dropout=0.2))
    assert shape_hash(make_transformer(n_heads=1)) != plain != shape_hash(make_transformer(activation="gelu"))


@pytest.fixture
def scores():
    """A frozen transformer, its answers, and how often it was opened."""
    model = make_transformer().double().eval()
    opened = []

    @contextmanager
    def opens():
        opened.append(1)
        yield model

    return model, FrozenScores("ab", opens, NumberStore(None), null=0), opened


def test_what_is_stored_is_not_computed(scores):
    model, frozen, opened = scores
    prompts = torch.tensor([[5, 6, 7], [8, 0, 0], [5, 6, 0]])
    replies = torch.tensor([[4, 5, 2], [9, 2, 0], [4, 5, 2], [4, 5, 2]])
    example = torch.tensor([0, 1, 2, 0])
    found = frozen.logps(prompts, replies, example, chunk=4)
    assert found.dtype == torch.float64 and (frozen.hits, frozen.misses, len(opened)) == (0, 3, 1)
    whole = reply_logps(model, prompts, replies=replies, example=example, null=0, chunk=100)
    torch.testing.assert_close(found, whole)
    assert found[0] == found[3] != found[2]
    again = frozen.logps(prompts.flip(0), replies[1:3], torch.tensor([1, 0]), chunk=4)
    assert torch.equal(again, found[1:3]) and len(opened) == 1 and frozen.hits == 2
    mixed = frozen.logps(prompts, torch.tensor([[4, 2], [9, 2]]), torch.tensor([2, 1]), chunk=4)
    assert mixed[1] == found[1] and frozen.misses == 4
    alone = reply_logps(model, prompts[2:], replies=torch.tensor([[4, 2]]), example=torch.tensor([0]), null=0, chunk=9)
    torch.testing.assert_close(mixed[:1], alone)


def test_another_model_has_numbers_of_its_own(scores):
    _, frozen, opened = scores
    other = FrozenScores("cd", frozen._model, frozen._store, null=0)
    for each in (frozen, other):
        each.logps(torch.tensor([[5]]), torch.tensor([[4, 2]]), torch.tensor([0]), chunk=4)
    assert len(opened) == 2


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """The folder of a causal model, that model, and it with new adapters."""
    folder = tiny_causal(tmp_path_factory.mktemp("lora") / "hf", num_hidden_layers=1)
    _, config = read_source(str(folder))
    base, adapted = (load_lm(str(folder), config, dtype=torch.float32) for _ in range(2))
    add_lora(adapted, LoraSettings(2, 4.0, dropout=0.5))
    return folder, base, adapted


def test_adapters_are_told_by_what_they_add(lm):
    folder, base, adapted = lm
    assert not adapters_add_nothing(base) and adapters_add_nothing(adapted)
    assert weights_hash(base) == weights_hash(adapted, adapters=False) != weights_hash(adapted)
    changed = copy.deepcopy(adapted)
    with torch.no_grad():
        for name, weight in changed.named_parameters():
            if "lora_B" in name:
                weight += 1
    assert not adapters_add_nothing(changed) and weights_hash(changed) != weights_hash(adapted)
    ids, modes = torch.arange(5)[None], [module.training for module in changed.modules()]
    with torch.no_grad():
        with without_adapters(changed) as model:
            torch.testing.assert_close(model(ids).logits, base.eval()(ids).logits)
        assert modes == [module.training for module in changed.modules()]
        assert not torch.allclose(changed.eval()(ids).logits, base(ids).logits)
    checkpoint_layers(changed)
    assert shape_hash(changed) == shape_hash(adapted)
    other = load_lm(str(folder), base.config, dtype=torch.float32)
    add_lora(other, LoraSettings(2, 8.0, dropout=0.5))
    assert shape_hash(other) != shape_hash(adapted)  # no weight says how adapters are scaled
    silence_adapters(changed)
    assert adapters_add_nothing(changed)


def test_no_dropout_is_left():
    """Neither in layers nor in rates that modules hand to functions."""
    model = make_transformer(dropout=0.4, attention_dropout=0.4, relu_dropout=0.4).train()
    xs, ys = torch.tensor([[5, 6]]), torch.tensor([[7, 2]])
    assert len({model(xs, ys=ys)[0][..., 4:].sum().item() for _ in range(3)}) > 1
    silence_dropout(model)
    assert len({model(xs, ys=ys)[0][..., 4:].sum().item() for _ in range(3)}) == 1
    from transformers import AutoModelForCausalLM, OPTConfig

    sizes = dict(hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1, word_embed_proj_dim=8)
    opt = AutoModelForCausalLM.from_config(
        OPTConfig(vocab_size=20, max_position_embeddings=9, dropout=0.4, attention_dropout=0.4, layerdrop=0.5, **sizes)
    ).train()
    silence_dropout(opt)
    assert len({opt(xs).logits.sum().item() for _ in range(8)}) == 1
    assert all(module.training for module in opt.modules()) and not any(
        module.p for module in opt.modules() if isinstance(module, nn.Dropout)
    )
