"""What cannot work, said before it costs anything: the arguments of a Trainer, its first batch, its first gradients."""

import torch

from minidiff.diffusion import Diffusion, check_labels
from minidiff.training.optimisation import DECAYS

AMP = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_options(steps, fixed, decay, accumulate, world):
    """Raise ValueError for arguments that cannot work."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: the number of training steps must be a whole number from 1 on.")
    batch, parts = fixed["batch_size"], world.size * accumulate if accumulate > 0 else 0
    if batch < 1:
        raise ValueError(f"batch_size={batch!r}: a batch needs at least one picture.")
    if parts < 1 or batch % parts:
        raise ValueError(f"batch_size={batch} cannot be divided among {world.size} processes with accumulate="
                         f"{accumulate}: it is the whole batch of a step; take a multiple of {max(parts, 1)}.")
    if fixed["lr"] <= 0:
        raise ValueError(f"lr={fixed['lr']!r}: the learning rate must be above 0, for example 1e-3.")
    if not callable(decay) and decay not in DECAYS:
        raise ValueError(f"decay={decay!r}: the learning rate can fall as 'cosine' or 'linear' or stay (None), or a "
                         "function optimizer -> torch.optim.lr_scheduler says.")
    if not 0 <= fixed["p_uncond"] <= 1:
        raise ValueError(f"p_uncond={fixed['p_uncond']!r}: the fraction of dropped conditions must be in [0, 1].")
    if fixed["amp"] not in AMP:
        raise ValueError(f"amp={fixed['amp']!r}: mixed precision is 'bf16', 'fp16' or None.")
    if fixed["amp"] == "fp16" and world.mesh:
        raise ValueError("amp='fp16' with parallel='fsdp': its scaling is not shared by the processes; take 'bf16'.")


def check_whole(**values):
    """Raise ValueError for what is no whole number from 1 on."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: a whole number from 1 on.")


def check_prompts(sampling, encode):
    """Raise ValueError for prompts that nobody could encode when the first samples are due."""
    prompts = (sampling or {}).get("prompts")
    if prompts is not None and not callable(encode):
        raise ValueError(f"sampling: prompts={prompts!r} need encode=..., a function from a list of texts to a "
                         "minidiff.Text, also where the data set has embeddings; or leave them out.")


def check_checkpointing(network):
    """Raise ValueError unless a network can compute its blocks anew in the backward pass."""
    if not hasattr(network, "checkpoint"):
        raise ValueError(f"checkpoint_activations=True: {type(network).__name__} has no attribute `checkpoint`, so it "
                         "cannot compute its blocks anew; accumulate=2 saves memory, too.")


def check_data(diffusion, dataset, images, y):
    """The first batch value by value, as this model may have seen other data before, and labels if all are here."""
    diffusion.check_batch(images, y)
    labels = getattr(dataset, "labels", None) if hasattr(dataset, "images") else None
    if labels is not None and isinstance(diffusion, Diffusion) and getattr(diffusion.network, "num_classes", 0):
        check_labels(diffusion.network, torch.as_tensor(labels), len(labels))


def check_gradients(weights, world):
    """With DDP a weight that gets no gradient would keep the others waiting, which it says in words of its own."""
    idle = [name for name, weight in weights if weight.grad is None]
    if idle and world.parallel == "ddp":
        raise ValueError(f"{', '.join(idle[:6])}{' ...' * (len(idle) > 6)}: no gradient reaches {len(idle)} weights of "
                         "the network, and parallel='ddp' waits for all. Remove them, freeze them with "
                         "requires_grad_(False), or take parallel='fsdp'.")
