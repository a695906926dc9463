"""Train the weights that come with the package: `python tools/train_weights.py emoji-unet`.

A run resumes by itself from its last checkpoint (every 250 steps, in the cache folder), so it can be killed any time.
At the end, or at any time with --export, the averaged weights go to data/weights/NAME with a data card, and the line
for data/README.md is printed.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from minidiff import schedules
from minidiff.backbones import create_model
from minidiff.checkpoints import WEIGHTS, build, describe, from_pretrained, load_weights, save_pretrained
from minidiff.datasets import InMemory, load_dataset, shapes
from minidiff.diffusion import Diffusion, eval_mode
from minidiff.errors import unknown_name
from minidiff.files import cache_folder, data_folder
from minidiff.samplers import sample
from minidiff.scorers import Classifier, TextScorer
from minidiff.text import WordTokenizer, text_encoder
from minidiff.training import read_averaged, train

# What the two tiers share. cpu: 16 pixels, 1.2 M weights. gpu: 32 pixels, 2.3 M weights (at most 5 MB in 16 bits).
CPU = dict(batch_size=64, lr=1e-3, warmup=200, final_lr=2e-5, ema=0.9995, p_uncond=0.1)
GPU = dict(batch_size=256, lr=1e-3, warmup=500, final_lr=2e-5, ema=0.9998, p_uncond=0.1, amp="bf16", compile=True)
# For judges of noisy pictures. 3450 are few: weight decay, dropout and shifts keep them from being learnt by heart.
JUDGE = dict(lr=1e-3, warmup=200, final_lr=1e-5, ema=0.999, weight_decay=0.1)
# Text to image: ASCEND with 2 to 3 M weights, told by the frozen word encoder (tools/train_text.py).
TEXT = dict(batch_size=64, lr=1e-3, warmup=500, final_lr=1e-5, ema=0.9995, p_uncond=0.1, times="late")
# Which word belongs to which thing depends on their order and on the relation at once, and no single one of them tells:
# a network that gets both from the start learns neither for ten thousand steps. So first all captions name the left or
# upper thing first, and order alone decides.
FIRST = dict(data=dict(scenes="two", turned=1.0), training=dict(decay=None))
ASCEND = dict(name="ascend_tiny", channels=32, channel_mult=(1, 2, 3), head_dim=16, attn_resolutions=(16, 8, 4),
              text_dim=128, pooled_dim=384, coordinates=True, text_mlp=True)  # fmt: skip
ASCEND_32 = ASCEND | dict(img_size=32, channel_mult=(1, 2, 3, 3), num_blocks=(1, 1, 2, 2))
NET_32 = dict(name="ddpm_tiny", image_size=32, ch=32, ch_mult=(1, 2, 2, 2), num_res_blocks=2)
EMOJI_LICENCE = "Apache-2.0 (Noto), CC-BY-4.0 (Twemoji)"

RECIPES = {
    "emoji-unet": dict(
        data=dict(name="emoji", size=16, split="train"), licence=EMOJI_LICENCE,
        network=dict(name="ddpm_tiny", ch=32, num_classes=10), steps=24000, training=CPU),
    "shapes-unet": dict(
        data=dict(name="shapes", size=16), licence="made by minidiff, Apache-2.0",
        network=dict(name="ddpm_tiny", ch=32, num_classes=24), steps=4000, training=CPU | dict(ema=0.999)),
    "emoji-unet-32": dict(
        data=dict(name="emoji", size=32, split="train"), licence=EMOJI_LICENCE,
        network=NET_32 | dict(num_classes=10), steps=60000, training=GPU),
    "shapes-unet-32": dict(
        data=dict(name="shapes", size=32), licence="made by minidiff, Apache-2.0",
        network=NET_32 | dict(num_classes=24), steps=20000, training=GPU | dict(workers=4)),
    "emoji-classifier": dict(
        data=dict(name="emoji", size=16, split="train"), licence=EMOJI_LICENCE,
        network=dict(name="classifier_tiny", dropout=0.2), steps=5000, training=JUDGE | dict(batch_size=64)),
    "emoji-clip": dict(
        data=dict(name="emoji", size=16, split="train"), licence=EMOJI_LICENCE,
        network=dict(name="clip_tiny", dropout=0.2, word_dropout=0.1), steps=4000,
        training=JUDGE | dict(batch_size=96)),
    "shapes-ascend": dict(
        data=dict(name="shapes", size=16, held_out="default", unsaid=0.3, turned=0.6, num=10**6), encoder="words",
        # Without the pooled vector, which only whispers whose a colour is: in the recorded runs of `words` a network
        # that hears it beside the tokens obeys as well, and no better (notebook 17).
        licence="made by minidiff, Apache-2.0", network=ASCEND | dict(pooled_dim=0, num_blocks=(1, 2, 2)),
        first=FIRST | dict(steps=2500), steps=14000, training=TEXT),
    "emoji-t2i": dict(
        data=dict(name="emoji", size=16, split="train"), encoder="words", licence=EMOJI_LICENCE,
        network=ASCEND | dict(dropout=0.1), steps=5000, training=TEXT),
    "shapes-ascend-32": dict(
        data=dict(name="shapes", size=32, held_out="default", unsaid=0.3, turned=0.6, num=10**6), encoder="words",
        licence="made by minidiff, Apache-2.0", network=ASCEND_32 | dict(pooled_dim=0),
        first=FIRST | dict(steps=8000), steps=60000, training=GPU | dict(workers=4, times="late")),
    "emoji-t2i-32": dict(
        data=dict(name="emoji", size=32, split="train"), encoder="words", licence=EMOJI_LICENCE,
        network=ASCEND_32 | dict(dropout=0.1), steps=40000, training=GPU),
}
LEVELS = (0.05, 0.25, 0.5, 0.75)  # of noise, at which a judge is measured  # fmt: skip
SMOKE = dict(steps=6, batch_size=4, warmup=2, save_every=3)


def main():
    """Train, or with --export only write, one of RECIPES."""
    arguments = parse()
    name, recipe = arguments.name, RECIPES[arguments.name]
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    folder = arguments.folder or cache_folder() / "runs" / (name + "-smoke" * arguments.smoke)
    out = arguments.out or (folder / "weights" if arguments.smoke else data_folder() / "weights" / name)
    if not arguments.export:
        steps = arguments.steps or recipe["steps"]
        options = recipe["training"] | dict(steps=steps, save_every=250, seed=arguments.seed)
        options |= {key: SMOKE[key] for key in SMOKE} if arguments.smoke else {}
        device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cpu":
            options |= dict(amp=None, compile=False, workers=0)
        if "encoder" in recipe:
            options["encode"] = text_encoder(recipe["encoder"], device=device)
        torch.manual_seed(arguments.seed)  # the initial weights
        dataset = load_dataset(**recipe["data"])
        diffusion = make(recipe, dataset)
        if arguments.start:
            diffusion.load_state_dict(from_pretrained(arguments.start).state_dict())
        dataset = dataset if isinstance(diffusion, Diffusion) else shifted(dataset, diffusion)
        weights = sum(weight.numel() for weight in diffusion.parameters())
        print(f"{name}: {weights:,} weights, {options['steps']} steps of {options['batch_size']} on {device}, {folder}")
        if "first" in recipe and not arguments.start:
            lesson = recipe["first"]
            more = lesson["training"] | ({} if arguments.smoke else dict(steps=lesson["steps"]))
            data = load_dataset(**recipe["data"] | lesson["data"])
            begun = train(diffusion, data, folder=folder / "first", device=device, **options | more)
            diffusion.load_state_dict(begun.ema.state_dict())
        train(diffusion, dataset, folder=folder, device=device, stop_after=arguments.stop_after_seconds, **options)
    export(name, recipe, folder, out, arguments)


def make(recipe, dataset):
    """The untrained Diffusion, Classifier or TextScorer of a recipe; a scorer knows the words of its captions."""
    size = recipe["data"]["size"]
    options, name = dict(shape=(3, size, size)), recipe["network"]["name"]
    if name.startswith("clip"):
        tokenizer = WordTokenizer.from_captions(dataset.captions, length=12)
        network = create_model(**recipe["network"], vocab_size=len(tokenizer))
        return TextScorer(network, schedules.cosine(), tokenizer, **options)
    network = create_model(**recipe["network"])
    if name.startswith("classifier"):
        return Classifier(network, schedules.cosine(), **options)
    return Diffusion(network, schedules.cosine(), "v", **options)


def shifted(dataset, judge):
    """The data set with each picture moved by -1, 0 or 1 pixel along both axes, white where nothing was.

    Its labels are what the judge is told of a picture: the class, or the tokens of the caption.
    """
    labels = judge.tokens(dataset.captions).cpu() if isinstance(judge, TextScorer) else dataset.labels
    size, wide = dataset.pictures.shape[-1], F.pad(dataset.pictures, (1, 1, 1, 1), value=255)
    moved = torch.cat([wide[:, :, i:i + size, j:j + size] for i in range(3) for j in range(3)])
    return InMemory(moved, labels.repeat(9, *[1] * (labels.ndim - 1)), dataset.captions * 9, dataset.classes)


@torch.no_grad()
def accuracy(judge, dataset, draws=4, among=32, of=slice(None)):
    """{t: share of noised pictures judged right}: the class, or the own caption among 31 other ones and itself.

    `of` are the pictures that count, by default all of them; the other captions come from the whole set.
    """
    images, answers = dataset.images(), {}
    captions = sorted(set(dataset.captions))
    own = torch.tensor([captions.index(caption) for caption in dataset.captions])
    with eval_mode(judge):
        for t in LEVELS:
            generator, right = torch.Generator().manual_seed(0), []
            for _ in range(draws):
                x_t = judge.forward_process(images, t, torch.randn(images.shape, generator=generator))
                if isinstance(judge, Classifier):
                    right.append(judge.logits(x_t, t).argmax(1) == dataset.labels)
                    continue
                chance = torch.rand(len(images), len(captions), generator=generator)
                rivals = chance.scatter(1, own[:, None], -1).topk(min(among, len(captions)) - 1).indices  # never own
                scores = judge.similarity(x_t, t, captions)
                right.append((scores.gather(1, rivals) < scores.gather(1, own[:, None])).all(1))
            answers[str(t)] = round(torch.stack(right)[:, of].float().mean().item(), 3)
    return answers


def measured(judge, recipe, few):
    """What the data card says of a judge: classes and accuracy, on what it has seen and on what was held out."""
    splits, draws = ("test",) if few else ("train", "test"), 1 if few else 4
    sets = {split: load_dataset(**recipe["data"] | dict(split=split)) for split in splits}
    card = {"classes": sets["test"].classes}
    results = {split: accuracy(judge, data, draws) for split, data in sets.items()}
    if isinstance(judge, Classifier):
        return card | {"accuracy": results}
    known = torch.tensor([not judge.tokenizer.unknown(caption) for caption in sets["test"].captions])
    return card | {"caption_among_32": results | {"test, known words": accuracy(judge, sets["test"], draws, of=known)}}


def obedience(diffusion, recipe, count, steps=25, guidance=3.0):
    """What the oracle reads in samples: of fresh captions, and of those with held-out pairs.

    With guidance each of the steps asks the network twice, so 25 steps are 50 evaluations.
    """
    encode, found = text_encoder(recipe["encoder"]), {"prompts": count, "steps": steps, "guidance": guidance}
    for split in ("test", "held_out"):
        captions = load_dataset(**recipe["data"] | dict(split=split, unsaid=0.0, turned=0.0)).batch(range(count))[2]
        pictures = sample(diffusion, count, y=encode(captions), sampler="dpmpp_2m", steps=steps, guidance=guidance,
                          batch_size=64, progress=False)  # fmt: skip
        found[split] = {key: round(share, 3) for key, share in shapes.score(pictures, captions).items()}
    return found


def export(name, recipe, folder, out, arguments):
    """Write the averaged weights of the run in `folder` to `out`, in the 16-bit format that loses less."""
    few = arguments.smoke
    tensors, about = read_averaged(folder)
    run, step = about["arguments"], about["step"]
    diffusion = build(run)
    load_weights(diffusion, tensors, folder)
    dtype = min(("float16", "bfloat16"), key=lambda dtype: rounding(diffusion, dtype))
    losses = about["losses"][:step]
    card = {
        "dataset": recipe["data"], "licence": recipe["licence"], **about.get("machine", {}),
        "steps": step, "of_steps": run["steps"], "seconds": round(about["seconds"]),
        "loss": round(losses[-max(1, step // 20):].mean().item(), 4), "file_dtype": dtype,
        "rounding": {dtype: float(f"{rounding(diffusion, dtype):.2g}") for dtype in ("float16", "bfloat16")},
        "training": {key: value for key, value in run.items() if key not in describe(diffusion)},
        "command": f"python tools/train_weights.py {name} --steps {run['steps']} --seed {run['seed']}"
                   + (f" --start {arguments.start}" if arguments.start else ""),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    if (folder / "first").exists():
        begun = read_averaged(folder / "first")[1]
        card["first"] = recipe["first"] | {"steps": begun["step"], "seconds": round(begun["seconds"])}
    if "encoder" in recipe:
        card["encoder"] = recipe["encoder"]
        if recipe["data"]["name"] == "shapes":
            card["oracle"] = obedience(diffusion.eval(), recipe, 8 if few else 1000)
    if not isinstance(diffusion, Diffusion):
        card |= measured(diffusion.eval(), recipe, few)
    save_pretrained(diffusion, out, card, dtype)
    size = os.path.getsize(out / WEIGHTS) / 1e6
    print(f"wrote {out} ({size:.1f} MB). For data/README.md:\n"
          f"| `{name}` | {size:.1f} MB {dtype} | {recipe['data']} | {card.get('device')} | {step} | "
          f"{card['seconds']} | {card['loss']} | `{card['command']}` |")


def rounding(diffusion, dtype):
    """Root mean square error of the weights in this format, over their own root mean square."""
    weights = torch.cat([weight.detach().double().flatten() for weight in diffusion.parameters()])
    return ((weights.to(getattr(torch, dtype)).double() - weights).norm() / weights.norm()).item()


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", help=", ".join(RECIPES))
    parser.add_argument("--folder", type=Path, help="of the run's checkpoint; default: runs/NAME in the cache folder")
    parser.add_argument("--out", type=Path, help="where the weights go; default: data/weights/NAME")
    parser.add_argument("--start", type=Path, help="a folder of stored weights to begin with, such as shipped ones")
    parser.add_argument("--steps", type=int, help="in all; the learning rate falls towards this step")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--stop-after-seconds", type=float, help="stop then, with a checkpoint and an export")
    parser.add_argument("--export", action="store_true", help="only write the averaged weights of the last checkpoint")
    parser.add_argument("--smoke", action="store_true", help="a few steps into the run's own folder, to test all this")
    arguments = parser.parse_args()
    if arguments.name not in RECIPES:
        sys.exit(str(unknown_name("recipe", arguments.name, RECIPES)))
    return arguments


if __name__ == "__main__":
    main()
