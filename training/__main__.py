"""`python -m training` trains all checkpoints of the demonstration, one core for each process.

Both start from nothing and need nothing from each other. Two processes of one thread finish long
before one of two threads, which wait for each other at every operation of models this small.
"""

import os
import subprocess
import sys

_MODULES = ("training.embedders", "training.qwen")


def main() -> int:
    """Run both trainings at the same time; neither outlives this process."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-m", module], env=one_thread) for module in _MODULES
    ]
    try:
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main())
