"""Print the folder for `fairseq-train --user-dir`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.stdout.write(str(Path(__file__).resolve().parent / "user_dir" / "safety_criterions") + "\n")
