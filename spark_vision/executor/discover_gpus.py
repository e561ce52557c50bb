#!/usr/bin/env python3
"""The resource discovery script that Spark runs on a host: says which GPUs there are.

Spark takes one line of JSON, {"name": "gpu", "addresses": ["0", "1"]}. A GPU's address is its index
as nvidia-smi counts, which `CUDA_VISIBLE_DEVICES` takes too; of a GPU that is cut up (MIG) it is
the name of each instance. It runs by itself: nothing but the standard library is imported.

    spark.worker.resource.gpu.discoveryScript   (standalone), or
    spark.executor.resource.gpu.discoveryScript (YARN, Kubernetes) = /path/to/discover_gpus.py
"""

import json
import re
import subprocess
import sys

# GPU 0: NVIDIA A100 (UUID: GPU-5d5ba0d6-...)
_GPU = re.compile(r"GPU (\d+):")
#   MIG 1g.5gb Device 0: (UUID: MIG-c7384736-...)
_INSTANCE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


def find_addresses(listing: str) -> list[str]:
    """Read what `nvidia-smi -L` says.

    Returns:
        An index for each GPU, or the instances of one that is cut up.
    """
    gpus: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if gpu := _GPU.match(line):
            gpus[gpu[1]] = []
        elif (instance := _INSTANCE.match(line)) and gpus:
            next(reversed(gpus.values())).append(instance[1])
    return [address for gpu, instances in gpus.items() for address in instances or [gpu]]


def main() -> None:
    """Print the GPUs of this host; none where there is no nvidia-smi, or it finds no driver."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True
        )
        addresses = find_addresses(done.stdout)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"no GPUs: {error}", file=sys.stderr)
        addresses = []
    print(json.dumps({"name": "gpu", "addresses": addresses}))


if __name__ == "__main__":
    main()
