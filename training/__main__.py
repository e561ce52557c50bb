"""`python -m training` trains all checkpoints of the demonstration, one core for each process.

Both start from nothing and need nothing from each other. Two processes of one thread finish long
before one of two threads, which wait for each other at every operation of models this small.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from training.embedders import CHECKPOINTS
from training.schedule import cpu_minutes


def main() -> int:
    """Run both trainings at the same time; neither outlives this process."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINTS, help="where to write")
    folder = parser.parse_args().folder
    modules = {"training.embedders": folder, "training.qwen": folder / "qwen2_5_vl"}
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, "-m", module, str(target)], env=one_thread)
        for module, target in modules.items()
    ]
    try:
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
    print(f"all checkpoints: {cpu_minutes()} in all, {folder}", flush=True)
    return max(codes, key=abs)


if __name__ == "__main__":
    sys.exit(main())
