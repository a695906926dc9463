"""Write docs/samples.png, the picture at the top of the README: `python tools/sample_sheet.py`."""

import textwrap
from pathlib import Path

import torch

import minidiff
from minidiff.course import plots

OUT = Path(__file__).resolve().parents[1] / "docs" / "samples.png"
COLUMNS = 12


@plots.quiet
def sheet(rows):
    """One row of pictures for each (title, images (COLUMNS, 3, H, W))."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(rows), 1, figsize=(8, 0.62 * len(rows)), gridspec_kw={"hspace": 0.08})
    for axis, (title, images) in zip(axes, rows):
        strip = torch.nn.functional.pad(images, (1, 1, 1, 1), value=1.0).permute(2, 0, 3, 1)  # (H, COLUMNS, W, 3)
        axis.imshow(strip.flatten(1, 2).add(1).div(2).clamp(0, 1), interpolation="nearest")
        axis.set_ylabel(textwrap.fill(title, 18), rotation=0, ha="right", va="center", fontsize=8)
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure


def main():
    rows = []
    for name, data, labels in (("emoji-unet", "emoji", (1, 3, 4, 6, 7, 9)), ("shapes-unet", "shapes", None)):
        diffusion, classes = minidiff.load(name), minidiff.load_dataset(data, size=16).classes
        if labels is None:
            y = torch.arange(COLUMNS) * 7 % len(classes)
            rows.append(("Shapes, by label", minidiff.sample(diffusion, COLUMNS, y=y, guidance=2.0, steps=100)))
            continue
        for label in labels:
            images = minidiff.sample(diffusion, COLUMNS, y=label, guidance=2.0, steps=100, seed=label)
            rows.append((classes[label], images))
    sheet(rows).savefig(OUT, dpi=150, bbox_inches="tight")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
