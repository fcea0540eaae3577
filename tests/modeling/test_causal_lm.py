"""The causal language model as a generator: the same numbers as transformers' own forward, the same replies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from parlai_safety.errors import SafetyError
from parlai_safety.modeling.causal_lm import CausalLM
from parlai_safety.modeling.decoder_fast import decoder_steps
from parlai_safety.modeling.output import decoder_states, linear_output
from parlai_safety.modeling.sampler import Decoding, _Ends, generate

V, NULL, START, END, OTHER_END = 24, 24, 25, 2, 0
COMMON = dict(vocab_size=V, bos_token_id=0, eos_token_id=0, pad_token_id=1)
SIZES = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.3,
    **COMMON,
)
LINEAR = ("llama", "qwen2", "gpt2", "opt", "mistral")
BENT = ("gemma2", "cohere", "granite")
"""What these make of the head's scores: a cap, a factor, a divisor."""
KINDS = (*LINEAR, *BENT)


def config(kind):
    import transformers as hf

    made = {
        "llama": lambda: hf.LlamaConfig(**SIZES),
        "qwen2": lambda: hf.Qwen2Config(**SIZES, tie_word_embeddings=True),
        "gpt2": lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, **COMMON),
        "opt": lambda: hf.OPTConfig(
            **{**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3, "dropout": 0.0}
        ),
        "mistral": lambda: hf.MistralConfig(**SIZES, sliding_window=5),
        "gemma2": lambda: hf.Gemma2Config(**SIZES, head_dim=8, sliding_window=5, final_logit_softcapping=2.0),
        "cohere": lambda: hf.CohereConfig(**SIZES, logit_scale=0.25),
        "granite": lambda: hf.GraniteConfig(**SIZES, logits_scaling=3.0),
    }
    return made[kind]()


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(4)
    lm = AutoModelForCausalLM.from_config(config(request.param))
    for name, parameter in lm.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    found = CausalLM(lm, null=NULL, start=START, end=END, blank=0).eval()
    found.kind = request.param
    return found


PROMPTS = [[3, 9, 4, 17, 5, 8, 20, 6, 11], [7], [21, 22, 3, 12], [5, 5, 19, 18, 13, 14]]
REPLIES = [[4, 6, END], [8, 9, 10, 11, 12, 13, END], [END], [15, 3]]


def padded(rows, *, left=False):
    width = max(map(len, rows))
    pads = [[NULL] * (width - len(row)) for row in rows]
    return torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, pads, strict=True)])


def by_transformers(lm, prompts, replies, *, left):
    """-log p of each reply token from one padded batch, as transformers computes it."""
    wholes = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
    ids = padded(wholes, left=left)
    mask = ids != NULL
    ids = ids.masked_fill(~mask, 1)
    more = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.no_grad():
        logits = lm(input_ids=ids, attention_mask=mask.long(), **more).logits
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    found = []
    for row, whole in enumerate(wholes):
        end = ids.size(1) - 1 if left else len(whole) - 1
        found.append(nll[row, end - len(replies[row]) : end])
    return found


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_log_probabilities_are_those_of_transformers(model, left):
    ys = padded(REPLIES)
    wanted = by_transformers(model.lm, PROMPTS, REPLIES, left=left)
    for prompts in (padded(PROMPTS), padded(PROMPTS, left=True)):
        with torch.no_grad():
            logits = model(prompts, ys=ys)[0]
        assert logits.shape == (*ys.shape, V)
        for row, reply in enumerate(REPLIES):
            ours = F.cross_entropy(logits[row, : len(reply)], ys[row, : len(reply)], reduction="none")
            torch.testing.assert_close(ours, wanted[row], atol=1e-5, rtol=1e-5)


def test_the_output_is_told_to_be_one_linear_map_only_where_it_is(model):
    states = torch.randn(5, 32)
    layer = linear_output(model, states)
    assert model.is_linear() == (model.kind in LINEAR) == (layer is not None)
    if layer is not None:
        torch.testing.assert_close(layer.states @ layer.weight.T, model.output(states[None])[0])
    else:
        scores = states @ model.head.weight.T
        wanted = {
            "gemma2": 2 * torch.tanh(scores / 2), "cohere": scores * 0.25, "granite": scores / 3
        }[model.kind]  # fmt: skip
        torch.testing.assert_close(model.output(states[None])[0], wanted)
    assert model.states_size == 32


def test_the_head_is_where_gradients_come_from(model):
    """Through the states that are taken out of the model, as through its own forward."""
    prompts, ys = padded(PROMPTS), padded(REPLIES)
    mask = ys != NULL
    found = []
    for states_first in (True, False):
        model.lm.zero_grad()
        if states_first:
            logits = model.output(decoder_states(model, prompts, ys=ys))
            loss = F.cross_entropy(logits[mask], ys[mask])
        else:
            wholes = [prompt + reply for prompt, reply in zip(PROMPTS, REPLIES, strict=True)]
            told = [[-100] * len(p) + r for p, r in zip(PROMPTS, REPLIES, strict=True)]
            ids, labels = padded(wholes), padded(told)
            labels = labels.masked_fill(labels == NULL, -100)
            given = ids != NULL
            loss = model.lm(input_ids=ids.masked_fill(~given, 1), attention_mask=given.long(), labels=labels).loss
        loss.backward()
        found.append([p.grad.clone() for p in model.lm.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_a_replaced_or_hooked_head_is_not_taken_for_a_linear_map():
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_config(config("gpt2"))
    model = CausalLM(lm.eval(), null=NULL, start=START, end=END, blank=0)
    states = torch.randn(2, 32)
    assert linear_output(model, states) is not None
    handle = lm.lm_head.register_forward_hook(lambda *_: None)
    assert linear_output(model, states) is None
    handle.remove()
    model.output = lambda states: states
    assert linear_output(model, states) is None


def greedy(model, prompts, *, length, also_end=(OTHER_END,)):
    found = generate(
        model,
        (padded(prompts),),
        Decoding(max_length=length, min_length=0),
        start=START,
        end=END,
        null=NULL,
        also_end=also_end,
    )
    return [row[:n].tolist() for row, n in zip(found.tokens[:, 0], found.lengths[:, 0].tolist(), strict=True)]


def by_generate(lm, prompts, *, length, ends):
    ids = padded(prompts, left=True)
    mask = ids != NULL
    found = lm.generate(
        ids.masked_fill(~mask, 1), attention_mask=mask.long(), do_sample=False, max_new_tokens=length,
        eos_token_id=ends, pad_token_id=1,
    )[:, ids.size(1) :].tolist()  # fmt: skip
    replies = []
    for row in found:
        stop = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        replies.append([END if token in ends else token for token in row[: stop + 1]])
    return replies


MANY = [[3 + (5 * row + 7 * place) % 21 for place in range(1 + row % 9)] for row in range(12)]


def test_greedy_replies_are_those_of_generate(model):
    for also_end in ((OTHER_END,), ()):
        ours = greedy(model, MANY, length=18, also_end=also_end)
        assert ours == by_generate(model.lm, MANY, length=18, ends=[END, *also_end])
    assert len({tuple(reply) for reply in ours}) > 1
    # One prompt at a time has no padding, and no mask.
    assert [greedy(model, [prompt], length=18)[0] for prompt in MANY[:3]] == greedy(model, MANY, length=18)[:3]


def test_steps_give_the_states_of_the_whole(model):
    """Cached, in rows that are repeated, moved and dropped, from prompts padded at either end."""
    prompts, ys = padded(PROMPTS), padded([[4, 6, 9], [8, 9, 10], [5, 3, 3], [15, 3, 7]])
    with torch.no_grad():
        wanted = model.forced(model.encoder(prompts), ys)
        for given in (prompts, padded(PROMPTS, left=True)):
            steps = decoder_steps(model, model.encoder(given), 4)
            tokens = torch.full((4, 1), START)
            torch.testing.assert_close(steps(tokens), wanted[:, 0], atol=1e-5, rtol=1e-4)
            rows = torch.tensor([2, 0, 0, 3])
            steps.select(rows)
            tokens = torch.cat((tokens[rows], ys[rows, :1]), 1)
            torch.testing.assert_close(steps(tokens), wanted[rows, 1], atol=1e-5, rtol=1e-4)
            steps.select(torch.tensor([1, 3]))
            rows = rows[[1, 3]]
            tokens = torch.cat((tokens[[1, 3]], ys[rows, 1:2]), 1)
            torch.testing.assert_close(steps(tokens), wanted[rows, 2], atol=1e-5, rtol=1e-4)


def test_a_prompt_without_tokens_is_the_blank(model):
    empty, blank = torch.full((1, 3), NULL), torch.tensor([[0]])
    ys = torch.tensor([[4, 6]])
    with torch.no_grad():
        torch.testing.assert_close(model(empty, ys=ys)[0], model(blank, ys=ys)[0])
        torch.testing.assert_close(model(empty[:, :0], ys=ys)[0], model(blank, ys=ys)[0])
    assert model.encoder(torch.tensor([[NULL, 5], [NULL, NULL]])).tolist() == [[5, NULL], [0, NULL]]


class Ends:
    """Remembers the scores of the tokens that end a reply."""

    def begin(self, context_of_row):
        self.seen = []

    def __call__(self, logits, tokens):
        self.seen.append(logits[:, [END, OTHER_END]])
        return logits

    def select(self, rows):
        pass


def test_another_end_token_counts_as_the_end(model):
    with torch.no_grad():
        logits = model(padded(PROMPTS[:1]), ys=torch.tensor([[4]]))[0][0, 0]
    both = (logits / 2.0).softmax(0)[[END, OTHER_END]].sum().item()
    how = dict(start=START, end=END, null=NULL, also_end=(OTHER_END,))
    decoding = Decoding("topk", topk=V, samples=4000, max_length=1, min_length=0, temperature=2.0)
    drawn = generate(
        model, (padded(PROMPTS[:1]),), decoding, **how,
        generator=torch.Generator().manual_seed(1),
    ).tokens  # fmt: skip
    assert (drawn == OTHER_END).sum() == 0
    assert (drawn == END).float().mean().item() == pytest.approx(both, abs=4 * (both / 4000) ** 0.5)
    # What guides a reply sees one end token, and a least length keeps all of them away.
    heard = Ends()
    found = generate(
        model, (padded(MANY),), Decoding(min_length=6, max_length=8), **how, processors=[heard]
    )  # fmt: skip
    assert (found.lengths >= 7).all()
    assert all((scores[:, 1] <= -1e20).all() for scores in heard.seen)


def test_no_ngram_twice_although_padding_and_start_have_no_score(model):
    context = padded(PROMPTS)
    how = dict(start=START, end=END, null=NULL, context=context)
    found = generate(model, (context,), Decoding(block_ngram=1, context_block_ngram=1, max_length=12), **how)
    for row, (reply, length) in enumerate(zip(found.tokens[:, 0].tolist(), found.lengths[:, 0].tolist(), strict=True)):
        said = reply[:length]
        assert len(set(said)) == len(said) and not set(said) & set(PROMPTS[row])


def test_a_body_that_is_all_of_the_model_is_refused():
    from transformers import AutoModel

    with pytest.raises(SafetyError, match="Its body cannot be told"):
        CausalLM(AutoModel.from_config(config("llama")), null=NULL, start=START, end=END, blank=0)


def test_a_model_without_a_cache_of_keys_and_values_is_refused():
    from transformers import AutoModelForCausalLM, MambaConfig

    mamba = MambaConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(SafetyError, match="takes no cache"):
        CausalLM(AutoModelForCausalLM.from_config(mamba), null=NULL, start=START, end=END, blank=0)


def test_a_look_at_later_tokens_is_refused_and_nothing_is_left_changed(model):
    model.lm.train()
    model.check_causal()
    assert all(module.training for module in model.lm.modules())
    model.eval()
    body = model.body

    def looks_ahead(**inputs):
        states = body(**inputs)
        return states + states.flip(1)

    model.body = looks_ahead
    try:
        with pytest.raises(SafetyError, match="depend on later tokens"):
            model.check_causal()
    finally:
        del model.body


def test_states_are_of_the_type_of_the_computation():
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_config(config("gpt2"))  # whose last layer norm gives fp32 under autocast
    model = CausalLM(lm.eval(), null=NULL, start=START, end=END, blank=0, compute=torch.bfloat16)
    assert model.body(input_ids=torch.tensor([[3, 4]])).dtype == torch.bfloat16
    model.check_causal()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_temperature_counts_before_ends_are_added(temperature):
    """P(end) is the sum of what each end token has at that temperature."""
    logits = torch.tensor([[0.3, 1.1, 0.9, -0.4, 2.0]])
    joined = _Ends(1, [2, 3], temperature).joined(logits)
    wanted = (logits / temperature).softmax(-1)[0]
    found = (joined / temperature).softmax(-1)[0]
    torch.testing.assert_close(found[1], wanted[1:4].sum())
    torch.testing.assert_close(found[[0, 4]], wanted[[0, 4]])
    assert _Ends(1, [2, 3], None).joined(logits)[0, 1] == logits[0, 1]
