"""Tiny causal language models with random weights, saved as a Hugging Face folder: no hub, under a second to make."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

KINDS = ("llama", "qwen2", "gpt2", "opt")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def words(size: int = 400) -> str:
    """A byte-level BPE tokenizer over the corpus that ships, as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from parlai_safety.corpus.load import load_ordinary

    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    built.train_from_iterator((turn for row in load_ordinary("valid") for turn in row["turns"]), trainer)
    return str(built.to_str())


def tiny_causal(
    folder: Path | str, kind: str = "llama", *, chat: bool = True, seed: int = 0, template: str = CHATML, **sizes: Any
) -> Path:
    """Save a random model and its tokenizer; returns the folder.

    `chat` gives the tokenizer a template in the manner of ChatML. `sizes` are fields of the model's config.
    """
    import torch
    from tokenizers import Tokenizer
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        LlamaConfig,
        OPTConfig,
        PreTrainedTokenizerFast,
        Qwen2Config,
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(words()), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    if chat:
        tokenizer.chat_template = template
    common: dict[str, Any] = dict(vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=None)
    llama = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    config = {
        "llama": lambda: LlamaConfig(**{**llama, **common, **sizes}),
        "qwen2": lambda: Qwen2Config(**{**llama, **common, "tie_word_embeddings": True, **sizes}),
        "gpt2": lambda: GPT2Config(
            **{**dict(n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.3), **common, **sizes}
        ),
        "opt": lambda: OPTConfig(
            **{
                **dict(
                    hidden_size=32,
                    ffn_dim=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    max_position_embeddings=256,
                    word_embed_proj_dim=32,
                    init_std=0.3,
                ),
                **common,
                "pad_token_id": 1,
                **sizes,
            }
        ),
    }[kind]()
    random_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    torch.set_rng_state(random_state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
