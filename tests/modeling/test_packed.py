"""Replies that share a prompt's computation: the states and gradients that each has alone, or not shared at all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from parlai_safety.modeling.causal_lm import CausalLM
from parlai_safety.modeling.contexts import reply_states
from parlai_safety.modeling.hf import LoraSettings, add_lora, checkpoint_layers
from parlai_safety.modeling.packed import Reach, _rows, pack
from tests.modeling.test_causal_lm import COMMON, END, NULL, SIZES, START, V, config, padded

KINDS = ("llama", "qwen2", "gpt2", "opt", "mistral", "gemma2")
WIDE = ("gpt2", "opt")
"""Those that take no norm in fp32 where all else is float64."""
PROMPTS = [[3, 9, 4, 17, 5, 8, 20, 6, 11], [7], [], [21, 22, 3, 12], [5, 5, 19, 18, 13, 14]]
REPLIES = [[4, 6, END], [8, 9, 10, 11, 12, 13, END], [END], [15, 3], [4, 7, 8], [9, 9, 16, 4, END], [6, 3], [20, END]]
EXAMPLE = [4, 0, 2, 1, 0, 0, 2, 1]
"""The prompt of each reply: three, two, two, none, one."""


def made(kind, *, dtype=torch.float32, attention="sdpa", **more):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(4)
    built = config(kind) if isinstance(kind, str) else kind
    lm = AutoModelForCausalLM.from_config(built, attn_implementation=attention)
    for name, parameter in lm.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return CausalLM(lm.to(dtype), null=NULL, start=START, end=END, blank=0, **more).eval()


def forms(model):
    """Spy on the calls of a model's body: whether each was packed."""
    found, body = [], model.body

    def spied(**inputs):
        found.append("position_ids" in inputs)
        return body(**inputs)

    model.body = spied
    return found


def learned(model, states):
    """The counted states, and the gradients of a function of them."""
    model.zero_grad(set_to_none=True)
    states.sin().sum().backward()
    return states.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alone(model, prompts=PROMPTS, replies=REPLIES, example=EXAMPLE):
    """The states before each token of a reply, by transformers' own forward of one sequence after the other."""
    found = []
    for reply, row in zip(replies, example, strict=True):
        prompt = prompts[row] or [model.blank]
        with model._autocast(torch.zeros(1)):
            states = model.lm.base_model(input_ids=torch.tensor([prompt + reply]), use_cache=False).last_hidden_state
        found.append(states[0, len(prompt) - 1 : -1])
    return torch.cat(found)


def together(model, prompts=PROMPTS, replies=REPLIES, example=EXAMPLE):
    ys = padded(replies)
    return reply_states(model, padded(prompts), ys=ys, example=torch.tensor(example))[ys != NULL]


def assert_same(model, *, atol, rtol=0.0):
    calls = forms(model)
    states, gradients = learned(model, together(model))
    assert calls[-1], "the replies were not packed"
    wanted, wanted_gradients = learned(model, alone(model))
    torch.testing.assert_close(states, wanted, atol=atol, rtol=rtol)
    assert set(gradients) == set(wanted_gradients)
    for name, gradient in gradients.items():
        most = atol * max(1.0, float(wanted_gradients[name].abs().max()))
        torch.testing.assert_close(gradient, wanted_gradients[name], atol=most, rtol=rtol, msg=name)
    return gradients


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "attention"), [*((kind, "sdpa") for kind in KINDS[:-1]), *((kind, "eager") for kind in KINDS)]
)
def test_states_and_gradients_are_those_of_each_reply_alone(kind, attention):
    assert_same(made(kind, attention=attention), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_gradients_are_those_of_each_reply_alone_in_float64(kind):
    model = made(kind, dtype=torch.float64, attention="eager" if kind == "gemma2" else "sdpa")
    assert_same(model, atol=1e-10 if kind in WIDE else 1e-6)


def test_layers_of_two_kinds_get_each_its_own_mask():
    from transformers import Qwen2Config

    kinds = ["full_attention", "sliding_attention"]
    built = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, layer_types=kinds)
    assert_same(made(built), atol=1e-5)


def test_adapters():
    model = made("llama")
    add_lora(model.lm, LoraSettings(rank=2, alpha=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    gradients = assert_same(model, atol=1e-5)
    assert gradients and all("lora_" in name for name in gradients)


def test_half_precision():
    model = made("llama", compute=torch.bfloat16)
    calls = forms(model)
    states, wide = together(model), alone(made("llama"))
    assert calls[-1] and states.dtype == torch.bfloat16
    far, own = ((found.float() - wide).norm() / wide.norm() for found in (states, alone(model)))
    assert far < 1.5 * own < 0.05


def test_layers_that_are_computed_again_in_backward():
    model = made("llama")
    checkpoint_layers(model.lm)
    model.train()
    assert_same(model, atol=1e-5)


def test_the_wrappers_own_forward_is_called_once():
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, *inputs, **more):
            self.calls += 1
            return self.module(*inputs, **more)

    wrapped = Wrapper(made("gpt2"))
    torch.testing.assert_close(together(wrapped), alone(wrapped.module), atol=1e-5, rtol=0)
    assert wrapped.calls == 1


# --- or not at all ----------------------------------------------------------------------------------------------------


def neo(window):
    """Its local attention counts places of the row, so that a reply far behind its prompt would not see it."""
    from transformers import GPTNeoConfig

    return GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=4,
        window_size=window,
        max_position_embeddings=64,
        initializer_range=0.3,
        **COMMON,
    )


def told(monkeypatch):
    lines = []
    monkeypatch.setattr("parlai_safety.modeling.packed.logging.info", lines.append)
    return lines


def test_a_model_that_counts_places_of_the_row_is_found_out(monkeypatch):
    model, lines = made(neo(5), attention="eager"), told(monkeypatch)
    calls = forms(model)
    for _ in range(2):
        torch.testing.assert_close(together(model), alone(model), atol=1e-5, rtol=0)
    assert calls.count(True) == 1 and not calls[-1]
    assert len(lines) == 1 and "GPTNeoForCausalLM" in lines[0] and "states differ" in lines[0]


@pytest.mark.parametrize(("length", "replies"), [(20, 3), (3, 8)], ids=["prompt", "replies"])
def test_it_is_asked_again_where_contexts_are_longer_than_any_before(length, replies, monkeypatch):
    model, lines = made(neo(16), attention="eager"), told(monkeypatch)
    calls = forms(model)
    for prompt, more, packed in ((2, 3, True), (3, 3, True), (length, replies, False), (2, 3, False)):
        said = [[4 + number, 6, 7, END] for number in range(more)]
        talk = [[*range(3, 3 + prompt)], [5]], [*said, [9, 3, END]], [0] * more + [1]
        torch.testing.assert_close(together(model, *talk), alone(model, *talk), atol=1e-5, rtol=0)
        assert calls[-1] == packed
    assert len(lines) == 1
    assert calls.count(True) == 4  # two trials, two batches


@pytest.mark.parametrize("refusal", [TypeError, ValueError, RuntimeError])
def test_a_model_that_refuses_the_mask_gets_none(refusal, monkeypatch):
    model, lines = made("llama"), told(monkeypatch)
    body = model.body

    def refuses(**inputs):
        if "attention_mask" in inputs:
            raise refusal("no such mask")
        return body(**inputs)

    model.body = refuses
    torch.testing.assert_close(together(model), alone(model), atol=1e-5, rtol=0)
    assert len(lines) == 1 and "no such mask" in lines[0]


def test_models_and_kernels_that_cannot_are_never_asked():
    from transformers import BloomConfig

    bloom = BloomConfig(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, **COMMON)
    model = made(bloom, attention="eager")
    calls = forms(model)
    torch.testing.assert_close(together(model), alone(model), atol=1e-5, rtol=0)
    assert calls == [False]

    model = made("llama")
    model.lm.config._attn_implementation = "flash_attention_2"
    asked = []
    prompt, ys, example = padded([[3, 4]]), padded([[5, END]] * 2), torch.tensor([0, 0])
    model._packed(prompt, ys, example, lambda *tensors: asked.append(tensors))
    assert [tensor.tolist() for tensor in asked[0]] == [[[3, 4]] * 2, [[5, END]] * 2]


def test_one_reply_to_each_context_needs_no_mask():
    model = made("llama")
    calls = forms(model)
    together(model, [[3, 4, 5], [6, 7, 8]], [[4, 5], [6, END]], [0, 1])
    assert calls == [False]


def test_the_trial_draws_nothing_and_leaves_the_model_as_it_was():
    model = made("gpt2", compute=torch.bfloat16).train()
    model.lm.transformer.h[0].eval()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    body, kinds = model.body, []
    model.body = lambda **inputs: kinds.append(model.compute) or body(**inputs)
    assert model._packed._is_exact(Reach(12, 30), model.forced)
    assert kinds and not any(kinds)  # in fp32, where a small difference is seen
    assert torch.equal(before, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert model.compute == torch.bfloat16


def test_the_trial_stays_within_the_models_positions():
    model = made("gpt2")  # 64 positions
    model._packed._most = 60
    assert model._packed._is_exact(Reach(50, 90), model.forced)
    assert model._packed._tried == Reach(60, 128)


# --- places, positions and masks --------------------------------------------------------------------------------------


def test_a_row_by_hand():
    """A prompt of two tokens with replies of three and two (the last token of each takes no place)."""
    packed = pack(
        padded([[7, 8]]), padded([[3, 4, END], [5, 6]]), torch.tensor([0, 0]), null=NULL, blank=0, states_size=32
    )
    assert packed.ids.tolist() == [[7, 8, 3, 4, 5, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2, 0, 0, 0]]
    assert packed.wanted.tolist() == [[1, 2, 3], [1, 4, 4]]
    assert packed.reach == Reach(4, 5) and not packed.saves  # 8 places, and apart they were 2 x 4
    sees = [(packed.mask(torch.float32, window)[0, 0] == 0).long().tolist() for window in (None, 2)]
    behind = [[0, 0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
    assert sees[0] == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        *behind,
    ]
    assert sees[1] == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 1, 0, 0, 1, 0, 0, 0],
        *behind,
    ]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_every_reply_sees_its_prompt_and_itself_alone(data):
    draw = data.draw
    contexts = draw(st.integers(1, 5))
    prompts = [draw(st.lists(st.integers(1, V - 1), min_size=1, max_size=9)) for _ in range(contexts)]
    example = draw(st.lists(st.integers(0, contexts - 1), min_size=1, max_size=8))
    replies = [draw(st.lists(st.integers(1, V - 1), min_size=1, max_size=6)) for _ in example]
    ys = padded(replies)
    packed = pack(padded(prompts), ys, torch.tensor(example), null=NULL, blank=0, states_size=8)
    rows, width = packed.ids.shape
    sees = packed.mask(torch.float64)[:, 0] == 0
    for reply, (row, tokens) in enumerate(zip(example, replies, strict=True)):
        for step, place in enumerate(packed.wanted[reply, : len(tokens)].tolist()):
            seen = sees[place // width, place % width]
            ids, positions = (column[place // width][seen].tolist() for column in (packed.ids, packed.positions))
            assert ids == prompts[row] + tokens[:step]
            assert positions == list(range(len(ids)))
    used = sum(len(prompts[row]) for row in set(example)) + sum(len(reply) - 1 for reply in replies)
    assert int((packed.context >= 0).sum()) == used
    assert sees.any(-1).all()


@pytest.mark.parametrize(
    ("sizes", "states_size", "rows", "width"),
    [
        ([16, 8, 8], 100, [[0], [1, 2]], 16),  # 2 x 16 x 416 = 13,312; one row: 32 x 432 = 13,824
        ([40, 24, 24], 100, [[0, 1, 2]], 88),  # 88 x 488 = 42,944; two rows: 2 x 48 x 448 = 43,008
        ([40, 24, 24], 1, [[0], [1, 2]], 48),  # 2 x 48 x 52 = 4,992; one row: 88 x 92 = 8,096
        ([16, 3], 1, [[0], [1]], 16),
        ([8], 1, [[0]], 8),
    ],
)
def test_contexts_share_rows_where_that_costs_less(sizes, states_size, rows, width):
    """A token costs four times the states' size, and 1 for each place of its row."""
    assert _rows(dict(enumerate(sizes)), states_size) == (rows, width)
