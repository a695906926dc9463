"""Guidance: bound denoisers that follow a condition, a classifier or a scorer more closely than the model does.

Each function takes a denoiser and returns another, so that they stack: sampler(clip(classifier_free(...))), with
clipping outermost. What is guided can be read as the score of p(x) p(y | x)^scale: classifier-free guidance has
p(y | x) from the difference of two predictions, classifier guidance from a network of its own.
"""

import math
import numbers

import torch

from minidiff.errors import check_whole
from minidiff.prediction import Prediction


def condition(denoise, y=None, **inputs):
    """The bound denoiser (x_t, t) -> Prediction that samplers take, with the condition y fixed."""

    def bound(x_t, t):
        return denoise(x_t, t, y, **inputs)

    return bound


# --- classifier-free guidance ---------------------------------------------------------------------------------------


def classifier_free(
    denoise, y, scale, null=None, *, negative=None, interval=None, rescale=0.0, power=None, guide_first=None, **inputs
):
    """The bound denoiser that exaggerates the condition: out = out(null) + scale (out(y) - out(null)).

    scale 1 is the conditional model and 0 the unconditional one; 1.5 to 8 is usual. This is the scale of GLIDE, Imagen
    and Stable Diffusion; Ho and Salimans (2022, eq. 6) write (1 + w) out(y) - w out(null), see `scale_from_w`.

    denoise: usually diffusion.denoise. y: the condition, first dimension B. null: the condition of the same shape that
    means 'none', by default network.null(y). negative: a condition that takes the null's place, to lead away from.
    interval: (lo, hi), guides at lo < t <= hi alone (Kynkäänniemi et al. 2024; their sigmas become times by
    schedule.inverse(-2 log sigma)); elsewhere the conditional half runs alone, half the work.
    rescale: phi in [0, 1], see `rescaled` (Lin et al. 2024). power: see `cosine_weight` (MDT, DiffiT).
    guide_first: only so many channels are guided, the others are the conditional half's. 3 reproduces the published
    samples of DiT and its heirs, whose latents have 4: a defect of their code, kept for the comparison.

    Both halves go through the network as one batch, all else in `inputs` repeated. All C channels are guided; a
    variance range is that of the conditional half. ValueError for values out of range and a condition without a null.
    """
    check_guidance(scale, interval, rescale, power, guide_first)
    if negative is not None:
        check_alike("negative", negative, y)
    plain = condition(denoise, y, **inputs)
    if scale == 1:
        return plain
    other = negative if negative is not None else null if null is not None else null_of(denoise, y, scale)
    check_alike("null", other, y)
    without = condition(denoise, other, **inputs)
    both = condition(denoise, join(y, other), **{name: twice(value, y) for name, value in inputs.items()})
    weight_at = weight_of_time(scale, interval, power, owner(denoise, "schedule"))

    def extrapolated(x_t, t):
        weight = weight_at(t)
        if weight == 1:
            return plain(x_t, t)
        if weight == 0 and not (rescale or guide_first):
            return without(x_t, t)
        prediction = both(torch.cat([x_t, x_t]), t)
        with_y, without_y = prediction.out.chunk(2)
        out = interpolate(without_y, with_y, weight, guide_first)
        if rescale:
            out = rescaled(out, with_y, rescale)
        v_range = None if prediction.v_range is None else prediction.v_range[: len(x_t)]
        return Prediction(prediction.kind, x_t, out, prediction.alpha, prediction.sigma, v_range)

    return extrapolated


def scale_from_w(w):
    """The scale 1 + w of classifier_free for the w of Ho and Salimans (2022), where 0 is the conditional model."""
    return 1 + w


def cosine_weight(scale, power, t):
    """The weight 1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2: 1 on pure noise, `scale` near the data.

    Power-cosine guidance of MDT (Gao et al. 2023) and DiffiT (Hatamizadeh et al. 2024), both with power 4. There t is
    index / T, so a discrete schedule's t less 1 / T.
    """
    return 1 + (scale - 1) * (1 - math.cos(math.pi * min(max(1 - t, 0.0), 1.0) ** power)) / 2


def weight_of_time(scale, interval=None, power=None, schedule=None):
    """The function t -> weight of the condition: 1 outside the interval, else the scale or its cosine weight."""
    lo, hi = (0.0, 1.0) if interval is None else interval
    first = 1 / schedule.steps if schedule is not None and schedule.steps else 0.0  # the t of index 0

    def weight_at(t):
        if not lo < min(t, 1.0) <= hi:  # churn may lead above 1
            return 1.0
        return scale if power is None else cosine_weight(scale, power, t - first)

    return weight_at


def rescaled(out, conditional, phi):
    """phi out' + (1 - phi) out, where out' = out std(conditional) / std(out), over each picture's C, H, W.

    Undoes the growth of contrast under guidance (Lin et al. 2024, eq. 15 and 16; phi = 0.7). As there it acts on what
    the network returns, v or eps, not on x0.
    """
    dims = tuple(range(1, out.ndim))
    least = torch.finfo(out.dtype).tiny  # a fresh network may return zeros
    ratio = conditional.std(dims, keepdim=True) / out.std(dims, keepdim=True).clamp(min=least)
    return out * (phi * ratio + (1 - phi))


def interpolate(a, b, weight, channels=None):
    """a + weight (b - a), exactly a at 0 and b at 1; in the first `channels` alone if given, b in the others."""
    if channels is None:
        return torch.lerp(a, b, weight)
    if channels > a.shape[1]:
        raise ValueError(f"guide_first must be at most {a.shape[1]}, the number of channels; got {channels}")
    return torch.cat([torch.lerp(a[:, :channels], b[:, :channels], weight), b[:, channels:]], dim=1)


def join(a, b):
    """Two conditions as one batch: tensors are concatenated, tuples part by part; None stays None."""
    if a is None:
        return None
    if isinstance(a, torch.Tensor):
        return torch.cat([a, b])
    return type(a)(*(join(x, y) for x, y in zip(a, b)))


def twice(value, y):
    """A network input repeated for both halves; numbers, and tensors (1,) that the batch shares, stay as they are."""
    if isinstance(value, torch.Tensor):
        batch = len(y if isinstance(y, torch.Tensor) else y[0])
        return torch.cat([value, value]) if value.ndim and len(value) == batch else value
    return join(value, value) if isinstance(value, tuple) else value


def owner(denoise, part):
    """The network or schedule of the Diffusion that `denoise` is the bound method of; None of any other function."""
    return getattr(getattr(denoise, "__self__", None), part, None)


def null_of(denoise, y, scale):
    """The network's own condition that means 'none', of the shape of y."""
    if y is None:
        raise ValueError(f"guidance with scale {scale} needs a condition: pass y=..., or leave the scale at 1")
    if not isinstance(y, (torch.Tensor, tuple)):
        raise ValueError(f"y must be the condition of a batch, a tensor (B,) of labels, got {y!r}; use torch.tensor")
    network = owner(denoise, "network")
    if not hasattr(network, "null"):
        raise ValueError(
            "cannot tell which condition means 'none': pass null=..., of the shape of y, or the bound method"
            " diffusion.denoise of a network that has null(y)"
        )
    return network.null(y)


# --- what users get wrong -------------------------------------------------------------------------------------------


def check_guidance(scale, interval=None, rescale=0.0, power=None, guide_first=None):
    """Raise ValueError for a value that classifier_free cannot work with."""
    check_scale(scale)
    if interval is not None:
        pair = tuple(interval) if isinstance(interval, (tuple, list)) else interval
        if not (isinstance(pair, tuple) and len(pair) == 2 and 0 <= pair[0] < pair[1] <= 1):
            raise ValueError(
                f"interval must be (lo, hi) in time with 0 <= lo < hi <= 1, got {pair}; 0 is data, 1 is"
                " noise, and a sigma becomes a time by schedule.inverse(-2 * math.log(sigma))"
            )
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must be from 0 (none) to 1, got {rescale}; the paper takes 0.7")
    if power is not None and not power > 0:
        raise ValueError(f"power must be above 0, got {power}; the papers take 4, and None keeps the scale constant")
    if guide_first is not None:
        check_whole("guide_first", guide_first)


def check_scale(scale, hint="1 is the plain model. To lead away from a condition pass it as negative=..."):
    """Raise ValueError, which ends with `hint`, unless the scale of some guidance is a number of at least 0."""
    if not (isinstance(scale, numbers.Real) and 0 <= scale < math.inf):
        raise ValueError(f"the guidance scale must be at least 0, got {scale!r}; {hint}")


def check_alike(name, other, y):
    """Raise ValueError unless two conditions have the same shapes, part by part."""
    if shapes(other) != shapes(y):
        raise ValueError(f"{name} must be a condition of the same shape as y, {shapes(y)}; got {shapes(other)}")


def shapes(y):
    """The shape of a condition, of each part of a tuple; the type's name of anything else."""
    if isinstance(y, torch.Tensor):
        return tuple(y.shape)
    return [shapes(part) for part in y] if isinstance(y, tuple) else type(y).__name__


# --- guidance by a gradient, and by a weaker model ------------------------------------------------------------------


def gradient_of(log_prob, scale=1.0):
    """The function (x_t, t, y) -> scale * gradient of log_prob(x_t, t, y) with respect to x_t, of the shape of x_t.

    log_prob returns (B,), each entry a function of its own picture; gradients are enabled inside, also under
    torch.no_grad, and those of the parameters stay untouched. Classifier guidance: the log-probability of class y by
    a network that was trained on noisy pictures (Dhariwal and Nichol 2021). CLIP guidance: exp(logit_scale) times the
    product of the embeddings of picture and text (Nichol et al. 2022, GLIDE, section 2.4), a TextScorer's log_prob.
    """
    check_scale(scale, "0 is the plain model, and the negative of log_prob leads away")

    def gradient(x_t, t, y=None):
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            return torch.autograd.grad(scale * log_prob(x, t, y).sum(), x)[0]

    # For which noise the scorer was trained, and which classes it knows, if it says so
    gradient.schedule = owner(log_prob, "schedule")
    gradient.classes = getattr(owner(log_prob, "network"), "num_classes", None)
    return gradient


def guided(denoise, gradient):
    """The bound denoiser with the score plus gradient(x_t, t): eps - sigma gradient, so x0 + sigma^2 / alpha gradient.

    Dhariwal and Nichol 2021, algorithm 2, for any sampler; algorithm 1, the shifted mean, is the option `gradient` of
    ddpm. The gradient is of log p(y | x_t), scaled, see `gradient_of`. Where alpha is 0, x_t is pure noise and says
    nothing about y: the prediction stays as it is.
    """

    def shifted(x_t, t):
        prediction = denoise(x_t, t)
        if prediction.alpha == 0:
            return prediction
        shift = prediction.sigma**2 / prediction.alpha
        return prediction.replace("x0", torch.add(prediction.x0, gradient(x_t, t), alpha=shift))

    return shifted


def autoguidance(denoise, weak, scale):
    """The bound denoiser weak + scale (strong - weak), for a strong and a weak one of the same schedule.

    Guided by a smaller or less trained version of itself, a model gets sharper without losing diversity (Karras et
    al. 2024, whose w is the scale). Works on whatever both predict: outputs of one kind are combined as they are,
    others as x0. scale 1 is the strong one alone. A variance range is the strong one's.
    """
    check_scale(scale, "0 is the weak model alone, 1 the strong one")
    if scale == 1:
        return denoise

    def combined(x_t, t):
        strong, other = denoise(x_t, t), weak(x_t, t)
        if strong.kind == other.kind:
            return strong.replace(strong.kind, torch.lerp(other.out, strong.out, scale))
        return strong.replace("x0", torch.lerp(other.x0, strong.x0, scale))

    return combined


def dynamic_threshold(denoise, p=0.995, low=-1.0, high=1.0):
    """The bound denoiser with x0 = clamp(x0, -s, s) / s, s the p-quantile of |x0| in each picture, 1 at least.

    Keeps colours from saturating under strong guidance (Saharia et al. 2022, Imagen, section 2.3). For pixels, not for
    latents; those of another range than [-1, 1] are measured from its middle, in halves of its width. The static
    threshold is `clip`. Goes outermost, in its place.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be a quantile above 0 and at most 1, got {p}; Imagen takes 0.995")

    middle, half = (low + high) / 2, (high - low) / 2

    def thresholded(x_t, t):
        prediction = denoise(x_t, t)
        x0 = prediction.x0 if (low, high) == (-1.0, 1.0) else (prediction.x0 - middle) / half
        s = torch.quantile(x0.abs().flatten(1), p, dim=1).clamp(min=1).view(-1, *(1,) * (x0.ndim - 1))
        x0 = torch.clamp(x0, -s, s) / s
        return prediction.replace("x0", x0 if (low, high) == (-1.0, 1.0) else middle + half * x0)

    return thresholded
