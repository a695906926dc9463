"""What a step of training ASCEND for text at 128 pixels needs: `python benchmarks/ascend_memory.py`.

ascend_t2i_128 (582 M weights, float32), one picture with a text of 77 tokens, forward, backward and a step of AdamW,
with activation checkpointing (`network.checkpoint = True`) and without.

The arithmetic is done on torch's meta device, which has shapes and no values. Weights, their gradients and the two
moments of AdamW are counted from the parameters. For the activations, autograd says what it keeps for the backward
pass (torch.autograd.graph.saved_tensors_hooks): each storage counts once, and the weights not again. With
checkpointing these are the inputs of the units, and the backward pass computes one unit anew at a time, so the largest
unit comes on top. On the meta device attention keeps its weights, which a fast kernel does not: a little too much.
Not counted is what lives only for a moment, as the gradients of activations do, and Python with torch itself (0.3 GB):
a real step holds a little more. Where activations go while gradients appear, as without checkpointing, it holds less.

Measured is the most memory that a process of its own held on the CPU, everything included (ru_maxrss), up to the end of
a first and of a second step: the moments come into being at the end of the first. Steps are only made where the
arithmetic fits into the memory that is free now, with 2 GB to spare.

Writes benchmarks/ascend_memory.json; 1 GB is 1e9 bytes.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sampler_overhead import machine
from torch.autograd.graph import saved_tensors_hooks

from minidiff import Text, create_model

MODEL, TOKENS = "ascend_t2i_128", 77
LIMIT = 16.0  # GB, with checkpointing


def inputs_of(network, batch, device):
    """Pictures, times, and texts of which all tokens count."""
    tokens = torch.randn(batch, TOKENS, network.text_dim, device=device)
    text = Text(tokens, torch.ones(batch, TOKENS, dtype=torch.bool, device=device),
                torch.randn(batch, network.pooled_dim, device=device))  # fmt: skip
    return torch.randn(batch, *network.shape, device=device), torch.full((batch,), 500.0, device=device), text


def units_of(network):
    """The modules that `network.checkpoint` computes anew, by name."""
    units = [name for part in ("encoder", "decoder") for name, _ in getattr(network, part).named_modules(prefix=part)
             if name.split(".")[-2:-1] == ["units"]]  # fmt: skip
    units += [f"middle.{i}" for i in range(len(network.middle))]
    return {name: network.get_submodule(name) for name in units}


def kept_by(network, inputs, checkpoint):
    """Bytes that autograd keeps of a forward pass: {the unit that it was in, or "between": bytes}."""
    seen = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    counts, current, handles = {"between": 0}, ["between"], []
    for name, unit in units_of(network).items():
        counts[name] = 0
        handles.append(unit.register_forward_pre_hook(lambda *_, name=name: current.append(name)))
        handles.append(unit.register_forward_hook(lambda *_: current.pop() and None))

    def pack(tensor):  # the graph holds what this returns, so no address is used twice
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            counts[current[-1]] += storage.nbytes()
        return tensor

    network.checkpoint = checkpoint
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(*inputs).square().mean()
    for handle in handles:
        handle.remove()
    return counts if loss.requires_grad else {}


def arithmetic(name=MODEL, batch=1):
    """GB of each part of a training step, by shapes alone: {"weights": ..., "total": {...}}."""
    with torch.device("meta"):
        network = create_model(name).train()
        inputs = inputs_of(network, batch, "meta")
    weights = sum(parameter.nbytes for parameter in network.parameters())
    learned = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    whole, inputs_only = (kept_by(network, inputs, checkpoint) for checkpoint in (False, True))
    largest = max((unit for unit in whole if unit != "between"), key=whole.get)
    standing = weights + 3 * learned
    parts = {
        "weights": weights, "gradients": learned, "adamw": 2 * learned, "activations": sum(whole.values()),
        "checkpointed": sum(inputs_only.values()), "largest_unit": whole[largest],
    }  # fmt: skip
    total = {
        "checkpoint": standing + parts["checkpointed"] + parts["largest_unit"],
        "all_kept": standing + parts["activations"],
    }
    gb = {part: round(size / 1e9, 6 if size < 1e7 else 3) for part, size in parts.items()}
    return gb | {"which_unit": largest, "total": {way: round(size / 1e9, 2) for way, size in total.items()}}


def steps(name, batch, checkpoint):
    """Two real steps of training: GB that this process held at most up to the end of each, and processor seconds."""
    torch.manual_seed(0)
    network = create_model(name).train()
    network.checkpoint = checkpoint
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    inputs = inputs_of(network, batch, "cpu")
    peaks, seconds = [], []
    for _ in range(2):
        began = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        (network(*inputs) - inputs[0]).square().mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
        optimizer.step()
        seconds.append(round(time.process_time() - began, 1))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        peaks.append(round(peak / 1e9, 2))
    return {"peak_gb": peaks, "processor_s": seconds}


def free_gb():
    """Memory that a new process can have without swapping."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024 / 1e9


def main(arguments=None):
    """Count, make the steps that fit, print and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--arithmetic", action="store_true", help="no real steps")
    parser.add_argument("--one", choices=("checkpoint", "all_kept"), help="make steps here, print what they took")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    if options.one:
        return print(json.dumps(steps(options.model, options.batch, options.one == "checkpoint")))
    counted = arithmetic(options.model, options.batch)
    whole = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), **{package: version(package) for package in ("torch", "minidiff")},
        "model": options.model, "batch": options.batch, "limit_gb": LIMIT, "arithmetic_gb": counted, "measured": {},
    }  # fmt: skip
    print(json.dumps(counted, indent=1))
    for way, needed in counted["total"].items():
        if options.arithmetic or free_gb() < needed + 2:
            print(f"{way}: no steps made" + ("" if options.arithmetic else f", {free_gb():.1f} GB are free"))
            continue
        command = [sys.executable, __file__, "--one", way, "--model", options.model, "--batch", str(options.batch)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # its own peak, not ours
        whole["measured"][way] = json.loads(done.stdout.splitlines()[-1])
        print(way, whole["measured"][way])
    options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
