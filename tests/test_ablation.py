"""The recorded runs of an ablation: one is made in its quickest form, and all that are kept can be compared."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from minidiff.course.recorded import TOOLS, recorded
from minidiff.files import data_folder

COMMON = {"format", "experiment", "run", "tier", "seed", "command", "date", "device", "threads", "machine", "torch",
          "data", "seconds"}  # fmt: skip
ONE = COMMON | {"model", "schedule", "prediction", "training", "curve"}  # of one network
KEYS = ONE | {"held_out", "distances"}  # of tools/ablation.py
TEXT_KEYS = ONE | {"told", "encoder", "prompts", "captions", "sampling", "during", "accuracy",
                   "worth"}  # of tools/text_runs.py  # fmt: skip


def test_a_run_is_recorded_and_not_made_twice(root, tmp_path):
    command = [sys.executable, root / "tools" / "ablation.py", "uvit", "none", "--smoke", "--tier", "cpu"]
    command += ["--out", tmp_path]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2))
    record = json.loads((tmp_path / "uvit" / "cpu" / "none.json").read_text())
    assert set(record) == KEYS and record["model"]["arguments"]["skip"] == "none"
    assert len(record["held_out"]["losses"]) == len(record["held_out"]["times"]) == 10
    with Image.open(tmp_path / "uvit" / "cpu" / "none.png") as samples:
        assert samples.size == (16 * 16, 16)  # sixteen pictures in a smoke run
    assert "wrote" in first.stdout and "is there already" in second.stdout


def test_a_run_that_listens_is_recorded(root, tmp_path):
    command = [sys.executable, root / "tools" / "text_runs.py", "words", "pooled", "--smoke", "--tier", "cpu"]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "words" / "cpu" / "pooled.json").read_text())
    assert set(record) == TEXT_KEYS and record["told"] == "pooled" and set(record["accuracy"]) == {"seen", "held_out"}
    assert set(record["worth"]) == {"colour", "shape", "size", "order", "relation", "all", "right", "times"}
    assert (tmp_path / "words" / "cpu" / "pooled.png").exists() and "right in all" in done.stdout


def test_unknown_names_are_refused(root):
    for names, says in ((["uvits"], "unknown experiment 'uvits'"), (["uvit", "concad"], "unknown run 'concad'")):
        done = subprocess.run([sys.executable, root / "tools" / "ablation.py", *names], capture_output=True, text=True)
        assert done.returncode == 2 and says in done.stderr


@pytest.mark.parametrize("path", sorted((data_folder() / "results").glob("*/*/*.json")), ids=lambda path: path.stem)
def test_kept_runs_are_whole(path):
    record = json.loads(path.read_text())
    keys = {"ablation": KEYS, "text_runs": TEXT_KEYS}.get(TOOLS.get(record["experiment"], "ablation"), set(record))
    assert set(record) == keys and keys >= COMMON and record["format"] == 1
    name = record["run"] + f"-seed{record['seed']}" * bool(record["seed"])
    assert (record["experiment"], record["tier"], name) == path.with_suffix("").parts[-3:]
    assert f"{record['experiment']} {record['run']} --tier {record['tier']}" in record["command"]
    samples = recorded(record["experiment"], record["tier"])[name]["samples"]
    assert samples.shape == (32, 3, record["data"]["size"], record["data"]["size"])
    assert samples.min() >= -1 and samples.max() <= 1 and samples.std() > 0.1


def test_what_was_not_recorded_is_named():
    with pytest.raises(FileNotFoundError, match="tools/ablation.py uvits --tier cpu"):
        recorded("uvits", "cpu")
    with pytest.raises(FileNotFoundError, match="tools/text_runs.py words --tier big"):
        recorded("words", "big")
