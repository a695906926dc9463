"""`minidiff evaluate`: held-out loss by noise level, distances to the data, and what the pictures show."""

import itertools
import json
from pathlib import Path

from minidiff.cli import say

INCEPTION = "weights-inception-2015-12-05-6526a01e.pth"  # as torch-fidelity calls the file that torchmetrics reads


def main(words):
    """Parse, measure, print, write."""
    from minidiff.commands.models import open_model
    from minidiff.commands.options import Evaluate
    from minidiff.commands.parsing import parsed
    from minidiff.safe_files import write_text

    options = parsed(Evaluate, words[1:] if words and not words[0].startswith("-") else words, "evaluate MODEL")
    opened = open_model(words, "evaluate", options.device)
    out = Path(options.out or (opened.folder or Path(".")) / "evaluation.json")
    results = evaluate(opened, options)
    write_text(out, json.dumps({"model": words[0], **results}, indent=1) + "\n")
    say(table(results) + f"\nwrote {out}")


def evaluate(opened, options):
    """{"loss": {t: [mean, its standard error]}, "distances": {...}, "oracle": {...}, ...} of plain values."""
    import torch

    from minidiff.commands.sample import as_pictures
    from minidiff.samplers import sample

    if options.num < 2 or options.batch_size < 1 or not all(0 < t <= 1 for t in options.levels):
        raise ValueError(f"--num {options.num} must be at least 2, --batch-size {options.batch_size} at least 1, and "
                         f"--levels {' '.join(map(str, options.levels))} times in (0, 1].")
    diffusion = opened.diffusion
    networks = chosen_features(options, diffusion)  # before anything slow: it may be missing
    dataset, name = opened.data(options, download=options.download)
    images, labels, captions = held_out(dataset, options.num, options.seed)
    if tuple(images.shape[1:]) != diffusion.shape:
        raise ValueError(f"--data {name} has pictures {tuple(images.shape[1:])} and the model draws {diffusion.shape}; "
                         "evaluate it on the data it was trained on.")
    y = conditions(opened, labels, captions, options.download)
    results = {"data": name, "pictures": len(images), "loss": losses(diffusion, images, y, options), "distances": {}}
    if diffusion.latents is not None or (not networks and name != "shapes"):
        return results
    chosen = [i % len(images) for i in range(options.num)]
    arguments = opened.sampling(options)
    pictures = sample(diffusion, options.num, y=None if y is None else y[torch.tensor(chosen)], seed=options.seed,
                      batch_size=options.batch_size, progress=options.progress, **arguments).cpu()
    pictures = as_pictures(diffusion, pictures).clamp(-1, 1)
    results["sampling"] = {"num": options.num, "seed": options.seed, **arguments}
    for features in networks:
        results["distances"] |= distances(images, pictures, features)
    if name == "shapes":
        results["oracle"] = oracle(diffusion, dataset, pictures, [labels[i] for i in chosen],
                                   [captions[i] for i in chosen])
    return results


def held_out(dataset, num, seed):
    """(images (n, C, H, W) in [-1, 1], labels (n,), n captions) of at most `num` records; at random from memory."""
    import torch

    if hasattr(dataset, "images"):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:num]
        return dataset.images()[order].float(), dataset.labels[order], [dataset.captions[i] for i in order.tolist()]
    records = list(itertools.islice(iter(dataset), num)) if hasattr(dataset, "stream") else [
        dataset[i * len(dataset) // min(num, len(dataset))] for i in range(min(num, len(dataset)))]
    images, labels, captions = zip(*records)
    return torch.stack(images), torch.as_tensor(labels), list(captions)


def conditions(opened, labels, captions, download=False):
    """What the model is told of each picture, on its device."""
    from minidiff.commands.data import load_encoder
    from minidiff.layers import Text
    from minidiff.text import collate_texts, padded

    network, device = opened.diffusion.network, opened.diffusion.device
    if getattr(network, "num_classes", 0):
        return labels.to(device)
    if not getattr(network, "text_dim", 0):
        return None
    if isinstance(captions[0], Text):
        text = collate_texts(captions)
    elif opened.encoder is None:
        raise ValueError("the text encoder of this model is not written beside it, so its captions cannot be read.")
    else:
        text = load_encoder(opened.encoder, device, download)(captions)
    length = network.arguments.get("num_text_tokens")
    return (text if length is None else padded(text, length)).to(device)


def losses(diffusion, images, y, options):
    """{t: [mean loss over the held-out pictures, its standard error]}, with the same noise at every t."""
    import torch

    low, high = diffusion.value_range
    if diffusion.latents is None:
        images = (images + 1) * ((high - low) / 2) + low
    found = {}
    with torch.no_grad():
        for t in options.levels:
            generator, values = torch.Generator().manual_seed(options.seed), []
            for first in range(0, len(images), options.batch_size):
                part = slice(first, first + options.batch_size)
                x0 = images[part].to(diffusion.device)
                eps = torch.randn(x0.shape, generator=generator).to(x0.device)
                time = torch.full((len(x0),), t, device=x0.device)
                values.append(diffusion.loss(x0, None if y is None else y[part], t=time, eps=eps).cpu())
            values = torch.cat(values)
            error = values.std() / len(values) ** 0.5
            found[f"{t:g}"] = [round(values.mean().item(), 6), round(error.item(), 6)]
    return found


def chosen_features(options, diffusion):
    """The feature networks for this model, by name or as a function; those that fit its pictures for "auto"."""
    from minidiff.metrics import load_features

    if options.features == "none" or diffusion.latents is not None:
        return []
    if options.features == "inception":
        return [inception(options.download, diffusion.device)]
    known = {name: load_features(name) for name in ("digits", "emoji")}
    fitting = [name for name, network in known.items()
               if network.in_channels == diffusion.shape[0] and diffusion.shape[1] in network.sizes]
    if options.features != "auto" and options.features not in fitting:
        raise ValueError(f"--features {options.features}: not for pictures {diffusion.shape}; "
                         f"{' or '.join(fitting) or 'inception'} is, or none.")
    return fitting if options.features == "auto" else [options.features]


def inception(download, device):
    """The function from pictures (B, C, H, W) in [-1, 1] to Inception's 2048 features that FID is defined by."""
    import torch

    file = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    if not file.is_file() and not download:
        raise FileNotFoundError(f"Inception's weights (91 MB) are not in {file}: add --download to fetch them once, or "
                                "copy them there.")
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]).to(device)
    except ImportError as error:  # torchmetrics, or torch-fidelity, which it asks for
        raise ImportError("--features inception needs two packages: pip install torchmetrics torch-fidelity") from error

    def inception_2048(pictures):
        pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
        return network(pixels.to(device)).reshape(len(pixels), -1)

    return inception_2048


def distances(real, fake, features):
    """{name: {"value", "spread", "features", "pictures", "warning"}} of the Fréchet and the kernel distance."""
    from minidiff.metrics import frechet_distance, kernel_distance

    found = {}
    for measure in (frechet_distance, kernel_distance):
        distance = measure(real.clamp(-1, 1), fake, features)
        found[f"{distance.name} ({distance.features})"] = {
            "value": distance.value, "spread": distance.spread, "pictures": list(distance.counts),
            "warning": distance.warning}  # fmt: skip
    return found


def oracle(diffusion, dataset, pictures, labels, captions):
    """What the oracle of shapes reads: shares that show their caption or class; else the share it can read at all."""
    from minidiff.datasets import shapes

    if getattr(diffusion.network, "text_dim", 0):
        return shapes.score(pictures, captions)
    if getattr(diffusion.network, "num_classes", 0) and dataset.scenes == "one":
        return shapes.score(pictures, [f"a {dataset.classes[int(label)]}" for label in labels])
    return {"readable": sum(scene is not None for scene in shapes.read(pictures)) / len(pictures)}


def table(results):
    """The results as lines."""
    lines = [f"{results['pictures']} held-out pictures of {results['data']}", "     t  loss"]
    lines += [f"{t:>6}  {mean:.5f} ± {error:.5f}" for t, (mean, error) in results["loss"].items()]
    for name, found in results["distances"].items():
        spread = f" ± {found['spread']:.2g}" if found["spread"] is not None else ""
        counts = " against ".join(map(str, found["pictures"]))
        warning = f"; {found['warning']}" if found["warning"] else ""
        lines.append(f"{name:<28} {found['value']:.4g}{spread}  ({counts} pictures{warning})")
    lines += [f"{'oracle: ' + name:<28} {share:.1%}" for name, share in results.get("oracle", {}).items()]
    return "\n".join(lines)
