"""`sample()`: pictures from a diffusion model, by any sampler, with a progress bar."""

import inspect
import sys

import torch
from tqdm import tqdm

from minidiff.diffusion import check_labels, eval_mode
from minidiff.errors import check_whole, unknown_name
from minidiff.guidance import classifier_free, condition, dynamic_threshold, guided
from minidiff.layers import Text
from minidiff.prediction import clip
from minidiff.samplers.ancestral import Step, ddim, ddpm
from minidiff.samplers.dpm_solver import (
    SOLVERS,
    dpm_2m,
    dpm_2s,
    dpm_3m,
    dpm_3s,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3s,
)
from minidiff.samplers.noise import seeded_noise
from minidiff.samplers.ode import euler, heun, midpoint
from minidiff.samplers.sde import churn, euler_maruyama, predictor_corrector, reverse_diffusion
from minidiff.samplers.unipc import unipc
from minidiff.spacings import spacing as make_times

SAMPLERS = {
    "ddim": ddim, "ddpm": ddpm, "euler": euler, "midpoint": midpoint, "heun": heun, "churn": churn,
    "euler_maruyama": euler_maruyama, "reverse_diffusion": reverse_diffusion,
    "predictor_corrector": predictor_corrector, **SOLVERS, "unipc": unipc,
}  # fmt: skip

__all__ = [
    "SAMPLERS", "Step", "bind", "churn", "counted", "ddim", "ddpm", "dpm_2m", "dpm_2s", "dpm_3m", "dpm_3s", "dpmpp_2m",
    "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_3m", "dpmpp_3s", "euler", "euler_maruyama", "heun", "midpoint",
    "predictor_corrector", "reverse_diffusion", "sample", "seeded_noise", "unipc",
]  # fmt: skip


def sample(
    diffusion, num=8, *, y=None, sampler="ddim", steps=50, spacing=None, t_end=0.0, guidance=1.0, gradient=None,
    target=None, seed=0, batch_size=64, clipped=None, progress=True, on_step=None, **options,
):  # fmt: skip
    """`num` pictures (num, C, H, W), float32, from a Diffusion.

    y              a label for all, a list or tensor (num,) of labels, a Text of one or num texts, or None
    sampler        a name of SAMPLERS
    steps          of the sampler: intervals, for the single-step solvers (2s, 3s) evaluations
    spacing, t_end where it stops: see spacings.py; by default even times down to 0, on EDM's schedule those of Karras
    guidance       the classifier-free scale, 1 for none
    gradient       gradient(x_t, t, target), the scaled gradient of some log p(target | x_t): guidance.gradient_of
    target         for the gradient: what is wanted, one for all pictures or a list or tensor of num
    seed           picture i depends on (seed, i) alone, not on the batch; or a list of num such pairs
    clipped        keep each x0 in the value range: by default yes, unless the model works on latents; or "dynamic".
                   x itself may end outside after few steps of a sampler that does not end with x0
    on_step        on_step(step) sees every Step(x, t, x0) of every batch
    options        those of the sampler (eta, variance, order, ...) and of guidance.classifier_free (negative, interval,
                   rescale, power, guide_first)

    The progress bar ends with the number of evaluations of the denoiser. Raises ValueError for an unknown sampler or
    option, fewer than one step or more than the schedule has, a num, batch_size or seed that is no such number, and
    labels, guidance, gradient, target or clipped that do not fit.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    run, guiding = SAMPLERS[sampler], _guiding(options)
    ancestral = "gradient" in _keywords(run)  # this sampler shifts its mean, instead of the score
    _check_options(diffusion, sampler, options, guidance, guiding)
    if sampler == "ddpm" and diffusion.learned_range:
        options.setdefault("variance", "learned")
    _check_pull(gradient, target, clipped, diffusion)
    for name, value in (("num", num), ("batch_size", batch_size)):
        check_whole(name, value, 1)
    seeds = _seeds(seed, num)
    times = make_times(diffusion.schedule, steps, spacing or _default_spacing(diffusion), t_end=t_end)
    place = {t: i for i, t in enumerate(times)}
    y, negative = _labels("y", y, num, diffusion), _labels("negative", guiding.pop("negative", None), num, diffusion)
    check_labels(diffusion.network, y, num)
    _check_negative(negative, y, num, diffusion)
    target = targets_of(target, num, diffusion.device)
    _check_target(gradient, target)
    clipped = diffusion.latents is None if clipped is None else clipped
    batches = [slice(first, min(first + batch_size, num)) for first in range(0, num, batch_size)]
    pictures = []
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # notebooks paint stderr red
    bar = tqdm(total=len(batches) * (len(times) - 1), desc=sampler, disable=not progress, ascii=True, file=stream)
    with eval_mode(diffusion), bar:
        for batch in batches:
            part_y, part_target = (None if value is None else value[batch] for value in (y, target))
            if negative is not None:
                guiding["negative"] = negative[batch]
            pull = None if gradient is None else (lambda x_t, t, of=part_target: gradient(x_t, t, of))
            denoise = counted(bind(diffusion, part_y, guidance, clipped, None if ancestral else pull, **guiding))
            noise = seeded_noise(seeds[batch])
            shape = (batch.stop - batch.start, *diffusion.shape)
            x, t = diffusion.schedule.start(shape, noise, times[0], device=diffusion.device), times[0]
            for step in run(denoise, diffusion.schedule, x, times, noise, **options, **_given(ancestral, pull)):
                bar.update(place[step.t] - place[t])
                t = step.t
                if on_step is not None:
                    on_step(step)
            pictures.append(step.x)
        evaluations = denoise.evaluations
        bar.set_postfix_str(f"{evaluations} evaluation{'s' * (evaluations != 1)}")
    return torch.cat(pictures)


def bind(diffusion, y, guidance=1.0, clipped=True, gradient=None, **guiding):
    """The bound denoiser of a model, as `sample` makes it; the arguments are those of `sample`, y and negative (B,).

    From the inside out: the condition or classifier-free guidance, gradient(x_t, t), and clipping to the value range.
    """
    if guidance == 1.0 and not guiding:
        denoise = condition(diffusion.denoise, y)
    elif y is None:
        raise ValueError(f"guidance={guidance} needs a condition: pass y=..., or leave guidance at 1 for this model")
    else:
        denoise = classifier_free(diffusion.denoise, y, guidance, **guiding)
    if gradient is not None:
        denoise = guided(denoise, gradient)
    if clipped == "dynamic":
        return dynamic_threshold(denoise, low=diffusion.value_range[0], high=diffusion.value_range[1])
    return clip(denoise, *diffusion.value_range) if clipped else denoise


def counted(denoise):
    """The same bound denoiser, which counts how often it was called in its attribute `evaluations`."""

    def counting(x_t, t):
        counting.evaluations += 1
        return denoise(x_t, t)

    counting.evaluations = 0
    return counting


def _keywords(function):
    return [n for n, p in inspect.signature(function).parameters.items() if p.kind == p.KEYWORD_ONLY]


_GUIDING = _keywords(classifier_free)  # options of `sample` that guidance takes


def _check_options(diffusion, sampler, options, guidance, guiding):
    own = [name for name in _keywords(SAMPLERS[sampler]) if name != "gradient"]
    for option in options:
        if option not in own:
            raise unknown_name(f"option of {sampler}", option, own + _GUIDING)
    if options.get("variance") == "learned" and not diffusion.learned_range:
        raise ValueError('variance="learned" needs a network with a learned range; use "small" or "large"')
    if guidance == 1.0 and guiding:
        names = ", ".join(guiding)
        raise ValueError(f"{names}: a change of classifier-free guidance, and guidance=1 is none; try guidance=3")


def _guiding(options):
    """Those of the options that guidance takes, out of the dict, without those that change nothing."""
    taken = {key: options.pop(key) for key in _GUIDING if key in options}
    return {key: value for key, value in taken.items() if value is not None and (key, value) != ("rescale", 0)}


def _check_pull(gradient, target, clipped, diffusion):
    """Raise ValueError for what cannot change the prediction in the way that was asked for."""
    if gradient is None and target is not None:
        raise ValueError("target is what a gradient aims at: pass gradient=..., too; the condition of a model is y=...")
    if gradient is not None and not callable(gradient):
        raise ValueError(f"gradient must be a function (x_t, t, target), as gradient_of makes it, got {gradient!r}")
    theirs = getattr(gradient, "schedule", None)
    if theirs is not None and not _alike(theirs, diffusion.schedule):
        raise ValueError(
            f"the gradient comes from a model on {theirs}, and this one is on {diffusion.schedule}: the same t means"
            " other noise there; train the scorer on the schedule of the model that it guides"
        )
    if isinstance(clipped, str) and clipped != "dynamic" or not isinstance(clipped, (bool, int, str, type(None))):
        raise ValueError(f'clipped must be True, False or "dynamic", got {clipped!r}')
    if clipped == "dynamic" and diffusion.latents is not None:
        raise ValueError('clipped="dynamic" is for pixels, and this model works on latents: leave it at None')


def _check_target(gradient, target):
    """Raise ValueError unless a gradient that says which classes it knows has a target, and classes are among them."""
    classes = getattr(gradient, "classes", None)
    if classes is None:
        return
    if target is None:
        raise ValueError("target is missing: pass target=..., what the gradient aims at, one for all or a list")
    if isinstance(target, torch.Tensor) and target.ndim == 1:
        low, high = (value.item() for value in torch.aminmax(target))
        if target.is_floating_point() or low < 0 or high >= classes:
            raise ValueError(f"target: classes must be whole numbers from 0 to {classes - 1}, got {low} to {high}")


def _alike(one, other):
    """Whether alpha and sigma of two schedules agree, but for a table's steps."""
    return all(abs(a - b) < 0.05 for t in (0.2, 0.5, 0.8) for a, b in zip(one(t), other(t)))


def _check_negative(negative, y, num, diffusion):
    if negative is not None and y is not None:
        try:
            check_labels(diffusion.network, negative, num)
        except ValueError as error:
            raise ValueError(f"negative: {error}") from None


def _default_spacing(diffusion):
    return "karras" if diffusion.schedule.name == "edm" else "uniform"


def _given(ancestral, gradient):
    return {"gradient": gradient} if ancestral else {}


def _seeds(seed, num):
    """The pair (seed, number) of each of num pictures."""
    pairs = seed if isinstance(seed, list) else [(seed, i) for i in range(num)]
    if len(pairs) != num or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"seed must be a whole number, or a list of {num} pairs (seed, number), got {seed!r}")
    for one in dict.fromkeys(one for one, _ in pairs):
        check_whole("seed", one, 0)
    return pairs


def _labels(name, y, num, diffusion):
    """One label or text for each of num pictures, on the device; None stays None."""
    if y is None:
        return None
    if isinstance(y, Text):
        y = y.to(diffusion.device)
        y = y[torch.zeros(num, dtype=torch.int64)] if len(y.tokens) == 1 else y
        if len(y.tokens) != num:
            raise ValueError(f"{name} must hold one text, or {num} of them, got {len(y.tokens)}")
        return y
    try:
        y = torch.as_tensor(y, device=diffusion.device)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a label, or a list or tensor of {num} labels, got {y!r}") from None
    return y.expand(num) if y.ndim == 0 else y


def targets_of(target, num, device):
    """What a gradient aims at, num of them: numbers as a tensor, anything else as a list."""
    if target is None:
        return None
    if getattr(target, "ndim", None) == 0 or isinstance(target, str) or not hasattr(target, "__len__"):
        target = [target] * num
    if len(target) != num:
        raise ValueError(f"target must be one for all pictures or {num} of them, got {len(target)}")
    try:
        return torch.as_tensor(target, device=device)
    except (TypeError, ValueError, RuntimeError):
        return list(target)
