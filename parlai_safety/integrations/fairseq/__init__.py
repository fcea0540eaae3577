"""Checkpoints of fairseq as ParlAI models and Hugging Face folders; fairseq itself is not needed."""

from __future__ import annotations

from parlai_safety.integrations.fairseq.importing import Imported, import_checkpoint

__all__ = ["Imported", "import_checkpoint"]
