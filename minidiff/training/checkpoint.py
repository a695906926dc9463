"""Checkpoints of a run in progress: one safetensors file that a kill cannot spoil, and exact resumption from it."""

import json
import os
from pathlib import Path

import torch

from minidiff.safe_files import read_tensors, write_tensors

FILE = "checkpoint.safetensors"


def save_checkpoint(folder, arguments, model, ema, optimizer, scaler, history):
    """Write everything the run needs to go on to FOLDER/checkpoint.safetensors, atomically.

    Weights, averages and moments are tensors; step, seconds and the run's arguments stand in the same file's metadata,
    so that no two files can disagree.
    """
    tensors = {
        **_named("model", model.state_dict()),
        **(_named("ema", ema.model.state_dict()) if ema else {}),
        **_moments(model, optimizer),
        **_named("history", {"losses": history.losses, "time_sum": history.time_sum, "time_count": history.time_count}),
    }
    about = {"step": history.step, "seconds": history.seconds, "arguments": arguments, "scaler": scaler.state_dict(),
             "machine": _machine(history.losses.device)}
    write_tensors(Path(folder) / FILE, tensors, about)


def load_checkpoint(folder, arguments, model, ema, optimizer, scaler, history):
    """Put the run back where the checkpoint in `folder` left it; without a checkpoint, do nothing.

    Raises ValueError if the file is truncated, or if the run now has other arguments: the message lists them.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return
    tensors, about = read_tensors(path, f"Delete it to start this run again: rm '{path}'.")
    _compare(path, about["arguments"], arguments)
    model.load_state_dict(_part(tensors, "model"))
    if ema:
        ema.model.load_state_dict(_part(tensors, "ema"))
    for name, weight in model.named_parameters():
        state = _part(tensors, f"optimizer/{name}")
        if state:  # the moments get the strides of their weight, the count of steps its device
            like = {key: torch.empty_like(weight if value.shape == weight.shape else value, device=weight.device)
                    for key, value in state.items()}
            optimizer.state[weight] = {key: like[key].copy_(value).detach() for key, value in state.items()}
    if about["scaler"]:
        scaler.load_state_dict(about["scaler"])
    history.step, history.seconds = min(about["step"], history.steps), about["seconds"]
    history.losses[:history.step].copy_(tensors["history/losses"][:history.step])
    history.time_sum.copy_(tensors["history/time_sum"])
    history.time_count.copy_(tensors["history/time_count"])


def read_averaged(folder):
    """({name: tensor} of the averaged weights, about) of the checkpoint in `folder`: for export in mid-run."""
    tensors, about = read_tensors(Path(folder) / FILE, "Train first.")
    return _part(tensors, "ema") or _part(tensors, "model"), {**about, "losses": tensors["history/losses"]}


def _compare(path, theirs, ours):
    ours, missing = json.loads(json.dumps(ours)), object()
    names = [name for name in {**theirs, **ours} if theirs.get(name, missing) != ours.get(name, missing)]
    if names:
        listed = "; ".join(f"{n}: {theirs.get(n, 'absent')!r} there, {ours.get(n, 'absent')!r} now" for n in names)
        raise ValueError(
            f"the checkpoint {path} belongs to another run. {listed}. Give the same arguments, another folder, "
            "or resume=False to start again in this one."
        )


def _moments(model, optimizer):
    names = {weight: name for name, weight in model.named_parameters()}
    return {
        f"optimizer/{names[weight]}/{key}": torch.as_tensor(value)
        for weight, state in optimizer.state.items()
        for key, value in state.items()
    }


def _machine(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _named(prefix, tensors):
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _part(tensors, prefix):
    return {name[len(prefix) + 1:]: tensor for name, tensor in tensors.items() if name.startswith(prefix + "/")}
