"""CRINGE in a plain PyTorch loop: a causal language model of Hugging Face, a few labelled replies, and no ParlAI."""
# ruff: noqa: T201

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from parlai_safety.corpus.load import load_adversarial
from parlai_safety.losses import TokenLabel, cringe_loss

torch.manual_seed(0)
PAD = 256  # a byte is a token, so any text has ids; the 257th id is padding and the end of a reply
model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=48, n_layer=1, n_head=4, bos_token_id=PAD, eos_token_id=PAD))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

rows = [(row["context"][-1] + "\n", reply) for row in load_adversarial("train")[:4] for reply in row["replies"][:2]]
pairs = [(list(context.encode()), [*reply["text"].encode(), PAD]) for context, reply in rows]
labels = torch.tensor([TokenLabel.POSITIVE if r["label"] == "safe" else TokenLabel.NEGATIVE for _, r in rows])

lengths = torch.tensor([[len(context), len(context) + len(reply)] for context, reply in pairs])
place = torch.arange(int(lengths.max()))
ids = torch.tensor([(context + reply + [PAD] * len(place))[: len(place)] for context, reply in pairs])
inside = place < lengths[:, 1:]
mask = inside & (place >= lengths[:, :1])  # only replies are learned from

for step in range(21):
    logits = model(input_ids=ids, attention_mask=inside.long()).logits
    output = cringe_loss(logits[:, :-1], ids[:, 1:], labels, mask[:, 1:], generator=None)
    if step in (0, 20):
        follow, avoid = output.ce_tokens[output.positive_mask], output.contrastive_tokens[output.negative_mask]
        print(f"step {step}: loss {output.loss:.3f}, to follow {follow.mean():.3f}, to avoid {avoid.mean():.3f}")
    optimizer.zero_grad()
    output.loss.backward()
    optimizer.step()
