"""Noise schedules: t -> (alpha, sigma) with x_t = alpha(t) x0 + sigma(t) eps, t = 0 data, t = 1 noise.

Every schedule is one `Schedule`: three formulas (alpha and sigma, their rates, the inverse of log-SNR) that serve
Python floats in float64 and tensors on any device alike, because `math` and `torch` spell their functions the same.
A discrete schedule of T steps lives on t = (i + 1) / T; between its points log alpha is interpolated.

One file, though a long one, so that the schedules can be compared line by line; the step spacings of samplers are in
`spacings.py`.
"""

import bisect
import functools
import math

import numpy as np
import torch

from minidiff.errors import unknown_name


class Schedule:
    """alpha(t) and sigma(t), and what follows from them: log-SNR, its inverse, the SDE, the start of sampling.

    Made by the functions below (`linear`, `cosine`, ...). The formulas get (t, xp) with xp = `math` for a float and
    `torch` for a tensor. `betas` is the float64 table of a discrete schedule, None for a continuous one.
    """

    def __init__(self, name, arguments, alpha_sigma, rates, inverse, *, betas=None, start_std=lambda t: 1.0):
        self.name, self.arguments = name, arguments
        self._alpha_sigma, self._rates, self._inverse, self._start_std = alpha_sigma, rates, inverse, start_std
        self.betas = betas
        self.steps = None if betas is None else len(betas)
        # A sampler asks for the same few times, batch after batch: what follows from a float is computed once
        self._at, self._log_snr_at = map(functools.lru_cache(4096), (self._at, self._log_snr_at))

    def __repr__(self):
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"

    def __call__(self, t):
        """(alpha, sigma) at time t: floats for a float, tensors (B,) for a tensor (B,). (1, 0) at t = 0."""
        if not isinstance(t, torch.Tensor):
            return self._at(t)
        if not t.is_floating_point():
            raise ValueError(f"t must hold floats from 0 to 1, got {t.dtype}; step i of T is at t = (i + 1) / T")
        return self._alpha_sigma(t, torch)

    def log_snr(self, t):
        """log(alpha^2 / sigma^2): +inf at t = 0, -inf where alpha is 0."""
        if not isinstance(t, torch.Tensor):
            return self._log_snr_at(t)
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def _at(self, t):
        T = self.steps
        if T and not -1e-6 < t < 1 + 1e-6:  # the table would take it for one of its ends
            raise ValueError(f"t must be from 0 to 1, got {t:g}; step i of {T} is at t = (i + 1) / {T}")
        return (1.0, 0.0) if t == 0 else self._alpha_sigma(float(t), math)

    def _log_snr_at(self, t):
        alpha, sigma = self._at(t)
        if sigma == 0 or alpha == 0:
            return math.inf if sigma == 0 else -math.inf
        return 2 * (math.log(alpha) - math.log(sigma))

    def inverse(self, log_snr):
        """The time at which log(alpha^2 / sigma^2) has this value: a float for a float, a tensor for a tensor."""
        if isinstance(log_snr, torch.Tensor):
            t = self._inverse(log_snr, torch)
            return torch.where(log_snr.isinf(), (log_snr < 0).to(t.dtype), t)
        if math.isinf(log_snr):
            return 0.0 if log_snr > 0 else 1.0
        return self._inverse(float(log_snr), math)

    def rates(self, t):
        """(alpha', sigma') = d/dt (alpha, sigma), so that dx/dt = alpha' x0 + sigma' eps.

        On a discrete schedule the rates of the interval that ends at t. sigma' is infinite at t = 0 where the
        variance starts with a finite slope (all variance-preserving schedules). NaN at the end of a table whose last
        beta is 1: alpha jumps to 0 there.
        """
        if isinstance(t, torch.Tensor):
            return self._rates(t, torch)
        return self._rates(float(t), math)

    def sde(self, t):
        """(f, g^2) of dx = f x dt + g dw, whose marginals are alpha x0 + sigma eps (Song et al. 2021, eq. 5).

        f = alpha' / alpha and g^2 = 2 sigma (sigma' - f sigma). Needs alpha(t) > 0 and sigma(t) > 0.
        """
        (alpha, sigma), (alpha_rate, sigma_rate) = self(t), self.rates(t)
        f = alpha_rate / alpha
        return f, 2 * sigma * (sigma_rate - f * sigma)

    def start(self, shape, noise, t=1.0, device=None):
        """The x that sampling from time t starts with: Gaussian noise of the schedule's own standard deviation.

        It is 1 for variance-preserving schedules and flows, sigma(t) for EDM, sigma_max for variance exploding.
        `noise(x)` gives unit noise of the shape, type and device of x.
        """
        return self._start_std(t) * noise(torch.empty(shape, device=device))

    @property
    def alphas_cumprod(self):
        """The float64 table alpha^2 of a discrete schedule (alpha-bar in DDPM): entry i belongs to t = (i + 1) / T."""
        return None if self.betas is None else np.cumprod(1 - self.betas)


def match(value, like):
    """A tensor (B,) shaped (B, 1, ..., 1) to broadcast against `like` (B, ...); a float as it is."""
    return value.view((-1,) + (1,) * (like.ndim - 1)) if isinstance(value, torch.Tensor) else value


# --- discrete schedules: everything follows from the betas ---------------------------------------------------------


def from_betas(name, arguments, betas):
    """The schedule of a table of betas (T,): alpha^2 = prod(1 - beta), sigma^2 = 1 - alpha^2, exact in float64.

    Between the points t = (i + 1) / T, and from log alpha(0) = 0, log alpha is interpolated linearly in t.
    """
    betas = np.asarray(betas, dtype=np.float64)
    if betas.ndim != 1 or not ((betas > 0) & (betas <= 1)).all():
        raise ValueError(
            f"betas must be a vector of numbers in (0, 1], got shape {betas.shape} from {betas.min()} to {betas.max()}"
            f" for {name!r}; more steps, or a smaller largest beta, keep them below 1"
        )
    steps = len(betas)
    with np.errstate(divide="ignore"):  # log alpha is -inf where the last beta is 1 (zero terminal SNR)
        table = np.concatenate([[0.0], np.cumsum(np.log1p(-betas)) / 2])  # (T + 1,)
    log_alphas = table.tolist()
    on_device = {}

    def position(t):  # (B,) -> indices of the points below and above, and the weight of the one above
        place = t * steps
        nearest = place.round()
        near = max(1e-6, 4 * steps * torch.finfo(t.dtype).eps)  # as for floats, but at least what rounding makes of t
        snapped = torch.where((place - nearest).abs() < near, nearest, place)
        above = snapped.ceil().clamp(0, steps)
        below = (above - 1).clamp(min=0)
        return below.long(), above.long(), snapped - below

    def device_table(t):
        key = (t.device, t.dtype)
        if key not in on_device:
            on_device[key] = torch.as_tensor(table).to(t.dtype).to(t.device)  # no float64 on the device
        return on_device[key]

    def log_alpha(t, xp):
        if xp is torch:
            logs = device_table(t)
            below, above, weight = position(t)
            between = logs[below] + weight * (logs[above] - logs[below])
            return torch.where(weight == 1, logs[above], between)
        place = min(max(t * steps, 0.0), float(steps))
        if abs(place - round(place)) < 1e-6:
            return log_alphas[round(place)]
        below = int(place)
        return log_alphas[below] + (place - below) * (log_alphas[below + 1] - log_alphas[below])

    def slope(t, xp):  # of the interval that ends at t
        if xp is torch:
            below, above, _ = position(t)
            logs = device_table(t)
            return (logs[above.clamp(min=1)] - logs[below]) * steps
        above = min(max(math.ceil(t * steps - 1e-6), 1), steps)
        return (log_alphas[above] - log_alphas[above - 1]) * steps

    rising = (-table).tolist()

    def time_of(log_alpha_value, xp):
        if xp is torch:
            logs = -device_table(log_alpha_value)
            above = torch.searchsorted(logs, -log_alpha_value.contiguous()).clamp(1, steps)
            below = above - 1
            weight = (-log_alpha_value - logs[below]) / (logs[above] - logs[below])
            return ((below + weight) / steps).clamp(0, 1)
        above = min(max(bisect.bisect_left(rising, -log_alpha_value), 1), steps)
        weight = (-log_alpha_value - rising[above - 1]) / (rising[above] - rising[above - 1])
        return min(max((above - 1 + weight) / steps, 0.0), 1.0)

    return Schedule(name, arguments, *_variance_preserving(log_alpha, slope, time_of), betas=betas)


def _variance_preserving(log_alpha, slope, time_of):
    """The three formulas of a schedule with alpha^2 + sigma^2 = 1, from log alpha, its slope and its inverse."""

    def alpha_sigma(t, xp):
        log = log_alpha(t, xp)
        return xp.exp(log), xp.sqrt(abs(xp.expm1(2 * log)))  # abs, since the negative of 0 would make -inf of a rate

    def rates(t, xp):
        alpha, sigma = alpha_sigma(t, xp)
        alpha_rate = alpha * slope(t, xp)
        if xp is math and sigma == 0:
            return alpha_rate, math.inf
        return alpha_rate, -alpha * alpha_rate / sigma

    def inverse(log_snr, xp):
        if xp is torch:
            return time_of(-torch.nn.functional.softplus(-log_snr) / 2, xp)
        softplus = math.log1p(math.exp(-abs(log_snr))) + max(-log_snr, 0.0)  # log(1 + exp(-log_snr)), never overflows
        return time_of(-softplus / 2, xp)

    return alpha_sigma, rates, inverse


def _betas_from(alpha_bar, steps, max_beta=0.999):
    """The betas (T,) whose products follow alpha_bar(t), clipped where they would reach 1."""
    at = [alpha_bar(i / steps) for i in range(steps + 1)]
    return np.array([min(1 - at[i + 1] / at[i], max_beta) for i in range(steps)])


def _check_steps(steps, continuous=False):
    if not (continuous and steps is None) and (not isinstance(steps, int) or steps < 1):
        way_out = ", or None for continuous time" if continuous else "; linear and cosine take None for continuous time"
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}{way_out}")


def _check_sigmas(sigma_min, sigma_max):
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"expected 0 < sigma_min < sigma_max, got sigma_min={sigma_min} and sigma_max={sigma_max}")


def linear(steps=1000, beta_min=0.1, beta_max=20.0):
    """beta grows linearly: DDPM's 1e-4 ... 0.02 at T = 1000 (Ho et al. 2020), or the VP SDE with `steps=None`.

    Discrete: betas from beta_min / T to beta_max / T. Continuous: beta(t) = beta_min + (beta_max - beta_min) t and
    log alpha = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2 (Song et al. 2021, eq. 29).
    """
    _check_steps(steps, continuous=True)
    arguments = {"steps": steps, "beta_min": beta_min, "beta_max": beta_max}
    if steps is not None:
        return from_betas("linear", arguments, np.linspace(beta_min / steps, beta_max / steps, steps))
    width = beta_max - beta_min

    def log_alpha(t, xp):
        return -width * t * t / 4 - beta_min * t / 2

    def slope(t, xp):
        return -(beta_min + width * t) / 2

    def time_of(log_alpha_value, xp):
        root = xp.sqrt(beta_min**2 - 4 * width * log_alpha_value)
        return -4 * log_alpha_value / (beta_min + root)  # the root of the parabola, written without cancellation

    return Schedule("linear", arguments, *_variance_preserving(log_alpha, slope, time_of))


def cosine(steps=1000, offset=0.008, max_beta=0.999):
    """alpha follows a quarter of a cosine (Nichol and Dhariwal 2021, eq. 17), with betas of at most `max_beta`.

    alpha(t) = cos((t + offset) / (1 + offset) pi / 2) / cos(offset / (1 + offset) pi / 2). With `steps=None` this is
    taken as it stands: alpha(1) is exactly 0, which suits v prediction and forbids eps prediction.
    """
    _check_steps(steps, continuous=True)
    arguments = {"steps": steps, "offset": offset, "max_beta": max_beta}
    scale = math.pi / 2 / (1 + offset)
    first = math.cos(offset * scale)
    if steps is not None:
        betas = _betas_from(lambda t: math.cos((t + offset) * scale) ** 2, steps, max_beta)
        return from_betas("cosine", arguments, betas)

    def alpha_sigma(t, xp):
        # cos(a) = sin(pi/2 - a) is exactly 0 at t = 1; cos^2 b - cos^2 a = sin(a - b) sin(a + b) loses no digits at 0
        alpha = xp.sin((1 - t) * scale) / first
        return alpha, xp.sqrt(xp.sin(t * scale) * xp.sin((t + 2 * offset) * scale)) / first

    def rates(t, xp):
        alpha, sigma = alpha_sigma(t, xp)
        alpha_rate = -scale * xp.cos((1 - t) * scale) / first
        if xp is math and sigma == 0:
            return alpha_rate, math.inf
        return alpha_rate, -alpha * alpha_rate / sigma

    def inverse(log_snr, xp):
        alpha = (1 / (1 + xp.exp(-log_snr))) ** 0.5
        return xp.acos(alpha * first) / scale - offset

    return Schedule("cosine", arguments, alpha_sigma, rates, inverse)


def scaled_linear(steps=1000, beta_start=0.00085, beta_end=0.012):
    """Betas linear in their square root, as latent diffusion has them (Rombach et al. 2022).

    The defaults are Stable Diffusion's; the models of the paper use 0.0015 and 0.0195.
    """
    _check_steps(steps)
    arguments = {"steps": steps, "beta_start": beta_start, "beta_end": beta_end}
    return from_betas("scaled_linear", arguments, np.linspace(beta_start**0.5, beta_end**0.5, steps) ** 2)


def sigmoid(steps=1000, start=-3.0, end=3.0, tau=1.0, max_beta=0.999):
    """alpha^2 falls like a sigmoid of -t, rescaled to run from 1 to 0 (Jabri et al. 2022, RIN)."""
    _check_steps(steps)
    arguments = {"steps": steps, "start": start, "end": end, "tau": tau, "max_beta": max_beta}

    def logistic(value):
        return 1 / (1 + math.exp(-value / tau))

    def alpha_bar(t):
        return (logistic(end) - logistic(start + t * (end - start))) / (logistic(end) - logistic(start))

    return from_betas("sigmoid", arguments, _betas_from(alpha_bar, steps, max_beta))


def zero_terminal_snr(schedule):
    """A discrete schedule changed so that its last step is pure noise (Lin et al. 2024, algorithm 1).

    sqrt(alpha-bar) is shifted to end at 0 and scaled to keep its first value. The last beta is 1, so eps and score
    say nothing about x0 there: train with v, x0 or flow prediction, and sample from the last step.
    """
    if schedule.betas is None or schedule.steps < 2:
        raise ValueError(
            f"zero_terminal_snr needs a discrete schedule of at least 2 steps, got {schedule}; pass linear(1000), say"
        )
    root = np.sqrt(schedule.alphas_cumprod)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha_bar = root**2
    betas = 1 - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
    arguments = {"of": schedule.name, **schedule.arguments}
    return from_betas("zero_terminal_snr", arguments, betas)


# --- schedules in closed form ---------------------------------------------------------------------------------------


def sub_vp(beta_min=0.1, beta_max=20.0):
    """alpha of the continuous `linear`, sigma = 1 - alpha^2 < its own: the sub-VP SDE (Song et al. 2021)."""
    vp = linear(None, beta_min, beta_max)

    def alpha_sigma(t, xp):
        alpha, sigma = vp._alpha_sigma(t, xp)
        return alpha, sigma * sigma

    def rates(t, xp):
        alpha_rate = vp._rates(t, xp)[0]
        return alpha_rate, -2 * vp._alpha_sigma(t, xp)[0] * alpha_rate

    def inverse(log_snr, xp):
        ratio = xp.exp(-log_snr / 2)  # sigma / alpha = (1 - alpha^2) / alpha, a quadratic equation for alpha
        alpha = 2 / (ratio + xp.sqrt(ratio * ratio + 4))
        return vp._inverse(log_snr / 2 + xp.log(alpha), xp)

    return Schedule("sub_vp", {"beta_min": beta_min, "beta_max": beta_max}, alpha_sigma, rates, inverse)


def variance_exploding(sigma_min=0.01, sigma_max=50.0):
    """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t: the VE SDE (Song et al. 2021); (1, 0) at t = 0."""
    _check_sigmas(sigma_min, sigma_max)
    ratio = sigma_max / sigma_min
    log_ratio = math.log(ratio)

    def alpha_sigma(t, xp):
        if xp is torch:
            return torch.ones_like(t), torch.where(t > 0, sigma_min * ratio**t, 0.0)
        return 1.0, sigma_min * ratio**t

    def rates(t, xp):
        return 0.0 * t, alpha_sigma(t, xp)[1] * log_ratio

    def inverse(log_snr, xp):
        return (-log_snr / 2 - math.log(sigma_min)) / log_ratio

    arguments = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    return Schedule("variance_exploding", arguments, alpha_sigma, rates, inverse, start_std=lambda t: sigma_max)


def edm(sigma_min=0.002, sigma_max=80.0):
    """alpha = 1, sigma = sigma_max t, so that Heun in t is Heun in sigma (Karras et al. 2022).

    `sigma_min` is where the Karras spacing ends before its step to 0; t may exceed 1 under churn.
    """
    _check_sigmas(sigma_min, sigma_max)

    def alpha_sigma(t, xp):
        return (torch.ones_like(t) if xp is torch else 1.0), sigma_max * t

    def rates(t, xp):
        return 0.0 * t, sigma_max + 0.0 * t

    def inverse(log_snr, xp):
        return xp.exp(-log_snr / 2) / sigma_max

    arguments = {"sigma_min": sigma_min, "sigma_max": sigma_max}
    return Schedule("edm", arguments, alpha_sigma, rates, inverse, start_std=lambda t: sigma_max * t)


def flow(shift=1.0):
    """alpha = 1 - sigma: the straight paths of rectified flow (Liu et al. 2022) and flow matching; sigma = t.

    With a `shift` k other than 1, sigma = k t / (1 + (k - 1) t): the same paths, but k > 1 trains and samples more at
    high noise, as large pictures want (Esser et al. 2024, section 5.3.2: SD3 takes 3). A network of such a model reads
    sigma: time="999sigma".
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"shift must be above 0 and finite, got {shift}; 1 is no shift, SD3 takes 3")

    def alpha_sigma(t, xp):
        scale = 1 + (shift - 1) * t
        return (1 - t) / scale, shift * t / scale

    def rates(t, xp):
        rate = shift / (1 + (shift - 1) * t) ** 2
        return -rate, rate

    def inverse(log_snr, xp):
        return 1 / (1 + shift * xp.exp(log_snr / 2))

    return Schedule("flow", {"shift": shift}, alpha_sigma, rates, inverse)


SCHEDULES = {
    f.__name__: f for f in (linear, cosine, scaled_linear, sigmoid, sub_vp, variance_exploding, edm, flow)
}


def make_schedule(name, **arguments):
    """The schedule of this name, e.g. make_schedule("cosine", steps=1000); the inverse of `.name` and `.arguments`."""
    if name == "zero_terminal_snr":
        rest = dict(arguments)
        return zero_terminal_snr(make_schedule(rest.pop("of", "linear"), **rest))
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, [*SCHEDULES, "zero_terminal_snr"])
    return SCHEDULES[name](**arguments)
