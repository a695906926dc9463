"""Train the feature networks of minidiff/metrics that come with the package: `python tools/train_features.py emoji`.

A small classifier learns from the training split, moved by a pixel or two and with a little noise; the card in
config.json says how often it is right on the training and on the held-out pictures.
"""

import argparse
import hashlib
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from minidiff.checkpoints import WEIGHTS
from minidiff.datasets import load_dataset
from minidiff.files import data_folder
from minidiff.metrics.features import FEATURES, FeatureNetwork, save_features

RECIPES = {
    "digits": dict(sizes=(8, 16, 32), epochs=40, flip=False, licence="CC-BY-4.0 (UCI)"),
    "emoji": dict(sizes=(16,), epochs=40, flip=True, licence="Apache-2.0 (Noto), CC-BY-4.0 (Twemoji)"),
}
BATCH, LR, DECAY, SMOOTHING, NOISE, SHIFT = 64, 2e-3, 0.05, 0.1, 0.05, 1


def main():
    """Train one of RECIPES, write it, and say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: data/weights/")
    arguments = parser.parse_args()
    name, recipe = arguments.name, RECIPES[arguments.name]
    epochs = arguments.epochs or recipe["epochs"]
    folder = (arguments.out or data_folder() / "weights") / FEATURES[name]
    torch.manual_seed(arguments.seed)
    data = load_dataset(name, size=16, split="train")
    network = FeatureNetwork(name, data.images().shape[1], len(data.classes), sizes=recipe["sizes"])
    print(f"{name}: {sum(weight.numel() for weight in network.parameters()):,} weights, {len(data)} pictures")
    started = time.time()
    train(network, data.images(), data.labels, epochs, recipe["flip"])
    network.half().float()  # as the file keeps it
    right = {split: accuracy(network, load_dataset(name, size=16, split=split)) for split in ("train", "test")}
    card = {
        "dataset": {"name": name, "size": 16, "split": "train"}, "licence": recipe["licence"],
        "accuracy": {"train": right["train"], "held-out": right["test"]}, "epochs": epochs,
        "seconds": round(time.time() - started), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "command": f"python tools/train_features.py {name} --epochs {epochs} --seed {arguments.seed}",
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    save_features(network, folder, card)
    weights = (folder / WEIGHTS).read_bytes()
    print(f"wrote {folder}. For data/README.md:\n| `{FEATURES[name]}` | `{card['command']}` | {card['seconds']} |"
          f" {right['train']} | {right['test']} | {len(weights)} | `{hashlib.sha256(weights).hexdigest()}` |")


def train(network, pictures, labels, epochs, flip):
    """Train a classifier in place on pictures (N, C, 16, 16) and labels (N,)."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=DECAY)
    steps = epochs * -(-len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    network.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(pictures)).split(BATCH):
            logits = network.classify(augment(pictures[chosen], flip))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(pictures):.3f}", flush=True)
    network.eval()


def augment(x, flip):
    """Pictures (B, C, H, W) moved by at most SHIFT pixels, half of them mirrored if `flip`, with up to NOISE noise."""
    padded = F.pad(x, (SHIFT,) * 4, mode="replicate")
    across, down = torch.randint(0, 2 * SHIFT + 1, (2, len(x)))
    side = x.shape[-1]
    x = torch.stack([p[:, i : i + side, j : j + side] for p, i, j in zip(padded, down.tolist(), across.tolist())])
    if flip:
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    return x + NOISE * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


@torch.no_grad()
def accuracy(network, data):
    """The share of a data set's pictures that a classifier gets right."""
    right = torch.cat([network.classify(part).argmax(1) for part in data.images().split(256)]) == data.labels
    return round(right.float().mean().item(), 4)


if __name__ == "__main__":
    main()
