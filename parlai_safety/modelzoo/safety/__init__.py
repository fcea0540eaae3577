"""`parlai.zoo.safety`: every name appears here as the module that ParlAI's `zoo:` grammar imports."""

from parlai_safety.zoo.names import serve_names

serve_names()
