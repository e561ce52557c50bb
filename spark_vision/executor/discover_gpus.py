#!/usr/bin/env python3
"""Resource discovery script that Spark runs on a host: lists its GPUs.

Spark expects one line of JSON, {"name": "gpu", "addresses": ["0", "1"]}. A GPU's address is its
nvidia-smi index, which `CUDA_VISIBLE_DEVICES` also accepts; a GPU in MIG mode has an address per
MIG partition, its UUID. The script runs standalone: it imports only the standard library.

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
_PARTITION = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


def find_addresses(listing: str) -> list[str]:
    """Parse the output of `nvidia-smi -L`.

    Returns:
        The index of each GPU, or the UUIDs of its MIG partitions.
    """
    gpus: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if gpu := _GPU.match(line):
            gpus[gpu[1]] = []
        elif (partition := _PARTITION.match(line)) and gpus:
            next(reversed(gpus.values())).append(partition[1])
    return [address for gpu, partitions in gpus.items() for address in partitions or [gpu]]


def main() -> None:
    """Print the GPUs of this host; none if nvidia-smi is missing or fails."""
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
