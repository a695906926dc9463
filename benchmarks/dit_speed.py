"""How fast DiT-S/2 is beside diffusers' DiTTransformer2DModel: `python benchmarks/dit_speed.py`.

Both have the same weights and see the same input, a batch of 4 latents (4, 32, 32) in float32, on one thread; that they
give the same numbers is checked first. diffusers departs from the official DiT in two constants (the epsilon of the
norms, the divisor of the time's frequencies): they are set to the official values, which costs it nothing.

"forward" is without gradients. "train" is forward, backward and a step of AdamW(fused=True), the same for both;
diffusers keeps the embeddings of time and label anew in each block, so there is more for it to do. "train_own" is the
same with the AdamW of each side's training scripts: fused in minidiff, torch's default in diffusers' examples.

The two alternate, and the order turns in every round, so that a busy machine hurts both alike. What is measured is
processor time; the ratio is the median over the rounds of diffusers / minidiff within a round.

Writes benchmarks/dit_speed.json.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from sampler_overhead import machine

from minidiff import create_model

TARGETS = {"forward": 1.03, "train": 1.05, "train_own": 1.05}
BATCH, SEED = 4, 0


def theirs(network):
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


def pair(name, depth=None):
    """Our network without zeroed layers and diffusers' equal: {"minidiff": f(x, time, y), ...}, and the modules."""
    torch.manual_seed(SEED)
    network = create_model(name, **({"depth": depth} if depth else {}))
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    peer = theirs(network)
    run = {"minidiff": network, "diffusers": lambda x, time, y: peer(x, time, y, return_dict=False)[0]}
    return run, {"minidiff": network, "diffusers": peer}


def tasks(run, modules, batch):
    """What is timed: {(task, side): function without arguments}. Raises AssertionError if the outputs differ."""
    generator = torch.Generator().manual_seed(SEED)
    size = modules["minidiff"].shape
    x = torch.randn(batch, *size, generator=generator)
    steps, y = torch.linspace(0, 999, batch).long(), torch.arange(batch)
    target = torch.randn(batch, 2 * size[0], *size[1:], generator=generator)
    fused, own = ({side: torch.optim.AdamW(module.parameters(), lr=1e-6, fused=same or side == "minidiff" or None)
                   for side, module in modules.items()} for same in (True, False))  # fmt: skip

    def forward(side):
        with torch.no_grad():
            return run[side](x, steps, y)

    def train(side, optimizers=fused):
        modules[side].train()
        optimizers[side].zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(run[side](x, steps, y), target).backward()
        optimizers[side].step()
        modules[side].eval()

    def train_own(side):
        train(side, own)

    for module in modules.values():
        module.eval()
    torch.testing.assert_close(forward("minidiff"), forward("diffusers"), rtol=1e-3, atol=1e-4)
    every = (forward, train, train_own)
    return {(task.__name__, side): lambda task=task, side=side: task(side) for task in every for side in run}


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


def report(seconds, modules, options):
    """The rows of the table, and all that is written to the file."""
    rows = []
    for task, target in TARGETS.items():
        own, peer = seconds[task, "minidiff"], seconds[task, "diffusers"]
        ratios = sorted(b / a for a, b in zip(own, peer))
        rows.append({
            "task": task, "minidiff_ms": round(1e3 * statistics.median(own), 1),
            "diffusers_ms": round(1e3 * statistics.median(peer), 1), "ratio": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[int(q * (len(ratios) - 1))], 3) for q in (0.25, 0.75)], "target": target,
        })  # fmt: skip
    parameters = {side: sum(p.numel() for p in module.parameters()) for side, module in modules.items()}
    return rows, {
        "date": time.strftime("%Y-%m-%d"), "machine": machine(), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "diffusers": version("diffusers"),
        "minidiff": version("minidiff"), "model": options.model, "depth": modules["minidiff"].arguments["depth"],
        "batch": options.batch, "rounds": options.rounds, "clock": "processor time", "parameters": parameters,
        "rows": rows,
    }  # fmt: skip


def main(arguments=None):
    """Measure, print the table and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="dit_s_2", help="a name of list_models('dit_*')")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--smoke", action="store_true", help="two blocks, one latent, one round: that it runs at all")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args(arguments)
    if options.smoke:
        options.rounds = options.batch = 1
    run, modules = pair(options.model, depth=2 if options.smoke else None)
    rows, whole = report(measure(tasks(run, modules, options.batch), options.rounds), modules, options)
    print(f"{'task':10} {'minidiff':>10} {'diffusers':>10} {'ratio':>7} {'quartiles':>15} {'target':>7}   (ms)")
    for row in rows:
        spread = "-".join(f"{ratio:.2f}" for ratio in row["quartiles"])
        print(f"{row['task']:10} {row['minidiff_ms']:10.1f} {row['diffusers_ms']:10.1f} {row['ratio']:7.2f} "
              f"{spread:>15} {row['target']:7g}")  # fmt: skip
    options.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
