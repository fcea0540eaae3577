"""A trained agent as a folder of Hugging Face: safetensors, tokenizer, config, card. What `from_pretrained` loads.

A causal language model is written as it is, its adapters merged or alone; a transformer generator or BART of ParlAI is
written in a layout of transformers (`parlai_safety.integrations.layouts`). The folder appears when it is complete.

Left out: what an agent adds to its generator while it answers (class heads, experts, judges, lists of words), for which
the folder would have no place: such agents are refused. Decoding is set to greedy; beams and samplers of transformers
are not those of ParlAI.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from parlai_safety.errors import SafetyError
from parlai_safety.files import write_text
from parlai_safety.message import TOXIC_TOKEN, control_token

ONE_PIECE = "50GB"
MEASURED = ("ppl", "ppl_neg", "token_acc", "token_acc_neg", "f1", "loss")
"""Figures of ParlAI's training that the card repeats."""


def export(
    model_file: str | Path,
    out: str | Path,
    *,
    adapter: bool = False,
    dtype: str = "fp32",
    tokenizer: bool = True,
    licence: str = "unknown",
) -> Path:
    """Write a trained agent as a folder of Hugging Face.

    Args:
        model_file: of ParlAI.
        out: the folder to be made.
        adapter: write low-rank adapters alone, for peft, and not merge them.
        dtype: type of the weights, "fp32", "bf16" or "fp16", to which they are rounded once, after adapters were
            merged; adapters alone stay fp32.
        tokenizer: write a tokenizer; without one the folder holds weights, config and card.
        licence: for the card.

    Returns:
        The folder.

    Raises:
        SafetyError: the folder exists or cannot be made, there is no such model or it is damaged, or its agent does
            not fit into such a folder.
    """
    from parlai_safety.modeling.causal_lm import CausalLM

    out = Path(out)
    if os.path.lexists(out):
        raise SafetyError(
            f"The folder {str(out)!r} exists",
            "An export begins with an empty place, so that no file of another model is left in it",
            "Give --out with a folder that does not exist, or remove this one",
        )
    if not Path(f"{model_file}.opt").is_file() and not str(model_file).startswith("zoo:"):
        raise SafetyError(
            f"There is no model {str(model_file)!r}",
            "A model of ParlAI is a file of weights with an .opt beside it",
            "Give -mf with the --model-file of a training",
        )
    agent = _load(model_file)
    model = _plain_model(agent)
    causal = isinstance(model, CausalLM)
    if adapter and not causal:
        raise _no_adapters(model_file, "It is no causal language model")
    part = _begin(out)
    try:
        if causal:
            words = _write_causal(agent, model, part, model_file, dtype, adapter)
            if tokenizer:
                words.save_pretrained(part)
        else:
            _write_generator(agent, model, part, dtype, tokenizer)
        write_text(part / "README.md", card(agent, str(model_file), out.name, adapter=adapter, licence=licence))
        os.rename(part, out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return out


def _load(model_file: str | Path) -> Any:
    """The agent with its weights in fp32."""
    from parlai.core.agents import create_agent_from_model_file

    # An option of another agent has no meaning and does no harm.
    held = {"dtype": "fp32", "load_4bit": False, "gradient_checkpointing": False, "attn": "auto"}
    loaded: Any = {"interactive_mode": True, "no_cuda": True, **held}
    try:
        return create_agent_from_model_file(str(model_file), loaded)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise SafetyError(
            f"The model {str(model_file)!r} cannot be loaded ({' '.join(str(error).split())[:160]})",
            "The file of its weights is not whole, or it was not written by ParlAI",
            "Copy it anew, or export the checkpoint that lies beside it",
        ) from error


def _begin(out: Path) -> Path:
    """A new folder beside `out`; those of exports whose process was killed are removed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.iterdir():
            process = left.name.removeprefix(f".{out.name}.").removesuffix(".part")
            if left.name == _part(out, process) and process.isdecimal() and not _runs(int(process)):
                shutil.rmtree(left)
        part = out.with_name(_part(out, os.getpid()))
        part.mkdir()
    except OSError as error:
        raise SafetyError(
            f"--out got {str(out)!r} ({error.strerror})",
            "The folder is made there, and there is no place for one",
            "Give --out with a new folder in one where you may write",
        ) from error
    return part


def _part(out: Path, process: int | str) -> str:
    return f".{out.name}.{process}.part"


def _runs(process: int) -> bool:
    """Whether another process has this number."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return process != os.getpid()


def card(agent: Any, model_file: str, name: str, *, adapter: bool = False, licence: str = "unknown") -> str:
    """The README of an exported model: how it was trained, how it is asked, what is not known of it.

    Args:
        agent: the agent.
        model_file: beside which ParlAI keeps the figures of its training.
        name: the title.
        adapter: whether adapters go alone.
        licence: of the weights, as far as is known.
    """
    from parlai_safety.modeling.causal_lm import CausalLM

    opt = agent.opt
    causal = isinstance(_plain_model(agent), CausalLM)
    base = str(opt.get("hf_model") or "") if causal else ""
    lines = ["---", f"license: {licence}", "tags: [conversational, parlai, safety]"]
    lines += ["library_name: peft"] if adapter else ["library_name: transformers"]
    lines += [f"base_model: {base}"] if base and not Path(base).exists() else []
    lines += ["---", "", f"# {name}", "", "## Content warning", ""]
    lines += [
        "The model was trained to talk, maybe also on offensive replies that it learned to avoid. It can still say "
        "what offends or is false. Measure it for your use before people talk with it; nothing in this folder is a "
        "promise of safety.",
        "",
        "## How it was trained",
        "",
        f"- agent: `{opt.get('model')}` ({_line_of(type(agent))})",
        f"- task: `{opt.get('task')}`, {_or_unknown(_steps(model_file))} steps, batches of {opt.get('batchsize')}, "
        f"learning rate {opt.get('learningrate')}",
    ]
    if base:
        lines.append(f"- begun from: `{Path(base).name if Path(base).exists() else base}`")
    if causal and opt.get("lora_rank"):
        lines.append(f"- low-rank adapters of rank {opt['lora_rank']}, " + ("in this folder" if adapter else "merged"))
    asked = [control_token(name) for name in getattr(agent, "control_ids", ())]
    if asked:
        lines += [
            f"- **control tokens**: {' '.join(f'`{token}`' for token in asked)}, in this order at the end of a prompt, "
            "ask for replies of the kinds that it learned behind them. Here they can be typed: take them out of every "
            "text before the tokenizer reads it. generation_config.json keeps them out of replies.",
        ]
    if getattr(agent, "toxic_id", None) is not None:
        lines += [
            f"- **inner toxic model**: behind the token `{TOXIC_TOKEN}` at the end of a prompt it says what it learned "
            "to avoid. Here the token can be typed: take it out of every text before the tokenizer reads it. "
            "generation_config.json keeps it out of replies.",
        ]
    examples, measured = _measured(model_file)
    lines += ["", "## What was measured in training", ""]
    if examples:
        lines += [f"ParlAI's last validation, on {examples} examples of `{opt.get('task')}`, without intervals:", ""]
    lines += [f"- {key}: {value:.4g}" for key, value in measured.items()] or ["Nothing is known."]
    lines += ["", "## How it is asked", "", *_how(agent, causal)]
    lines += ["", "## Licence", "", _licence_line(licence, base)]
    return "\n".join(lines) + "\n"


# --- what is refused ------------------------------------------------------------------------------------------------


def _plain_model(agent: Any) -> Any:
    """The generator of an agent that adds nothing to it while it answers."""
    from parlai_safety.modeling.class_head import Directed

    model = getattr(agent, "model", None)
    added = None
    if not isinstance(model, torch.nn.Module) or not hasattr(agent, "dict"):
        added = "no generator of its own"
    elif isinstance(model, Directed):
        added = "a class head that directs its replies"
    elif agent.opt.get("history_reversed"):
        added = "--history-reversed, which turns the order of the conversation"
    elif hasattr(agent, "logits_processors") or hasattr(agent, "_rerank_beams"):
        added = "a part that changes its scores while it answers"
    if added:
        raise SafetyError(
            f"The agent {agent.opt.get('model')!r} has {added}",
            "A folder of Hugging Face holds a plain generator, which would answer otherwise than this agent",
            "Export the generator that it was made from, or serve the agent as it is, with ParlAI",
        )
    return model


def _no_adapters(model_file: Any, why: str) -> SafetyError:
    return SafetyError(
        f"--adapter got true for {str(model_file)!r}",
        f"{why}, and adapters alone are nothing without the weights that they change",
        "Leave --adapter out, which writes a whole model",
    )


# --- causal language models -----------------------------------------------------------------------------------------


def _write_causal(agent: Any, model: Any, folder: Path, model_file: Any, dtype: str, adapter: bool) -> Any:
    """Write the weights; returns the tokenizer with the template that was trained with."""
    from transformers import GenerationConfig

    from parlai_safety.agents.causal import holds_adapters_only
    from parlai_safety.modeling.hf import DTYPES, merge_lora

    lm, rank = model.lm, agent.causal.lora_rank
    if adapter and not rank:
        raise _no_adapters(model_file, "All its weights were trained")
    if adapter and not holds_adapters_only(str(agent.opt["model_file"])):
        raise _no_adapters(model_file, "Its base weights are in its own checkpoint alone")
    if adapter and agent.unsaid:
        raise _no_adapters(model_file, "It has a control token, which its base may not have")
    if rank and not adapter:
        merge_lora(lm)
    if not adapter:
        lm.to(DTYPES[dtype])
    words = agent.dict.format.tokenizer
    words.chat_template = agent.dict.format.as_template()
    padding = words.pad_token_id
    end = agent.END_IDX
    lm.generation_config = GenerationConfig(
        bos_token_id=words.bos_token_id,
        eos_token_id=[end, *agent.also_end] if agent.also_end else end,
        pad_token_id=end if padding is None else padding,
        suppress_tokens=_unsaid(agent),
        do_sample=False,
        max_new_tokens=_longest(agent),
    )
    _save(lm, folder)
    lm.generation_config.save_pretrained(folder)
    return words


# --- generators of ParlAI -------------------------------------------------------------------------------------------


def _write_generator(agent: Any, model: Any, folder: Path, dtype: str, tokenizer: bool) -> None:
    from transformers import GenerationConfig

    from parlai_safety.integrations.layouts import as_transformers
    from parlai_safety.integrations.vocabularies import as_tokenizer
    from parlai_safety.modeling.hf import DTYPES

    made = as_transformers(model)
    words = agent.dict
    if tokenizer:
        first, last = _around(agent)
        as_tokenizer(words, first=first, last=last, longest=agent.text_truncate).save_pretrained(folder)
    is_bart = made.config.decoder_start_token_id == agent.END_IDX
    made.generation_config = GenerationConfig(
        bos_token_id=agent.START_IDX,
        eos_token_id=agent.END_IDX,
        pad_token_id=agent.NULL_IDX,
        decoder_start_token_id=made.config.decoder_start_token_id,
        forced_bos_token_id=agent.START_IDX if is_bart else None,
        suppress_tokens=_unsaid(agent),
        do_sample=False,
        num_beams=1,
        max_new_tokens=_longest(agent) + is_bart,  # the token that is forced counts
    )
    _save(made.to(DTYPES[dtype]), folder)


def _around(agent: Any) -> tuple[str | None, str | None]:
    """The special tokens before and after every context."""
    from parlai.agents.bart.bart import BartAgent

    if isinstance(agent, BartAgent):
        return agent.dict.start_token, agent.dict.end_token
    return None, agent.dict.end_token if agent.opt.get("history_add_global_end_token") == "end" else None


# --- what both need -------------------------------------------------------------------------------------------------


def _save(model: Any, folder: Path) -> None:
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, max_shard_size=ONE_PIECE)
    finally:
        if bars:
            logging.enable_progress_bar()


def _longest(agent: Any) -> int:
    """Tokens of a reply at most, the end token not counted, which ParlAI puts in the last place where it must."""
    return max(1, (agent.label_truncate or 256) - 1)


def _unsaid(agent: Any) -> list[int] | None:
    """Tokens that no reply may hold, such as the control token; None where there are none."""
    return list(getattr(agent, "unsaid", ())) or None


def _how(agent: Any, causal: bool) -> list[str]:
    if not causal:
        lines = [
            "The turns of the conversation as lines, the oldest first, in the encoder; contexts are padded at the "
            "right. The generation config decodes greedily."
        ]
        if agent.opt.get("person_tokens"):
            lines += ["", f"Every line begins with its speaker's token, {agent.P1_TOKEN} or {agent.P2_TOKEN}."]
        return lines
    lines = [
        "With the tokenizer's chat template. generation_config.json ends a reply where the training did, and decodes "
        "greedily; beside adapters it has to be read by hand."
    ]
    if agent.causal.system_prompt:
        prompt = repr(agent.causal.system_prompt)
        lines += ["", f"It was trained with a system prompt, which has to be sent with every conversation: {prompt}"]
    return lines


def _line_of(kind: type[Any]) -> str:
    return (kind.__doc__ or kind.__name__).strip().splitlines()[0].rstrip(".")


def _measured(model_file: str) -> tuple[int, dict[str, float]]:
    """Examples and figures of the last validation, as far as ParlAI kept them; without examples no figures."""
    report = _trainstats(model_file).get("final_valid_report") or {}
    if not report.get("exs"):
        return 0, {}
    return int(report["exs"]), {
        key: float(report[key]) for key in MEASURED if isinstance(report.get(key), (int, float))
    }


def _steps(model_file: str) -> int | None:
    return _trainstats(model_file).get("train_steps")


def _trainstats(model_file: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(f"{model_file}.trainstats").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _or_unknown(value: Any) -> str:
    return "an unknown number of" if value is None else str(value)


def _licence_line(licence: str, base: str) -> str:
    if licence != "unknown":
        return f"{licence}, as said by who exported it."
    return "Unknown. " + (
        "The licence of the model that it was begun from binds it too." if base else "Ask its trainer."
    )
