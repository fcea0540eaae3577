"""parlai_safety: dialogue models trained to be safe, judged honestly, red-teamed by people. A plugin for ParlAI."""

__version__ = "0.1.0"
