"""ParlAI imports every module of this namespace when its command line starts: here parlai_safety registers itself.

There is no `__init__.py` beside this file, and there must never be one: the namespace is shared with the user's own
`parlai_internal`. ParlAI drops an ImportError raised here without a word, so this module catches and prints its own.
"""

try:
    from parlai_safety import plugin

    plugin.register(commands=True)
except ImportError:
    import sys
    import traceback

    sys.stderr.write("parlai_safety could not be registered with ParlAI: one of its modules does not import.\n")
    traceback.print_exc()
