"""Train the variants of an experiment on equal terms and record each: `python tools/ablation.py uvit`.

Every run is one file data/results/EXPERIMENT/TIER/RUN.json: the model with its parameters and work, the data, the
training, the losses (of the curve, and of held-out pictures by noise level, with the same noise for all), and the
distance of its samples from the data; beside it RUN.png, the first 32 of these samples. A seed other than 0 is part of
the name, RUN-seed1. Runs that are recorded are skipped, an interrupted one goes on from its last checkpoint. Tier cpu:
emoji at 16 pixels, minutes a run; cpu-long: the same for five times as many steps; gpu: at 32 pixels.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from PIL import Image

from minidiff import Diffusion, create_model, load_dataset, sample, schedules, summary
from minidiff.errors import unknown_name
from minidiff.files import cache_folder, data_folder
from minidiff.metrics import frechet_distance, kernel_distance
from minidiff.safe_files import write_text
from minidiff.training import train

FORMAT = 1
TIERS = {
    "cpu": dict(size=16, steps=600, batch_size=64, samples=512),
    "cpu-long": dict(size=16, steps=3000, batch_size=64, samples=512),
    "gpu": dict(size=32, steps=20_000, batch_size=256, samples=2048),
}
TRAINING = dict(lr=1e-3, warmup=100, ema=0.995, p_uncond=0.1)
SHOWN = 32  # of the samples are kept as a picture
TIMES = [(i + 0.5) / 10 for i in range(10)]  # where the held-out loss is measured

# experiment -> run -> (model, overrides). The tiny sizes; the gpu tier gives them 32 pixels.
EXPERIMENTS = {
    "uvit": {
        "concat": ("uvit_tiny", {}),
        "add": ("uvit_tiny", {"skip": "add"}),
        "none": ("uvit_tiny", {"skip": "none"}),
        "time-adaln": ("uvit_tiny", {"time_as": "adaln"}),
        "no-conv": ("uvit_tiny", {"conv": False}),
        "patch-4": ("uvit_tiny", {"patch_size": 4}),
    },
    "iuvit": {
        f"{'dwconv' if dwconv else 'mlp'}-{'rearrange' if first else 'linear'}{suffix}":
            ("iuvit_tiny", {"dwconv": dwconv, "rearrange_first": first, **patch})
        for suffix, patch in (("", {}), ("-patch-4", {"patch_size": 4}))
        for dwconv in (False, True) for first in (False, True)
    },
    "dit": {
        **{kind.replace("_", "-"): ("dit_tiny", {"conditioning": kind})
           for kind in ("adaln_zero", "adaln", "cross_attention", "in_context")},
        "patch-4": ("dit_tiny", {"patch_size": 4}),
        "narrow": ("dit_tiny", {"hidden_size": 64}),
        "shallow": ("dit_tiny", {"depth": 2}),
    },
    "diffit": {  # time in the attention, in DiT's shell at DiT's size; in windows, in a U-Net
        "flat": ("diffit_xl_256", {"in_channels": 3, "hidden_size": 96, "depth": 5, "num_heads": 4,
                                   "learn_sigma": False}),
        "pixels": ("diffit_tiny", {}),
        "window-2": ("diffit_tiny", {"window_size": 2}),
    },
    "ascend": {
        **{f"{encoder}-{decoder}": ("ascend_tiny", {"encoder": encoder, "decoder": decoder})
           for encoder in ("swin", "residual") for decoder in ("swin", "residual")},
        "no-skips": ("ascend_tiny", {"skips": False}),
        "conv-resampling": ("ascend_tiny", {"resample": "conv"}),
    },
}  # fmt: skip


def main():
    """Make all runs of an experiment, or those that are named."""
    record_runs(__doc__, EXPERIMENTS, TIERS, run, lambda record: (
        f"held-out loss {record['held_out']['mean']:.4f}, {record['distances']['frechet']['text']}"))


def record_runs(about, experiments, tiers, run, result):
    """The command line of a tool that records runs: it makes those that are asked for and not there yet.

    about: the tool's docstring; run(experiment, name, *experiments[experiment][name], arguments) -> (record, pictures),
    a record without its `origin`; result(record): what is said of a run that is done.
    """
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("experiment", help=", ".join(experiments))
    parser.add_argument("runs", nargs="*", help="default: all of them")
    parser.add_argument("--tier", choices=tiers, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=type(data_folder()), default=data_folder() / "results")
    parser.add_argument("--smoke", action="store_true", help="a few steps and pictures, to test all this")
    arguments = parser.parse_args()
    if arguments.experiment not in experiments:
        parser.error(str(unknown_name("experiment", arguments.experiment, experiments)))
    runs = experiments[arguments.experiment]
    for name in arguments.runs:
        if name not in runs:
            parser.error(str(unknown_name("run", name, runs)))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for name in arguments.runs or runs:
        seed = f"-seed{arguments.seed}" * bool(arguments.seed)
        path = arguments.out / arguments.experiment / arguments.tier / f"{name}{seed}.json"
        if path.exists():
            print(f"{path} is there already")
            continue
        record, samples = run(arguments.experiment, name, *runs[name], arguments)
        record = origin(arguments, name) | record
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(strip(samples[:SHOWN])).save(path.with_suffix(".png"), optimize=True)
        write_text(path, json.dumps(record, indent=1) + "\n")
        print(f"wrote {path}: {result(record)}")


def origin(arguments, name):
    """What every record says of where it comes from."""
    steps = f" --steps {arguments.steps}" * bool(arguments.steps)
    return {
        "format": FORMAT, "experiment": arguments.experiment, "run": name, "tier": arguments.tier,
        "seed": arguments.seed, "command": f"python tools/{Path(sys.argv[0]).name} {arguments.experiment} {name}"
                                           f" --tier {arguments.tier} --seed {arguments.seed}{steps}",
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__,
    }  # fmt: skip


def run(experiment, name, model, overrides, arguments):
    """Train, judge and describe one run: a dict of plain values, and its samples."""
    tier, device = TIERS[arguments.tier], "cuda" if torch.cuda.is_available() else "cpu"
    steps = 4 if arguments.smoke else arguments.steps or tier["steps"]
    data, held_out = (load_dataset("emoji", size=tier["size"], split=split) for split in ("train", "test"))
    torch.manual_seed(arguments.seed)
    network = create_model(model, num_classes=len(data.classes), img_size=tier["size"], **overrides)
    diffusion = Diffusion(network, schedules.cosine(), "v", shape=(3, tier["size"], tier["size"]))
    work = summary(diffusion)
    size = f"{work.parameters:,} parameters, {work.flops / 1e6:.1f} MFLOPs"
    print(f"{experiment} {name}: {size}, {steps} steps on {device}")
    options = TRAINING | dict(steps=steps, batch_size=8 if arguments.smoke else tier["batch_size"], seed=arguments.seed)
    if device == "cuda":
        options |= dict(amp="bf16", compile=True)
    folder = f"{experiment}-{arguments.tier}-{name}-{arguments.seed}"
    folder = None if arguments.smoke else cache_folder() / "runs" / folder
    history = train(diffusion, data, folder=folder, save_every=200, device=device, **options)
    losses = by_time(history.ema, held_out, 16 if arguments.smoke else 372)
    pictures = 16 if arguments.smoke else tier["samples"]
    labels = data.labels[torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))[:pictures]]
    fake = sample(history.ema, len(labels), y=labels, sampler="dpmpp_2m", steps=4 if arguments.smoke else 20, seed=1)
    record = {
        "model": {"name": model, "arguments": network.arguments, "parameters": work.parameters, "flops": work.flops},
        "data": {"name": "emoji", "size": tier["size"], "train": len(data), "held_out": len(held_out)},
        "schedule": repr(diffusion.schedule), "prediction": diffusion.prediction, "training": options,
        "seconds": round(history.seconds), "curve": curve(history.losses),
        "held_out": {"mean": round(sum(losses) / len(losses), 5), "times": TIMES, "losses": losses},
        "distances": distances(data, fake, tier["size"]),
    }  # fmt: skip
    return record, fake


@torch.no_grad()
def by_time(diffusion, dataset, count):
    """The loss of the averaged model on held-out pictures at each of TIMES, the same noise for every run."""
    images, labels = dataset.images()[:count].to(diffusion.device), dataset.labels[:count].to(diffusion.device)
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(diffusion.device)
    means = []
    for t in TIMES:
        loss = diffusion.loss(images, labels, t=torch.full((len(images),), t, device=images.device), eps=eps)
        means.append(round(loss.mean().item(), 5))
    return means


def curve(losses, points=40):
    """The training loss as `points` means over equal stretches."""
    return [round(part.mean().item(), 5) for part in losses.tensor_split(min(points, len(losses)))]


def strip(images):
    """Images (B, 3, H, W) in [-1, 1] beside each other, as bytes (H, B * W, 3)."""
    return images.cpu().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(2, 0, 3, 1).flatten(1, 2).numpy()


def distances(data, fake, size):
    """Distances of the samples from the training pictures on the emoji features, which are those of 16 pixels."""
    real, fake = data.images(), fake.cpu().clamp(-1, 1)
    if size != 16:
        real, fake = (torch.nn.functional.avg_pool2d(part, size // 16) for part in (real, fake))
    both = {"frechet": frechet_distance(real, fake, "emoji"), "kernel": kernel_distance(real, fake, "emoji")}
    return {name: {"value": value.value, "spread": value.spread, "text": str(value)} for name, value in both.items()}


if __name__ == "__main__":
    main()
