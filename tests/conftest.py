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


@pytest.fixture(scope="module")
def solved(request):
    """The names that the solutions of notebook NN define, for test_checks_NN.py; its GIVEN is what the notebook has."""
    (solutions,) = (ROOT / "notebooks" / "solutions").glob(f"{request.module.__name__[-2:]}_*.py")
    space = dict(request.module.GIVEN)
    exec(solutions.read_text(encoding="utf-8"), space)
    return space


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The folder of a run of the command line: digits, 8 pixels, with labels."""
    from minidiff import cli

    folder = tmp_path_factory.mktemp("runs") / "digits"
    options = ["--data", "digits", "--labels", "--steps", "4", "--batch-size", "8", "--no-progress"]
    assert cli.main(["train", "ddpm_test", *options, "--p-uncond", "0.2", "--out", str(folder)]) == 0
    return folder
