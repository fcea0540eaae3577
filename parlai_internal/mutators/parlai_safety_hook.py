"""ParlAI imports every module of this namespace when it looks up mutators: ours register here, in library use too."""

try:
    from parlai_safety import plugin

    plugin.register()
    plugin.register_mutators()
except ImportError:
    import sys
    import traceback

    sys.stderr.write("parlai_safety's mutators could not be registered: one of its modules does not import.\n")
    traceback.print_exc()
