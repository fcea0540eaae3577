"""The frozen reference of an agent: what its training began from, and what it says of given replies.

The reference is the model as it was before the first update, or `--reference-model`. It is opened where a number is
wanted that no earlier run has stored, and not before: with low-rank adapters that are new it is the model without them,
at the beginning of a run a copy of the model, and later on it is read again from where the run began. Its hash is in
the checkpoint, and another model in its place is refused.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from parlai.core.opt import Opt
from parlai.core.params import ParlaiParser
from torch import Tensor, nn

from parlai_safety.agents.labelled import LabelledMixin
from parlai_safety.errors import SafetyError
from parlai_safety.modeling.attention import fused_attention
from parlai_safety.modeling.frozen import adapters_add_nothing, silence_adapters, without_adapters
from parlai_safety.modeling.number_store import NumberStore
from parlai_safety.modeling.reference import FrozenScores, shape_hash, weights_hash
from parlai_safety.options import add_options, option, options_from

BASE, FILE, KEPT, HUB, HELD = "base", "file", "kept", "hf", "held"
"""Where a reference is: the model without adapters, a checkpoint, weights that this run wrote, --hf-model, memory."""
COMPUTED_BY = ("n_heads", "activation", "variant", "embeddings_scale", "output_scaling", "n_segments")
"""Options of ParlAI's transformer that say what is computed and leave no trace in weights."""


@dataclass(frozen=True)
class ReferenceOptions:
    """Where the frozen reference comes from, and where its log-probabilities go."""

    reference_model: str = option(
        "", "Checkpoint of the frozen reference; left out, it is the model that training begins from."
    )
    reference_cache: str = option(
        "", "Folder for log-probabilities of the frozen models, which runs may share; left out, beside --model-file."
    )


@dataclass(frozen=True)
class _Origin:
    """What the checkpoint says of the reference."""

    kind: str
    """BASE, FILE, KEPT, HUB or HELD."""
    source: str
    """The path of the file, or an empty string."""
    weights: str
    """Their hash."""


class ReferenceMixin(LabelledMixin):
    """A frozen reference for any TorchGeneratorAgent: put it before the class and name it as `backbone`."""

    @classmethod
    def add_cmdline_args(cls, parser: ParlaiParser, partial_opt: Opt | None = None) -> ParlaiParser:
        """Add the flags of `ReferenceOptions`."""
        super().add_cmdline_args(parser, partial_opt)
        add_options(parser, ReferenceOptions, "Frozen reference")
        return parser

    def __init__(self, opt: Opt, shared: dict[str, Any] | None = None) -> None:
        self.reference_options = options_from(opt, ReferenceOptions)
        self._origin: _Origin | None = None
        self._frozen: Any = None
        self._scores: FrozenScores | None = None
        self._fresh = False
        self._asked: Callable[..., Tensor] | None = None if shared is None else shared["reference_logps"]
        super().__init__(opt, shared)
        if shared is None and self._should_initialize_optimizer():
            self._begin()

    def share(self) -> dict[str, Any]:
        """ParlAI's share, and how to ask the reference: a clone does not know where this run began."""
        return {**super().share(), "reference_logps": self.reference_logps}  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """ParlAI's state, and which reference this run is measured against."""
        states: dict[str, Any] = super().state_dict()  # type: ignore[misc]
        if self._origin is not None:
            states["reference"] = vars(self._origin)
        return states

    def load(self, path: str) -> dict[str, Any]:
        """Load ParlAI's state, and the reference's name where a run goes on."""
        states: dict[str, Any] = super().load(path)  # type: ignore[misc]
        if self._is_own(path) and "reference" in states:
            self._origin = _Origin(**states["reference"])
        return states

    def reference_logps(self, prompts: Tensor, replies: Tensor, example: Tensor, *, chunk: int) -> Tensor:
        """The log-probabilities of R replies to C contexts under the reference; see `FrozenScores.logps`.

        Raises:
            SafetyError: the reference is gone, or is another model than it was.
        """
        if self._asked is not None:
            return self._asked(prompts, replies, example, chunk=chunk)
        if self._scores is None:
            self._scores = self._open_scores()
        return self._scores.logps(prompts, replies, example, chunk=chunk)

    # --- how ----------------------------------------------------------------------------------------------------------

    @property
    def _inner(self) -> nn.Module:
        """The trained model, out of its data-parallel wrapper."""
        model: nn.Module = getattr(self.model, "module", self.model)
        return model

    @property
    def _folder(self) -> Path | None:
        """The folder of what is kept; None where a run has no file."""
        named, own = self.reference_options.reference_cache, self.opt.get("model_file")
        if named:
            return Path(named)
        return Path(f"{own}.reference") if own else None

    def _is_own(self, path: str) -> bool:
        own = str(self.opt.get("model_file"))
        return path in (own, f"{own}.checkpoint")

    def _begin(self) -> None:
        """At the beginning of a training or of its continuation, or when a trained model is evaluated: know it."""
        named = self.reference_options.reference_model
        if self._origin is None:
            self._fresh = not named
            self._origin = self._named(named) if named else self._as_begun()
        elif named and os.path.abspath(named) != self._origin.source:
            self._check(self._named(named).weights, f"--reference-model {named}")
            self._origin = _Origin(FILE, os.path.abspath(named), self._origin.weights)

    def _named(self, path: str) -> _Origin:
        """`--reference-model`, which is then held."""
        self._check_kind(path)
        self._frozen = self._from_file(path)
        return _Origin(FILE, os.path.abspath(path), _hash_of(self._frozen))

    def _as_begun(self) -> _Origin:
        """The model as it is now."""
        model = self._inner
        if adapters_add_nothing(model):
            return _Origin(BASE, "", weights_hash(model, adapters=False))
        weights = weights_hash(model)
        path, _ = self._get_init_model(self.opt, None)
        if path is not None and not self._is_own(path):
            return _Origin(FILE, os.path.abspath(path), weights)
        if self.opt.get("hf_model") and not self.opt.get("hf_random"):
            return _Origin(HUB, "", weights)
        if self._folder is None or not self._should_initialize_optimizer():
            self._frozen = self._copy()
            return _Origin(HELD, "", weights)
        kept = self._folder / f"{weights[:16]}.model"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            whole = kept.with_suffix(f".{os.getpid()}")
            torch.save(model.state_dict(), whole)
            whole.replace(kept)
        return _Origin(KEPT, os.path.abspath(kept), weights)

    def _open_scores(self) -> FrozenScores:
        trained = self._should_initialize_optimizer()
        if not trained:
            self._begin()
        assert self._origin is not None
        origin, model = self._origin, self._inner
        if origin.kind == BASE and not self._fresh:
            self._check(weights_hash(model, adapters=False), "the model without its adapters")
        folder = self._folder if trained or self.reference_options.reference_cache else None
        return FrozenScores(
            origin.weights + shape_hash(model),
            self._opened,
            NumberStore(None if folder is None else folder / "logps.sqlite"),
            null=self.NULL_IDX,
            attention=self._frozen_attention,
        )

    def _frozen_attention(self, model: Any) -> AbstractContextManager[Any]:
        return fused_attention(model) if self.output_options.attention_kernel == "sdpa" else nullcontext()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The reference in evaluation mode."""
        assert self._origin is not None
        if self._origin.kind == BASE:
            with without_adapters(self._inner) as model:
                yield model
            return
        if self._frozen is None:
            self._frozen = self._taken(self._origin)
        yield self._frozen

    def _taken(self, origin: _Origin) -> nn.Module:
        """The reference: a copy while the model is still it, and otherwise read from where the run began."""
        if self._fresh and self._number_training_updates == 0:
            return self._copy()
        if origin.kind == FILE:
            model, what = self._from_file(origin.source), origin.source
        elif origin.kind == KEPT:
            model, what = self._from_kept(origin.source), origin.source
        elif origin.kind == HUB:
            model, what = self._from_hub(), f"--hf-model {self.opt['hf_model']}"
        else:
            raise SafetyError(
                "the reference of this run was never written anywhere",
                "The run began from random weights and without a --model-file",
                "Give --reference-model with the checkpoint that the replies are to be measured against",
            )
        self._check(_hash_of(model), what)
        return model

    def _copy(self) -> nn.Module:
        return copy.deepcopy(self._inner).requires_grad_(False).eval()

    def _from_file(self, path: str) -> nn.Module:
        _need_file(path)
        model = copy.deepcopy(self._inner)
        silence_adapters(model)
        # ParlAI's way of loading knows the agent's own model and optimizer alone.
        policy, self.model = self.model, model
        optimizer = vars(self).pop("optimizer", None)
        try:
            self.load(path)
        finally:
            self.model = policy
            if optimizer is not None:
                self.optimizer = optimizer
        return model.requires_grad_(False).eval()

    def _from_kept(self, path: str) -> nn.Module:
        _need_file(path)
        model = self._copy()
        model.load_state_dict(torch.load(path, map_location="cpu"))
        return model

    def _from_hub(self) -> nn.Module:
        own, self.opt = self.opt, Opt({**self.opt, "init_model": None, "model_file": None})
        try:
            with torch.random.fork_rng():
                model: nn.Module = self.build_model()
        finally:
            self.opt = own
        return model.to(next(self._inner.parameters()).device).requires_grad_(False).eval()

    def _check_kind(self, path: str) -> None:
        """See that a checkpoint's weights mean what the trained model's do, which they do not say themselves."""
        _need_file(path)
        files = [Path(f"{path}.{kind}") for kind in ("opt", "dict")]
        for file in files:
            if not file.is_file():
                raise SafetyError(
                    f"the reference {path} has no file {file.name} beside it",
                    "Without it nothing says that it reads the same tokens and computes with the same layers",
                    "Give a checkpoint with its .opt and .dict files",
                )
        saved = Opt.load(str(files[0]))
        words = self.dictionary_class()(Opt({**self.opt, "dict_file": str(files[1]), "init_model": None}))
        wrong = [f"--{name.replace('_', '-')}" for name in COMPUTED_BY if saved.get(name) != self.opt.get(name)]
        added = self._tokens()  # a reference need not have them
        if _ids(words, added) != _ids(self.dict, added):
            wrong.append("another dictionary")
        if wrong:
            raise SafetyError(
                f"the reference {path} has {', '.join(wrong)} than the model that is trained",
                "Log-probabilities of the same reply are compared, so that both must read the same tokens and be of "
                "the same kind",
                "Give a checkpoint that differs from the trained model by its weights alone",
            )

    def _check(self, weights: str, what: str) -> None:
        assert self._origin is not None
        if weights != self._origin.weights:
            raise SafetyError(
                f"{what} is not the reference that this run began with",
                f"Its weights have the hash {weights[:16]}, and those of the reference had {self._origin.weights[:16]}",
                "Give --reference-model with the checkpoint that training began from, or begin anew under another "
                "--model-file",
            )

    model: Any
    opt: Opt
    _should_initialize_optimizer: Any
    _get_init_model: Any
    _number_training_updates: int
    build_model: Any
    dictionary_class: Any
    optimizer: Any


def _hash_of(model: nn.Module) -> str:
    """A model's name, told by its weights; of adapters that add nothing, one factor is any number."""
    return weights_hash(model, adapters=not adapters_add_nothing(model))


def _ids(words: Any, added: Container[str]) -> dict[str, int]:
    """The ids of all tokens but those that were added."""
    return {token: id_ for token, id_ in words.tok2ind.items() if token not in added}


def _need_file(path: str) -> None:
    if not Path(path).is_file():
        raise SafetyError(
            f"the reference {path} is not there",
            "Replies are measured against the model that this training began from, and what that one says of all of "
            "them is not stored",
            "Put the file back, or give --reference-model with the place of that model's checkpoint now",
        )
