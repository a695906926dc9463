"""The training loop.

Everything random (order of pictures, times, noise, dropped labels, dropout) comes from streams seeded by (seed, step),
so a run needs no random state to be saved, and one that was killed goes on as if nothing had happened.
Nothing in the loop waits for the device except the progress bar, a few times a minute, and checkpoints.
"""

import contextlib
import math

import torch

from minidiff.checkpoints import describe
from minidiff.training.checkpoint import load_checkpoint, save_checkpoint
from minidiff.training.data import batches, stream_seed
from minidiff.training.ema import EMA
from minidiff.training.history import History
from minidiff.training.progress import Progress

AMP = {None: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(diffusion, dataset, *, steps, batch_size=64, lr=1e-3, warmup=100, decay="cosine", final_lr=0.0,
          betas=(0.9, 0.999), weight_decay=0.0, clip=1.0, ema=0.999, ema_warmup=True, weight="uniform", times=None,
          p_uncond=0.0, seed=0, folder=None, save_every=1000, resume=True, stop_after=None, amp=None, compile=False,
          workers=0, progress=True, on_step=None, device=None):
    """Train `diffusion` on `dataset` for `steps` steps of AdamW; returns a History, whose `.ema` is the averaged model.

    dataset      finite in memory (`.images()` (N, C, H, W), `.labels` (N,)): moved to the device once; or any torch
                 data set of records (image, label, ...), read by a DataLoader with `workers` processes
    lr, warmup   rises linearly for `warmup` steps to `lr`; then decay="cosine" falls to `final_lr` at `steps`,
                 decay=None stays
    ema          decay of the averaged weights, None for none; with `ema_warmup` d = min(ema, (1 + step) / (10 + step))
    clip         largest norm of the gradient, None for no limit
    weight       of the loss over times, as in `Diffusion.loss`; `p_uncond` is the fraction of conditions dropped there
    times        how times are drawn: None as the schedule does, or "logit_normal" (Diffusion.sample_times)
    folder       where checkpoint.safetensors is kept, every `save_every` steps and at the end. With `resume` a run goes
                 on from there, on a CPU bit for bit as if never interrupted; other arguments raise ValueError
    stop_after   stop after so many seconds of this call, with a checkpoint; the learning rate still aims at `steps`
    amp          "bf16" or "fp16": mixed precision, on CUDA only; compile: torch.compile the network
    on_step      called as on_step(step, history) after each step; step counts those done
    device       default: where the network is

    The model is trained in place and left in eval mode. Raises FloatingPointError when the loss is no longer finite.
    """
    device = torch.device(device or next(diffusion.parameters()).device)
    fixed = dict(batch_size=batch_size, lr=lr, warmup=warmup, decay=decay, final_lr=final_lr, betas=betas, clip=clip,
                 weight_decay=weight_decay, ema=ema, ema_warmup=ema_warmup, weight=weight, times=times,
                 p_uncond=p_uncond, seed=seed, amp=amp)  # what a resumed run must share with its beginning
    fixed |= {"steps": steps} if decay else {}
    _check(steps, fixed, device)
    diffusion.to(device).train()
    if compile and device.type == "cuda":  # not in eager mode: each group norm would transpose twice
        diffusion.network.to(memory_format=torch.channels_last)
    optimizer = _optimizer(diffusion, lr, betas, weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")
    average = EMA(diffusion, ema, ema_warmup) if ema is not None else None
    history = History(steps, batch_size, device, average)
    run = fixed | _identity(diffusion), diffusion, average, optimizer, scaler, history
    if folder is not None and resume:
        load_checkpoint(folder, *run)
    stream = batches(dataset, batch_size, seed, history.step, device, diffusion.network, workers)
    generator, bar = torch.Generator(device), Progress(history, progress)
    with _own_random_state(device), _compiled(diffusion.network, compile), contextlib.closing(bar):
        first = history.start()
        for step in range(first, steps):
            images, y = next(stream)
            if step == first:
                diffusion.check_batch(images, y)  # value by value, though this model may have seen other data before
            generator.manual_seed(stream_seed(seed, "noise", step))
            torch.manual_seed(stream_seed(seed, "layers", step))  # dropout draws from the global generator
            t = diffusion.sample_times(len(images), generator, device, times)
            with torch.autocast(device.type, AMP[amp], enabled=amp is not None):
                losses = diffusion.loss(images, y, t=t, weight=weight, p_uncond=p_uncond, generator=generator)
            _set_lr(optimizer, learning_rate(step, steps, lr, warmup, decay, final_lr))
            _update(losses.mean(), optimizer, scaler, clip)
            if average:
                average.update(step)
            history.record(losses, t)
            if on_step is not None:
                on_step(history.step, history)
            last = history.step == steps or (stop_after is not None and history.elapsed() >= stop_after)
            bar.update(last)
            if folder is not None and (last or history.step % save_every == 0):
                history.mean_loss(save_every)  # a checkpoint of broken weights would help nobody
                save_checkpoint(folder, *run)
            if last:
                break
    diffusion.eval()
    return history.finish()


def learning_rate(step, steps, lr, warmup=0, decay="cosine", final_lr=0.0):
    """The learning rate of step number `step` (0, 1, ...): linear rise, then half a cosine down, or constant."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if decay is None:
        return lr
    done = (step - warmup) / max(steps - warmup, 1)
    return final_lr + (lr - final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def _update(loss, optimizer, scaler, clip):
    """One step of the optimiser down the gradient of `loss`. (Without fp16 the scaler passes everything through.)"""
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    if clip is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_([w for group in optimizer.param_groups for w in group["params"]], clip)
    scaler.step(optimizer)
    scaler.update()


def _set_lr(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr


def _optimizer(diffusion, lr, betas, weight_decay):
    """AdamW, fused into one kernel where the device has it: on a CPU that is 6 times faster than the plain loop."""
    weights = [weight for weight in diffusion.parameters() if weight.requires_grad]
    fused = weights[0].device.type in ("cpu", "cuda", "mps", "xpu")
    return torch.optim.AdamW(weights, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)


@contextlib.contextmanager
def _own_random_state(device):
    """Seed the global generators inside, and give the caller back the state they had."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def _compiled(network, compile):
    """Inside, with `compile`, the network is compiled; its weights and their names stay as they are."""
    if not compile:
        yield
        return
    network.compile()
    try:
        yield
    finally:
        network._compiled_call_impl = None


def _identity(diffusion):
    """What a checkpoint records of the model besides its weights; of a network without a name, their shapes."""
    network = diffusion.network
    if hasattr(network, "name"):
        return describe(diffusion)
    shapes = [[name, *weight.shape] for name, weight in network.named_parameters()]
    return {"network": type(network).__name__, "weights": shapes}


def _check(steps, fixed, device):
    """Raise ValueError for arguments that cannot work."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: the number of training steps must be a whole number from 1 on.")
    if fixed["batch_size"] < 1:
        raise ValueError(f"batch_size={fixed['batch_size']!r}: a batch needs at least one picture.")
    if fixed["lr"] <= 0:
        raise ValueError(f"lr={fixed['lr']!r}: the learning rate must be above 0, for example 1e-3.")
    if fixed["decay"] not in (None, "cosine"):
        raise ValueError(f"decay={fixed['decay']!r}: the learning rate can fall as 'cosine' or stay (None).")
    if not 0 <= fixed["p_uncond"] <= 1:
        raise ValueError(f"p_uncond={fixed['p_uncond']!r}: the fraction of dropped conditions must be in [0, 1].")
    amp = fixed["amp"]
    if amp not in AMP:
        raise ValueError(f"amp={amp!r}: mixed precision is 'bf16', 'fp16' or None.")
    if amp is not None and device.type != "cuda":
        raise ValueError(f"amp={amp!r} on {device.type}: mixed precision is for CUDA, on a CPU it is slower; amp=None.")
