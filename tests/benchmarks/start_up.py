"""What parlai_safety adds to the start of `parlai`: interleaved runs with and without our hook, paired.

Run it with `python tests/benchmarks/start_up.py [PAIRS]`. It prints medians, the ratio and the difference in seconds;
it judges nothing. CPU time is measured beside wall time, because it is less disturbed by other work on the machine.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

START = "from parlai.core.script import superscript_main; superscript_main(['help'])"
WITHOUT = f"import sys; sys.modules['parlai_internal'] = None; {START}"


def seconds(code: str) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    seconds(START), seconds(WITHOUT)  # a first run of each fills the disk cache
    runs = [(seconds(START), seconds(WITHOUT)) for _ in range(pairs)]
    for index, name in enumerate(("wall", "CPU")):
        ours, theirs = [with_[index] for with_, _ in runs], [without[index] for _, without in runs]
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        print(
            f"{name:>4}: with {statistics.median(ours):.2f} s, without {statistics.median(theirs):.2f} s, "
            f"ratio {statistics.median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}], "
            f"difference {statistics.median(differences):+.3f} s (medians of {pairs} pairs)"
        )


if __name__ == "__main__":
    main()
