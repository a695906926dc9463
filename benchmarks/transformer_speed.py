"""How fast our transformers are beside those of diffusers and timm: `python benchmarks/transformer_speed.py`.

dit_s_2: DiT-S/2 beside diffusers' DiTTransformer2DModel, a batch of 4 latents (4, 32, 32). diffusers departs from the
official DiT in two constants (the epsilon of the norms, the divisor of the time's frequencies): they are set to the
official values, which costs it nothing. uvit_cifar10: its trunk, 13 blocks and the last norm on (4, 257, 512) tokens,
beside those of a timm VisionTransformer of the same size; without the long skips, which a ViT has not.

Both sides have the same weights and see the same input in float32, on one thread; that they give the same numbers is
checked first. "forward" is without gradients. "train" is forward, backward and a step of AdamW(fused=True), the same
for both; diffusers keeps the embeddings of time and label anew in each block, so there is more for it to do.
"train_own" is the same with the AdamW of each side's training scripts: fused in minidiff, torch's default in
diffusers' examples.

The two alternate, and the order turns in every round, so that a busy machine hurts both alike. What is measured is
processor time; the ratio is the median over the rounds of theirs / ours within a round.

Writes benchmarks/transformer_speed.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sampler_overhead import machine
from torch import nn

from minidiff import create_model

SEED = 0
TARGETS = {  # theirs / ours, at least
    "dit_s_2": {"forward": 1.03, "train": 1.05, "train_own": 1.05},
    "uvit_cifar10": {"forward": 1.0, "train": 1.0},
}


class Pair(NamedTuple):
    """Two modules that compute the same, each as a function of the same inputs, and what they are trained towards."""

    modules: dict  # {"minidiff": module, the peer's name: module}
    run: dict  # {the same names: function of the inputs}
    inputs: tuple
    target: torch.Tensor


def dit(batch, depth):
    """DiT-S/2 without zeroed layers, and diffusers' with its weights."""
    network = create_model("dit_s_2", depth=depth or 12)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    peer, channels = diffusers_dit(network), network.shape[0]
    inputs = torch.randn(batch, *network.shape), torch.linspace(0, 999, batch).long(), torch.arange(batch)
    run = {"minidiff": network, "diffusers": lambda x, time, y: peer(x, time, y, return_dict=False)[0]}
    return Pair(
        {"minidiff": network, "diffusers": peer}, run, inputs, torch.randn(batch, 2 * channels, *network.shape[1:])
    )


def diffusers_dit(network):
    """diffusers' DiT with the weights of our `network`."""
    from diffusers import DiTTransformer2DModel

    options, state = network.arguments, network.state_dict()
    heads, width = options["num_heads"], options["hidden_size"]
    peer = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width // heads, in_channels=options["in_channels"],
        out_channels=2 * options["in_channels"], num_layers=options["depth"], sample_size=options["img_size"],
        patch_size=options["patch_size"], num_embeds_ada_norm=options["num_classes"], norm_eps=1e-6,
    )  # fmt: skip
    renamed = {f"pos_embed.proj.{kind}": state[f"patch_embed.{kind}"] for kind in ("weight", "bias")}
    for kind in ("weight", "bias"):
        renamed[f"proj_out_1.{kind}"] = state[f"final_layer.modulation.{kind}"]
        renamed[f"proj_out_2.{kind}"] = state[f"final_layer.linear.{kind}"]
        modulations = state[f"modulation.linear.{kind}"].chunk(options["depth"])
        for i, modulation in enumerate(modulations):
            block, ours = f"transformer_blocks.{i}", f"blocks.{i}"
            for letter, part in zip("qkv", state[f"{ours}.attn.qkv.{kind}"].chunk(3)):
                renamed[f"{block}.attn1.to_{letter}.{kind}"] = part
            renamed[f"{block}.attn1.to_out.0.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            renamed[f"{block}.ff.net.0.proj.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
            renamed[f"{block}.ff.net.2.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
            renamed[f"{block}.norm1.linear.{kind}"] = modulation
            for number, layer in (("1", "0"), ("2", "2")):
                name = f"{block}.norm1.emb.timestep_embedder.linear_{number}.{kind}"
                renamed[name] = state[f"time_embed.{layer}.{kind}"]
            if kind == "weight":
                renamed[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = state["label_embed.weight"]
    left = peer.load_state_dict(renamed, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {"pos_embed.pos_embed"}, left
    for block in peer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return peer


def uvit(batch, depth):
    """The trunk of U-ViT without its skips, and timm's with its weights, whose names are the same."""
    from timm.models.vision_transformer import VisionTransformer

    network = create_model("uvit_cifar10", skip="none", depth=depth or 12)
    trunk = nn.Sequential(*network.in_blocks, network.mid_block, *network.out_blocks, network.norm)
    options = {key: network.arguments[key] for key in ("img_size", "patch_size", "embed_dim", "num_heads", "qkv_bias")}
    vit = VisionTransformer(**options, depth=len(trunk) - 1, num_classes=0)  # one token more than patches, as ours
    peer = nn.Sequential(*vit.blocks, vit.norm)
    peer.load_state_dict(trunk.state_dict())
    for layer in peer.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = network.norm.eps
    assert vit.pos_embed.shape == network.pos_embed.shape
    modules = {"minidiff": trunk, "timm": peer}
    return Pair(modules, modules, *((torch.randn(batch, *network.pos_embed.shape[1:]),), torch.randn(1)))


PAIRS = {"dit_s_2": dit, "uvit_cifar10": uvit}


def tasks(pair, names):
    """What is timed: {(task, side): function without arguments}. Raises AssertionError if the outputs differ."""
    fused, own = ({side: torch.optim.AdamW(module.parameters(), lr=1e-6, fused=same or side == "minidiff" or None)
                   for side, module in pair.modules.items()} for same in (True, False))  # fmt: skip

    def forward(side):
        with torch.no_grad():
            return pair.run[side](*pair.inputs)

    def train(side, optimizers=fused):
        pair.modules[side].train()
        optimizers[side].zero_grad(set_to_none=True)
        (pair.run[side](*pair.inputs) - pair.target).square().mean().backward()
        optimizers[side].step()
        pair.modules[side].eval()

    def train_own(side):
        train(side, own)

    for module in pair.modules.values():
        module.eval()
    torch.testing.assert_close(*(forward(side) for side in pair.run), rtol=1e-3, atol=1e-4)
    every = [task for task in (forward, train, train_own) if task.__name__ in names]
    return {(task.__name__, side): lambda task=task, side=side: task(side) for task in every for side in pair.run}


def measure(functions, rounds):
    """Seconds of processor time: {(task, side): a list, one a round}; the first round warms up and is left out."""
    seconds = {key: [] for key in functions}
    for number in range(rounds + 1):
        keys = list(functions)
        for key in keys if number % 2 else reversed(keys):
            began = time.process_time()
            functions[key]()
            seconds[key].append(time.process_time() - began)
    return {key: values[1:] for key, values in seconds.items()}


def rows(name, pair, seconds, targets):
    """The rows of the table for one pair; targets: {task: ratio}."""
    peer = next(side for side in pair.modules if side != "minidiff")
    millions = {side: round(sum(p.numel() for p in module.parameters()) / 1e6, 2)
                for side, module in pair.modules.items()}  # fmt: skip
    for task, target in targets.items():
        own, theirs = seconds[task, "minidiff"], seconds[task, peer]
        ratios = [b / a for a, b in zip(own, theirs)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
        yield {
            "model": name, "peer": peer, "task": task, "minidiff_ms": round(1e3 * statistics.median(own), 1),
            "peer_ms": round(1e3 * statistics.median(theirs), 1), "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)], "target": target, "million_parameters": millions,
        }  # fmt: skip


def main(arguments=None, description=__doc__, out=Path(__file__), pairs=PAIRS, targets=TARGETS):
    """Measure these pairs, print the table and write the file."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--smoke", action="store_true", help="small networks, one picture, one round: that it runs")
    parser.add_argument("--out", type=Path, default=out.with_suffix(".json"))
    options = parser.parse_args(arguments)
    if options.smoke:
        options.rounds = options.batch = 1
    whole = {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(), "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "timm", "minidiff")},
        "batch": options.batch, "rounds": options.rounds, "clock": "processor time", "rows": [],
    }  # fmt: skip
    print(f"{'model':13} {'task':10} {'minidiff':>9} {'peer':>9} {'ratio':>7} {'quartiles':>11} {'target':>7}   (ms)")
    for name, make in pairs.items():
        torch.manual_seed(SEED)
        pair = make(options.batch, 2 if options.smoke else None)
        for row in rows(name, pair, measure(tasks(pair, targets[name]), options.rounds), targets[name]):
            spread = "-".join(f"{ratio:.2f}" for ratio in row["quartiles"])
            print(f"{name:13} {row['task']:10} {row['minidiff_ms']:9.1f} {row['peer_ms']:9.1f} {row['ratio']:7.3f} "
                  f"{spread:>11} {row['target']:7g}   {row['peer']}")  # fmt: skip
            whole["rows"].append(row)
    options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
