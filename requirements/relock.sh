#!/bin/sh
# Make requirements/lock.txt anew from core.in and dev.in. Needs uv. Run the whole of `make test` before you commit it.
set -eu
cd "$(dirname "$0")"
{
  echo "# Tested set for parlai_safety: every pin was installed and run (Python 3.11; 3.10 and 3.12 by marker)."
  echo "# Made by requirements/relock.sh from core.in and dev.in. torch itself is installed one line earlier, with its"
  echo "# own dependencies, so that a CUDA machine gets a CUDA build (see the Makefile). Install with --no-deps."
  uv pip compile --quiet --universal --python-version 3.10 --no-annotate --no-header dev.in |
    sed -E "s/ and sys_platform != 'emscripten'//; s/ ; sys_platform != 'emscripten'//" |
    grep -v -E '^(torch|nvidia|cuda|triton|colorama)|emscripten.$'
  echo "parlai==1.7.2"
} > lock.txt.new
mv lock.txt.new lock.txt
