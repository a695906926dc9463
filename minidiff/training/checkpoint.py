"""Checkpoints of a run in progress: safetensors files that a kill cannot spoil, and exact resumption from the newest.

One file holds everything, written under another name and then renamed, so it is there as a whole or not at all. The
tensors in it are whole, however many processes shared them, so a run may go on with another number of processes. (One
file, and not torch's directory of shards: it is one rename, anyone can read it, and a model of 590 M weights with its
average and moments is 9 GB.) There are no random states in it: a run's random numbers are functions of (seed, step).
"""

import errno
import json
import os
from pathlib import Path

import torch

from minidiff.checkpoints import describe
from minidiff.safe_files import read_about, read_tensors, write_tensors
from minidiff.training.world import full, local, part_of

MODEL = ("network", "schedule", "prediction", "time", "learned_range", "shape", "value_range", "latents", "weights")


def checkpoints(folder):
    """The checkpoint files in `folder`, the newest first."""
    return sorted(Path(folder).glob("checkpoint-*.safetensors"), reverse=True)


def save_checkpoint(folder, keep, world, arguments, model, ema, optimizer, scaler, history, **about):
    """Write all that the run needs to go on to FOLDER/checkpoint-STEP.safetensors; keep the newest `keep` files.

    Weights, averages and moments are tensors; step, seconds, the run's arguments and `about` stand in the same file's
    metadata, so that no two files can disagree. All processes have to call it; the first one writes. On a full disk
    all but the newest checkpoint make room for it; where that is not enough it raises OSError.
    """
    tensors = {**_named("model", _whole(model.state_dict())), **_moments(model, optimizer)}
    if ema:
        tensors |= _named("ema", _whole(ema.model.state_dict()))
    tensors |= _named("history", {"losses": history.losses[:history.step], "time_sum": history.time_sum,
                                  "time_count": history.time_count})
    about |= {"step": history.step, "seconds": history.seconds, "arguments": arguments, "scaler": scaler.state_dict(),
              "processes": world.size, "machine": _machine(world.device)}
    if world.rank:
        return
    path = Path(folder) / f"checkpoint-{history.step:08d}.safetensors"
    while True:
        try:
            write_tensors(path, tensors, about)
            break
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _make_room(folder):
                raise
    for other in checkpoints(folder):  # those of later steps are of a run that was started anew in this folder
        if other.name > path.name:
            other.unlink()
    for older in checkpoints(folder)[keep:]:
        older.unlink()


def _make_room(folder):
    """Remove the oldest checkpoint but the newest whole one, which stays whatever happens; False if it is alone."""
    newest = newest_whole(folder) if checkpoints(folder) else None
    spare = [path for path in checkpoints(folder) if newest and path != newest[0]]
    if spare:
        spare[-1].unlink()
    return bool(spare)


def make_folder(folder):
    """Make the folder of a run, and remove what killed writers left in it.

    That nothing can be written there should be known before the first hour of training: it raises OSError then.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"folder={str(folder)!r} cannot be made ({error.strerror}): give one that this user "
                                   "may write to, or remove the file of that name") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"folder={str(folder)!r} is there, but this user may not write to it: give another one, "
                              f"or change its rights with  chmod u+w '{folder}'")
    for pattern in ("checkpoint-*.safetensors.tmp", "*.csv.tmp", "samples/step-*.png.tmp"):
        for half in folder.glob(pattern):
            half.unlink(missing_ok=True)


def identity(diffusion):
    """What a checkpoint records of the model besides its weights; of a network without a name, their shapes."""
    network = diffusion.network
    if hasattr(network, "name"):
        return describe(diffusion)
    shapes = [[name, *weight.shape] for name, weight in network.named_parameters()]
    return {"network": type(network).__name__, "weights": shapes}


def newest_whole(folder):
    """(path, about) of the newest checkpoint that is whole, or None; says which files it passed over.

    Raises ValueError if there are checkpoints and none is whole.
    """
    broken = []
    for path in checkpoints(folder):
        try:
            about = read_about(path)
        except ValueError:
            broken.append(path)
            continue
        if not isinstance(about, dict) or "arguments" not in about:
            raise ValueError(f"{path} has the name of a checkpoint, and is a safetensors file of another kind: no run "
                             "has written it. Move it elsewhere, or give another folder.")
        if broken:
            print(f"passed over {', '.join(file.name for file in broken)}: truncated")
        return path, about
    if broken:
        raise ValueError(f"{broken[0]} is truncated, and {folder} has no other whole checkpoint. Delete it to start "
                         f"this run again: rm '{broken[0]}'.")
    return None


def load_checkpoint(folder, arguments, model, ema, optimizer, scaler, history, changed=False):
    """Put the run back where the newest whole checkpoint in `folder` left it; returns its `about`, or None without one.

    Raises ValueError if no checkpoint is whole, or if the run now has other arguments: the message lists them. With
    `changed`, arguments of the training may differ (a lower lr after a run broke), those of the model may not.
    """
    found = newest_whole(folder)
    if not found:
        return None
    path, about = found
    _compare(path, about["arguments"], arguments, changed)
    tensors, _ = read_tensors(path)
    _load(model, _part(tensors, "model"))
    if ema:
        _load(ema.model, _part(tensors, "ema") or _part(tensors, "model"))
    for (name, weight), mine in zip(trained(model), optimizer.param_groups[0]["params"], strict=True):
        state = _part(tensors, f"optimizer/{name}")
        if state:  # the moments get the strides of their weight, the count of steps its device
            parts = {key: part_of(value, weight) for key, value in state.items()}
            like = {key: torch.empty_like(mine if value.shape == mine.shape else value, device=mine.device)
                    for key, value in parts.items()}
            optimizer.state[mine] = {key: like[key].copy_(value).detach() for key, value in parts.items()}
    if about["scaler"]:
        scaler.load_state_dict(about["scaler"])
    history.step, history.seconds = min(about["step"], history.steps), about["seconds"]
    history.losses[:history.step].copy_(tensors["history/losses"][:history.step])
    history.time_sum.copy_(tensors["history/time_sum"])
    history.time_count.copy_(tensors["history/time_count"])
    return about | {"path": path}


def read_averaged(folder):
    """({name: tensor} of the averaged weights, about) of the newest whole checkpoint in `folder`: for export."""
    found = newest_whole(folder)
    if not found:
        raise FileNotFoundError(f"there is no checkpoint in {folder}. Train first, or give the folder of a run.")
    tensors, about = read_tensors(found[0])
    return _part(tensors, "ema") or _part(tensors, "model"), {**about, "losses": tensors["history/losses"]}


def trained(model):
    """The (name, weight) pairs that the optimiser changes, in its order."""
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def _compare(path, theirs, ours, changed):
    ours, missing = json.loads(json.dumps(ours)), object()
    names = [name for name in {**theirs, **ours} if theirs.get(name, missing) != ours.get(name, missing)]
    if changed:
        names = [name for name in names if name in MODEL]
    if names:
        listed = "; ".join(f"{n}: {theirs.get(n, 'absent')!r} there, {ours.get(n, 'absent')!r} now" for n in names)
        way = "resume='changed' to go on with what changed" if not changed and not set(names) & set(MODEL) else (
            "a model of the same kind")
        raise ValueError(
            f"the checkpoint {path} belongs to another run. {listed}. Give the same arguments, another folder, {way}, "
            "or resume=False to start again in this one."
        )


def _whole(tensors):
    """The same tensors put together from all processes, on the CPU if there are several."""
    return {name: full(tensor).cpu() if hasattr(tensor, "full_tensor") else tensor for name, tensor in tensors.items()}


def _load(model, tensors):
    """Copy whole tensors into a model whose own may be sharded."""
    own = model.state_dict()
    if own.keys() != tensors.keys():
        raise ValueError(f"the checkpoint has {len(tensors)} weights and this model {len(own)} of other names.")
    with torch.no_grad():
        for name, tensor in own.items():
            local(tensor).copy_(part_of(tensors[name], tensor))


def _moments(model, optimizer):
    moments = {}
    for (name, weight), mine in zip(trained(model), optimizer.param_groups[0]["params"], strict=True):
        for key, value in optimizer.state.get(mine, {}).items():
            whole = full(torch.as_tensor(value), like=weight)
            moments[f"optimizer/{name}/{key}"] = whole.cpu() if hasattr(weight, "to_local") else whole
    return moments


def _machine(device):
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _named(prefix, tensors):
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def _part(tensors, prefix):
    return {name[len(prefix) + 1:]: tensor for name, tensor in tensors.items() if name.startswith(prefix + "/")}
