"""Print the pip option with which a machine without an NVIDIA driver gets a CPU torch, or nothing.

On Linux, PyPI's torch is the CUDA build: 2.4 GB more, of no use without a driver. PyTorch's own index has the CPU
build, and the pins of constraints.txt take it when pip can see it. The option is printed only on Linux, without
nvidia-smi, when pip does not find a CPU wheel in its own links, and when the index answers: an address out of reach
would cost pip minutes of retries.
"""

import os
import platform
import shutil
import sys
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS = 3


def local_cpu_wheel():
    """Whether one of pip's find-links folders (PIP_FIND_LINKS) already holds a CPU build of torch."""
    folders = os.environ.get("PIP_FIND_LINKS", "").split()
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    return any(list(Path(folder).glob(f"torch-*+cpu-{python}-*.whl")) for folder in folders if "://" not in folder)


def answers(address):
    """Whether the address answers within a few seconds."""
    try:
        request = urllib.request.Request(f"{address}/torch/", method="HEAD")
        with urllib.request.urlopen(request, timeout=SECONDS) as reply:
            return reply.status == 200
    except (OSError, ValueError):
        return False


def option():
    """The option as a string, empty where none is needed; what was decided goes to stderr."""
    if platform.system() != "Linux" or shutil.which("nvidia-smi") or local_cpu_wheel():
        return ""
    if not answers(CPU_INDEX):
        print(f"{CPU_INDEX} does not answer: pip takes the torch of its own index.", file=sys.stderr)
        return ""
    print("No NVIDIA driver: taking torch's CPU build.", file=sys.stderr)
    return f"--extra-index-url {CPU_INDEX}"


if __name__ == "__main__":
    print(option())
