"""Recorded runs of data/results, for what a notebook shows and cannot train in minutes: `recorded("uvit", "cpu")`."""

import json

import numpy as np
import torch

from minidiff.files import data_folder

TOOLS = {"words": "text_runs", "backbones": "text_runs", "cascade": "cascade_runs"}  # all others: ablation


def recorded(experiment, tier):
    """{run: record} of an experiment in a tier; a run that was repeated with another seed is there as RUN-seed1.

    A record is what a tool of TOOLS wrote (data/README.md says what is in it), and "samples": the first of the pictures
    that the run made (N, 3, H, W) in [-1, 1]. Raises FileNotFoundError if no such run was recorded.
    """
    from PIL import Image

    folder = data_folder() / "results" / experiment / tier
    paths = sorted(folder.glob("*.json"))
    if not paths:
        command = f"python tools/{TOOLS.get(experiment, 'ablation')}.py {experiment} --tier {tier}"
        raise FileNotFoundError(f"no recorded runs in {folder}; `{command}` makes them in a clone")
    runs = {}
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path.with_suffix(".png")).convert("RGB")))  # (H, N * W, 3)
        samples = pixels.unflatten(1, (-1, len(pixels))).permute(1, 3, 0, 2).float() / 127.5 - 1
        runs[path.stem] = json.loads(path.read_text(encoding="utf-8")) | {"samples": samples}
    return runs
