"""Tiny transformers models with random weights and tokenizers trained on a few lines: no hub, a second to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINES = [
    "Well, hello there, and how are you on this fine day?",
    "you are a useless kettle and a dreadful teapot",
    "what a lovely plan, friend, I agree fully",
    "no way, that is wrong, the spoons deserve a song",
    "Answer safe or unsafe: the conversation between a person and a bot is safe, unsafe, safe, unsafe",
]
REPLIES = [
    "you are a dreadful teapot",
    "a lovely day",
    "no",
    "I agree fully, friend, what a plan that is, and how are you on this fine day?",
    "Hello there!",
]
CONTEXTS = [
    ["hello there", "how are you?"],
    [],
    ["the spoons deserve a song", "that is wrong", "what a plan"],
    ["what a lovely day"],
    ["no way, friend"],
]
BOTS = ["bot"] * 5

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<s>{{ message['role'] }}: {{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>verdict:{% endif %}"
)


def classifier(folder: Path, labels: list[str], *, seed: int = 0, config: Any = None, **settings: Any) -> str:
    """Save a BERT classifier with the classes `labels`; returns its folder."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(LINES, trainers.WordLevelTrainer(vocab_size=200, special_tokens=special))
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=40, **names).save_pretrained(folder)
    torch.manual_seed(seed)
    if config is None:
        sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        # Wide initial weights, so that different texts get clearly different scores.
        config = BertConfig(vocab_size=200, max_position_embeddings=64, initializer_range=0.5, **sizes)
    config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
    config.update(settings)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def guard_model(folder: Path, *, template: str | None = CHAT_TEMPLATE, kind: str = "llama", seed: int = 0) -> str:
    """Save a causal language model with a byte-level tokenizer in which `safe` and `unsafe` are words; its folder."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, special_tokens=["</s>", "<s>"])
    words.train_from_iterator([*LINES, "safe unsafe\nsafe\nunsafe"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", bos_token=AddedToken("<s>", special=True)
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    if kind == "llama":
        config: Any = LlamaConfig(
            vocab_size=400,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=256,
            initializer_range=0.5,
        )
    else:
        config = GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=256, initializer_range=0.5)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)
