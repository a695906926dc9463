"""How good the samples are, measured while a model trains."""

import torch

from minidiff.images import save_grid
from minidiff.metrics import features_of, frechet, kernel
from minidiff.samplers import sample
from minidiff.text import padded

KERNEL = 5000  # features at most for the kernel distance, whose cost grows with their square


def distance_to(dataset, features, num=1000, *, seed=0, y=None, batch_size=64, **sampling):
    """A function diffusion -> {name: float} for Trainer(evaluate=...): distances of `num` samples to a data set.

    dataset   in memory (`.images()`), or records by number; of the longer ones the first 50,000
    features  the name of shipped feature networks ("digits", "emoji"), or any module (B, 3, H, W) -> (B, D)
    y         None, one label for all, or a function count -> labels or Text; classes are taken in turn by default
    sampling  arguments of minidiff.sample

    Several processes share the sampling. Both distances are biased by their numbers of pictures and depend on the
    features: they compare moments of one run, and are an "FID" only on Inception features and 50,000 samples.
    """
    real = []  # their features, once they were asked for

    def evaluate(diffusion):
        from torch import distributed

        if not real:
            real.append(features_of(pictures_of(dataset), features))
        many = distributed.is_initialized()
        rank, size = (distributed.get_rank(), distributed.get_world_size()) if many else (0, 1)
        count = -(-num // size)
        labels = y(count) if callable(y) else y
        classes = getattr(diffusion.network, "num_classes", 0)
        if labels is None and classes:
            labels = [(rank * count + i) % classes for i in range(count)]
        options = dict(y=labels, seed=seed + rank, batch_size=batch_size, progress=False)
        fake = features_of(sample(diffusion, count, **options | sampling).clamp(-1, 1), features)
        if many:
            parts = [None] * size
            distributed.all_gather_object(parts, fake)
            fake = torch.cat(parts)[:num]
        return {"frechet": frechet(real[0], fake), "kernel": kernel(real[0][:KERNEL], fake[:KERNEL])}

    return evaluate


def pictures_of(dataset, most=50_000):
    """The pictures (N, C, H, W) of a data set, at most so many."""
    if hasattr(dataset, "images"):
        return dataset.images()[:most]
    return torch.stack([torch.as_tensor(dataset[index][0]) for index in range(min(len(dataset), most))])


def sheet(diffusion, path, y, encode, sampling, writes=True):
    """A sheet of samples in the .png file `path`: of what `sampling` says, else of all classes or the conditions y.

    sampling: arguments of minidiff.sample, or prompts=[...], which `encode` turns into Text. Only where it `writes`
    there is a file; a full disk is told, and no error.
    """
    options = dict(num=16, progress=False) | sampling
    prompts = options.pop("prompts", None)
    if prompts is not None:
        text, places = encode(list(prompts)), getattr(diffusion.network, "num_text_tokens", None)
        text = text if places is None else padded(text, places)
        options |= dict(num=len(prompts), y=text.to(diffusion.device))
    elif "y" not in options and y is not None:
        classes = getattr(diffusion.network, "num_classes", 0)
        options["num"] = options["num"] if classes else min(options["num"], len(y[:options["num"]].tokens))
        options["y"] = [i % classes for i in range(options["num"])] if classes else y[:options["num"]]
    pictures = sample(diffusion, **options)
    if not writes or diffusion.latents is not None:
        return
    try:
        save_grid(pictures, path)
    except OSError as error:
        print(f"{path} could not be written: {error.strerror}")
