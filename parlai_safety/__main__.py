"""`python -m parlai_safety …`: ParlAI's own command line, after registration.

It is the same as plain `parlai …`, and it works too where the namespace hook is shadowed by a user's `parlai_internal`.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Register, then hand over to ParlAI; our own errors end in three sentences and exit status 1."""
    from parlai_safety.errors import SafetyError

    try:
        from parlai_safety import plugin

        plugin.register(commands=True)
        from parlai.core.script import superscript_main

        superscript_main()
    except SafetyError as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    main()
