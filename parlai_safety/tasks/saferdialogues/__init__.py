"""SaFeRDialogues: recovery after a safety failure."""
