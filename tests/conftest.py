"""What all tests share: the tools can be imported, nothing reaches the network or writes outside pytest's folders."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("MINIDIFF_STRICT", None)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Caches and downloads of the tests go to a temporary folder, unless the caller names one."""
    if "MINIDIFF_CACHE" not in os.environ:
        os.environ["MINIDIFF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def root():
    """The folder of the repository."""
    return ROOT
