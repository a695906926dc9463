"""Feature networks: what turns pictures into the few numbers that distances compare.

Two small classifiers come with the package, made by tools/train_features.py. Any other function of pictures
(B, C, H, W) that returns (B, D) serves as well, such as the pooled features of an Inception network.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from minidiff.checkpoints import CONFIG, WEIGHTS, load_weights
from minidiff.diffusion import eval_mode
from minidiff.errors import check_whole, unknown_name
from minidiff.files import data_folder
from minidiff.safe_files import read_tensors, write_tensors, write_text

FEATURES = {"digits": "digit-features", "emoji": "emoji-features"}  # name -> folder in data/weights
SIDE = 16  # pixels that the networks work on


class FeatureNetwork(nn.Module):
    """A small convolutional classifier of pictures (B, C, H, H) in [-1, 1]; called, it gives the features (B, width).

    The features are what the last layer sees, the mean of each of its channels over the picture; `.classify(x)` gives
    the logits (B, num_classes). sizes: the sides H it takes; those that are not 16 are resized to 16. Pictures of
    another shape raise ValueError.
    """

    def __init__(self, name, in_channels, num_classes, width=64, sizes=(SIDE,)):
        super().__init__()
        self.name, self.in_channels, self.sizes = name, in_channels, tuple(sizes)
        self.arguments = {"name": name, "in_channels": in_channels, "num_classes": num_classes, "width": width,
                          "sizes": list(sizes)}  # fmt: skip
        self.num_features = width  # the name under which torchmetrics looks for it
        self.layers = nn.Sequential(
            *_block(in_channels, width // 2), *_block(width // 2, width // 2), nn.AvgPool2d(2),  # (B, width / 2, 8, 8)
            *_block(width // 2, width), *_block(width, width), nn.AvgPool2d(2),  # (B, width, 4, 4)
            *_block(width, width),
        )  # fmt: skip
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        """The features (B, width) of pictures (B, C, H, H)."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] != x.shape[3] or x.shape[3] not in self.sizes:
            sides = " or ".join(map(str, self.sizes))
            raise ValueError(
                f"the {self.name} features are those of pictures (B, {self.in_channels}, H, H) with H {sides}, got"
                f" {tuple(x.shape)}; resize the pictures, or take another feature network"
            )
        if x.shape[3] != SIDE:  # enlarged as the digits themselves are; made smaller without aliasing
            x = F.interpolate(x, size=SIDE, mode="bicubic", antialias=x.shape[3] > SIDE)
        return self.layers(x).mean(dim=(2, 3))

    def classify(self, x):
        """The logits (B, num_classes) of pictures (B, C, H, H)."""
        return self.head(self(x))


def _block(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.GroupNorm(8, out_channels), nn.SiLU()


def load_features(name, device=None):
    """The feature network that comes with the package: "digits" (8, 16 or 32 pixels) or "emoji" (16 pixels).

    ValueError for another name.
    """
    if name not in FEATURES:
        raise unknown_name("features", name, FEATURES)
    folder = data_folder() / "weights" / FEATURES[name]
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    network = FeatureNetwork(**config["features"])
    tensors, _ = read_tensors(folder / WEIGHTS)
    load_weights(network, tensors, folder / WEIGHTS)
    return network.to(device or "cpu").eval()


def save_features(network, folder, card):
    """Write config.json, with a data card of plain values, and model.safetensors in float16 to `folder`."""
    config = {"features": network.arguments}
    write_tensors(Path(folder) / WEIGHTS, {key: value.half() for key, value in network.state_dict().items()}, config)
    write_text(Path(folder) / CONFIG, json.dumps(config | {"card": card}, indent=1) + "\n")


@torch.no_grad()
def features_of(pictures, features, batch_size=256):
    """The features (N, D), float64 on the CPU, of pictures (N, C, H, W) in [-1, 1].

    features: a name for `load_features`, or a function of pictures (B, C, H, W) that returns (B, D); a module runs in
    eval mode, on its own device. Raises ValueError for pictures that are no floats in [-1, 1], and for features of
    another shape.
    """
    check_whole("batch_size", batch_size)
    check_pictures(pictures)
    network = load_features(features) if isinstance(features, str) else features
    if not isinstance(network, nn.Module):
        return torch.cat([_checked(network(part), len(part)) for part in pictures.split(batch_size)])
    first = next(network.parameters(), pictures)
    with eval_mode(network):
        return torch.cat([_checked(network(part.to(first.device)), len(part)) for part in pictures.split(batch_size)])


def check_pictures(pictures, name="pictures"):
    """Raise ValueError unless these are pictures (N, C, H, W) with values in [-1, 1]."""
    if not isinstance(pictures, torch.Tensor) or pictures.ndim != 4 or not pictures.is_floating_point():
        got = f"{pictures.dtype} {tuple(pictures.shape)}" if isinstance(pictures, torch.Tensor) else type(pictures)
        raise ValueError(f"{name} must be a tensor of floats (N, C, H, W), got {got}; bytes become x / 127.5 - 1")
    if not pictures.numel():
        raise ValueError(f"{name} hold no picture: their shape is {tuple(pictures.shape)}, expected (N, C, H, W)")
    low, high = (value.item() for value in torch.aminmax(pictures))
    if not (low >= -1.001 and high <= 1.001):  # catches NaN, too
        raise ValueError(
            f"{name} must have values in [-1, 1], got {low:g} to {high:g}; pictures in [0, 1] become 2 x - 1, samples"
            " that were not clipped x.clamp(-1, 1)"
        )


def _checked(values, count):
    if not isinstance(values, torch.Tensor) or values.ndim != 2 or len(values) != count:
        got = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(
            f"a feature network must return (B, D), here ({count}, D), got {got}; pool or flatten what it returns"
        )
    return values.double().cpu()
