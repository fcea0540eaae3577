"""Several replies to one context, encoded once: the states are those of each reply after its own context."""

from __future__ import annotations

import pytest
import torch

from parlai_safety.modeling.contexts import reply_states
from parlai_safety.modeling.output import decoder_states
from tests.agents.small_pairs import observe_pairs, trained


@pytest.mark.parametrize("backbone", ["", "/bart", "/seq2seq"])
def test_states_and_gradients_are_those_of_repeated_contexts(backbone, tmp_path):
    agent = trained(f"safety:click{backbone}", tmp_path, max_train_steps=1)
    model = agent.model.double().eval()
    batch = agent.batchify(observe_pairs(agent))
    example = torch.tensor([2, 0, 2, 3, 1])
    ys = torch.cat((batch.label_vec, batch.label_vec))[:5]

    def found(*inputs, **more):
        model.zero_grad(set_to_none=True)
        states = (reply_states if more else decoder_states)(model, *inputs, ys=ys, **more)
        states.sin().sum().backward()
        return states.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    once, once_gradients = found(*agent._model_input(batch), example=example)
    order = torch.argsort((batch.text_vec[example] != agent.NULL_IDX).sum(-1), descending=True, stable=True)
    ys = ys[order]  # ParlAI's seq2seq packs contexts that are sorted by length
    repeated, gradients = found(batch.text_vec[example[order]])
    torch.testing.assert_close(once[order], repeated, rtol=1e-12, atol=1e-13)
    assert set(once_gradients) == set(gradients)
    for name, gradient in gradients.items():
        # ParlAI's attention takes its softmax in fp32, whose rounding in backward depends on what was summed before.
        torch.testing.assert_close(once_gradients[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_the_models_own_decoding_is_put_back_after_an_error(tmp_path):
    agent = trained("safety:click", tmp_path, max_train_steps=1)
    batch = agent.batchify(observe_pairs(agent))
    with pytest.raises(AssertionError, match="Beginning of Sentence"):
        ys = torch.full_like(batch.label_vec, agent.START_IDX)
        reply_states(agent.model, batch.text_vec, ys=ys, example=torch.arange(4))
    assert "decode_forced" not in vars(agent.model)
