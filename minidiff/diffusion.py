"""`Diffusion`: a network, a noise schedule and a prediction type tied into one model with a loss and a denoiser."""

import contextlib
import math

import torch
from torch import nn

from minidiff.errors import unknown_name
from minidiff.losses import late_times, logit_normal_times, loss_weight
from minidiff.prediction import SIGMA_DATA, Prediction, check_kind, target
from minidiff.schedules import match
from minidiff.variational import posterior, prior_term, variational_term

# What a network is fed instead of t: name -> function of (t, schedule). t is a float or a tensor (B,).
TIMES = {
    "index": lambda t, schedule: t * schedule.steps - 1,  # 0 .. T-1: DDPM, ADM, DiT
    "index_rescaled": lambda t, schedule: (t * schedule.steps - 1) * 1000 / schedule.steps,  # improved DDPM, T = 4000
    "index_from_1": lambda t, schedule: t * schedule.steps,  # 1 .. T: latent U-ViT
    "999t": lambda t, schedule: 999 * t,  # score_sde, U-ViT
    "t": lambda t, schedule: t,
    "1-t": lambda t, schedule: 1 - t,  # networks whose time runs from noise to data: SiT
    "999(1-t)": lambda t, schedule: 999 * (1 - t),  # the same of the first rectified flows
    "999sigma": lambda t, schedule: 999 * schedule(t)[1],  # flows with a shift
    "log_sigma/4": lambda t, schedule: log_sigma(t, schedule) / 4,  # EDM
    "sigma": lambda t, schedule: schedule(t)[1],  # score_sde on VE
}

TRAINING_TIMES = {"logit_normal": logit_normal_times, "late": late_times}  # besides each schedule's own


def log_sigma(t, schedule):
    """log sigma(t), a float or a tensor (B,) as t is."""
    sigma = schedule(t)[1]
    return sigma.log() if isinstance(sigma, torch.Tensor) else math.log(sigma)


class Diffusion(nn.Module):
    """A diffusion model: network(x, time, y) + schedule + what the network predicts and in which units it reads time.

    network: a backbone. schedule: see schedules.py. prediction: "eps", "x0", "v", "flow", "score" or "edm".
    time: a name of TIMES; by default "index" on a discrete schedule, "log_sigma/4" for "edm", else "999t".
    learned_range: the network returns 2C channels, the second half a variance range (Nichol and Dhariwal 2021).
    shape: (C, H, W) of one image. value_range: of the images. latents: the scale of latents; turns range checks off.
    """

    def __init__(
        self, network, schedule, prediction="eps", *, time=None, learned_range=False, shape, value_range=(-1.0, 1.0),
        latents=None,
    ):  # fmt: skip
        super().__init__()
        check_kind(prediction)
        if time is None:
            time = "log_sigma/4" if prediction == "edm" else "index" if schedule.steps else "999t"
        if time not in TIMES:
            raise unknown_name("time", time, TIMES)
        if time.startswith("index") and not schedule.steps:
            raise ValueError(f'time="{time}" counts discrete steps, and {schedule} has none; use time="999t"')
        if prediction in ("eps", "score") and schedule(1.0)[0] < 1e-8:
            raise ValueError(
                f'prediction="{prediction}" cannot say what x0 is where alpha = 0, and {schedule} ends there; use "v"'
            )
        if learned_range and not schedule.steps:
            raise ValueError(
                f"a learned range lies between variances of discrete steps, and {schedule} has none; use linear(1000)"
            )
        self.network, self.schedule, self.prediction, self.time = network, schedule, prediction, time
        self.learned_range, self.shape, self.value_range = learned_range, tuple(shape), tuple(value_range)
        self.latents = latents
        self._times = {}  # (t, device) -> what the network is fed there
        self._checked = False  # the first batch that a loss sees is checked in full, the others by shape alone

    @property
    def device(self):
        """The device of the network's first parameter; the CPU if it has none."""
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    # --- forward process ---------------------------------------------------------------------------------------

    def alpha_sigma(self, t, like):
        """alpha and sigma at t: floats for a float, tensors (B, 1, 1, 1) that broadcast against `like` for (B,)."""
        alpha, sigma = self.schedule(t)
        return match(alpha, like), match(sigma, like)

    def forward_process(self, x0, t, eps):
        """The noisy image x_t = alpha(t) x0 + sigma(t) eps, in one step (Ho et al. 2020, eq. 4)."""
        alpha, sigma = self.alpha_sigma(t, x0)
        return alpha * x0 + sigma * eps

    def sample_times(self, n, generator=None, device=None, times=None):
        """n training times (n,): uniform over the discrete steps or over [1e-5, 1]; EDM: log sigma ~ N(-1.2, 1.2).

        With times="logit_normal" the middle of [0, 1] is preferred, with "late" its end (losses.py), on any schedule.
        """
        device = device or self.device
        if times is not None:
            if times not in TRAINING_TIMES:
                raise unknown_name("distribution of times", times, TRAINING_TIMES)
            return TRAINING_TIMES[times](n, generator=generator, device=device)
        steps = self.schedule.steps
        if steps:
            return (torch.randint(steps, (n,), generator=generator, device=device) + 1) / steps
        if self.schedule.name == "edm":
            log_sigmas = 1.2 * torch.randn(n, generator=generator, device=device) - 1.2
            return self.schedule.inverse(-2 * log_sigmas)
        return 1e-5 + (1 - 1e-5) * torch.rand(n, generator=generator, device=device)

    # --- the denoiser ------------------------------------------------------------------------------------------

    def denoise(self, x_t, t, y=None, **inputs):
        """The network's `Prediction` at x_t (B, C, H, W) and time t, a float or a tensor (B,). Differentiable.

        y is the condition, None for an unconditional network; further `inputs` pass through to the network.
        """
        if isinstance(t, torch.Tensor):
            (alpha, sigma), time = self.alpha_sigma(t, x_t), TIMES[self.time](t, self.schedule).float().view(-1)
        else:
            (alpha, sigma), time = self.schedule(t), self._shared_time(t, x_t.device)
        x = x_t / (sigma**2 + (SIGMA_DATA * alpha) ** 2) ** 0.5 if self.prediction == "edm" else x_t  # c_in, eq. 7
        out = self.network(x, time, y, **inputs)
        channels = (2 if self.learned_range else 1) * x_t.shape[1]
        if out.shape[1] != channels:  # one channel would broadcast against three, and train in silence
            raise ValueError(
                f"the network must return {channels} channels with learned_range={self.learned_range}, for images of"
                f" {x_t.shape[1]}; got {out.shape[1]}. Make it with out_channels={channels}, or change learned_range"
            )
        out, v_range = out.chunk(2, dim=1) if self.learned_range else (out, None)
        return Prediction(self.prediction, x_t, out, alpha, sigma, v_range)

    def _shared_time(self, t, device):
        """What the network is fed at a float t, (1,) for the whole batch; kept, since samplers come by again."""
        time = self._times.get((t, device))
        if time is None or time._version:  # the network wrote into its input
            if len(self._times) > 4096:
                self._times.clear()
            with torch.inference_mode(False):  # or autograd would refuse it later
                time = torch.full((1,), TIMES[self.time](t, self.schedule), dtype=torch.float32, device=device)
            self._times[t, device] = time
        return time

    # --- training ----------------------------------------------------------------------------------------------

    def loss(
        self, x0, y=None, *, t=None, eps=None, weight="uniform", p_uncond=0.0, dropped=None, variational=None,
        generator=None, **inputs,
    ):  # fmt: skip
        """The training loss of each image, (B,): the mean squared error of what the network predicts.

        x0 (B, C, H, W) in the value range; t (B,) and eps are drawn if not given. weight: "uniform", "min_snr", "p2"
        or "edm" (losses.py). p_uncond: the share of conditions replaced by network.null(y), drawn unless `dropped` (B,)
        bool says which. With a learned range the variational term of the hybrid loss is added, times `variational`
        (default T / 1000; Nichol and Dhariwal 2021, eq. 16). Raises ValueError for images or labels that do not fit.
        """
        self.check_batch(x0, y, values=not self._checked and not torch.compiler.is_compiling())
        t = self.sample_times(len(x0), generator, x0.device) if t is None else t
        eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype) if eps is None else eps
        if p_uncond:
            if dropped is None:
                dropped = torch.rand(len(x0), generator=generator, device=x0.device) < p_uncond
            y = drop_condition(y, self.network.null(y), dropped)
        alpha, sigma = self.alpha_sigma(t, x0)
        prediction = self.denoise(alpha * x0 + sigma * eps, t, y, **inputs)
        error = prediction.out - target(self.prediction, x0, eps, alpha, sigma)
        if self.prediction == "score":
            error = error * sigma  # so that every noise level counts alike (Song et al. 2021, eq. 7)
        losses = error.square().flatten(1).mean(1)
        if weight != "uniform":
            losses = losses * loss_weight(weight, self.prediction, alpha.flatten(), sigma.flatten())
        if self.learned_range:
            scale = self.schedule.steps / 1000 if variational is None else variational
            frozen = prediction.replace(prediction.kind, prediction.out.detach())  # it trains the variance alone
            losses = losses + scale * variational_term(self.schedule, x0, t, frozen, "learned")
        return losses

    def check_batch(self, x0, y=None, values=True):
        """Raise ValueError unless images and condition fit this model; `values` are checked where that may wait."""
        check_image_shape(self, x0)
        if not values:
            return
        check_labels(self.network, y, len(x0))
        if self.latents is None:
            check_image_values(self, x0)
        self._checked = True

    # --- posterior and variational bound -------------------------------------------------------------------------

    def posterior(self, x0, x_t, s, t):
        """Mean and variance of q(x_s | x_t, x0) for s < t (Ho et al. 2020, eq. 7, for any schedule).

        s and t are floats or tensors (B,); the mean has the shape of x_t, the variance broadcasts against it.
        """
        return posterior(self.schedule, x0, x_t, s, t)

    @torch.no_grad()
    def bits_per_dim(self, x0, y=None, *, variance=None, generator=None):
        """The variational bound of each image in bits per dimension, (B,): prior, T - 1 KL terms and the first step.

        x0 (B, C, H, W) holds 8-bit images in [-1, 1]; the schedule is discrete. The network runs once for each of its
        T steps. variance: "small", "large" or "learned" (default: "learned" if the network has a learned range, else
        "small"). Ho et al. 2020, eq. 5; Nichol and Dhariwal 2021, eq. 4.
        """
        if not self.schedule.steps:
            raise ValueError(f"bits_per_dim sums over discrete steps, and {self.schedule} has none; use linear(1000)")
        self.check_batch(x0, y)
        variance = variance or ("learned" if self.learned_range else "small")
        total = prior_term(self.schedule, x0)
        with eval_mode(self):
            for index in range(self.schedule.steps):
                t = torch.full((len(x0),), (index + 1) / self.schedule.steps, device=x0.device)
                eps = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
                prediction = self.denoise(self.forward_process(x0, t, eps), t, y)
                total = total + variational_term(self.schedule, x0, t, prediction, variance)
        return total


@contextlib.contextmanager
def eval_mode(model):
    """Inside, all modules of `model` are in eval mode; afterwards each is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def check_image_shape(model, x0):
    """Raise ValueError unless x0 is a batch of images of the model's shape."""
    if tuple(x0.shape[1:]) != model.shape or not len(x0):
        raise ValueError(
            f"images must have shape (B, {', '.join(map(str, model.shape))}), got {tuple(x0.shape)}; resize them, or"
            f" make the {type(model).__name__}, and its network, for their shape"
        )


def check_image_values(model, x0):
    """Raise ValueError unless x0 are floats in the model's value range; reads them, so it waits for the device."""
    (least, most), (low, high) = model.value_range, (value.item() for value in torch.aminmax(x0))
    if not x0.is_floating_point() or not (low >= least - 1e-3 and high <= most + 1e-3):  # catches NaN, too
        raise ValueError(
            f"images must be floats in [{least:g}, {most:g}], got {x0.dtype} from {low:g} to {high:g}; bytes"
            f" become x / 127.5 - 1 (or pass value_range=... to {type(model).__name__} for other data)"
        )


def check_labels(network, y, batch):
    """Raise ValueError unless y is what this network is conditioned on: None, or labels (batch,) in range.

    Rows (batch, num_classes) are taken where the network has `one_hot`.
    """
    classes = getattr(network, "num_classes", 0)
    if not classes:
        if isinstance(y, torch.Tensor) and not y.is_floating_point():
            raise ValueError(f"labels were given to an unconditional network; drop y (got shape {tuple(y.shape)})")
        return
    if y is None:
        raise ValueError(
            f"labels are missing: this network knows {classes} classes. Pass y=torch.tensor([...]) with numbers"
            f" from 0 to {classes - 1}, or network.null(...) for 'no class'"
        )
    if getattr(network, "one_hot", False) and isinstance(y, torch.Tensor) and y.shape == (batch, classes):
        return
    if not isinstance(y, torch.Tensor) or y.dtype not in (torch.int64, torch.int32):
        got = y.dtype if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"labels must be an int64 tensor ({batch},), got {got}; use torch.tensor([...]) or y.long()")
    if y.shape != (batch,):
        raise ValueError(f"labels must have shape ({batch},), one for each image, got {tuple(y.shape)}")
    low, high = (value.item() for value in torch.aminmax(y))
    if low < 0 or high > classes:  # the number `classes` itself is the null label
        raise ValueError(f"labels must be from 0 to {classes - 1} ({classes} means none), got {low} to {high}")


def drop_condition(y, null, dropped):
    """The condition y with `null` in its place where `dropped` (B,) is True; tuples of tensors part by part."""
    if isinstance(y, torch.Tensor):
        return torch.where(dropped.view((-1,) + (1,) * (y.ndim - 1)), null, y)
    return type(y)(*(None if part is None else drop_condition(part, other, dropped) for part, other in zip(y, null)))
