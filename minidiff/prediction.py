"""What a network says about a noisy image, in whichever of six languages, and the way from each to x0 and eps."""

import torch

from minidiff.errors import unknown_name

SIGMA_DATA = 0.5  # standard deviation of the data in EDM's preconditioning (Karras et al. 2022, table 1)


def _eps(alpha, sigma):
    return (1 / alpha, -sigma / alpha), (0.0, 1.0)


def _x0(alpha, sigma):
    return (0.0, 1.0), (1 / sigma, -alpha / sigma)


def _v(alpha, sigma):
    norm = alpha * alpha + sigma * sigma  # 1 for variance-preserving schedules
    return (alpha / norm, -sigma / norm), (sigma / norm, alpha / norm)


def _flow(alpha, sigma):
    norm = alpha + sigma  # 1 for flows
    return (1 / norm, -sigma / norm), (1 / norm, alpha / norm)


def _score(alpha, sigma):
    return (1 / alpha, sigma * sigma / alpha), (0.0, -sigma)


def _edm(alpha, sigma):
    norm = sigma * sigma + (alpha * SIGMA_DATA) ** 2
    root = norm**0.5
    return (alpha * SIGMA_DATA**2 / norm, sigma * SIGMA_DATA / root), (sigma / norm, -alpha * SIGMA_DATA / root)


# kind -> function of (alpha, sigma) -> ((a, b) with x0 = a x_t + b out, (c, d) with eps = c x_t + d out)
KINDS = {"eps": _eps, "x0": _x0, "v": _v, "flow": _flow, "score": _score, "edm": _edm}


def check_kind(kind):
    """Raise ValueError, with the nearest valid names, unless `kind` names a prediction type."""
    if kind not in KINDS:
        raise unknown_name("prediction", kind, KINDS)


def target(kind, x0, eps, alpha, sigma):
    """What a network of this kind is trained to return for x_t = alpha x0 + sigma eps; the shape of x0.

    v = alpha eps - sigma x0 (Salimans and Ho 2022), flow = eps - x0, score = -eps / sigma; for "edm" the target of
    the raw network F (Karras et al. 2022, eq. 8).
    """
    check_kind(kind)
    if kind == "eps":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind == "flow":
        return eps - x0
    if kind == "score":
        return -eps / sigma
    (a, b), _ = _edm(alpha, sigma)
    return (x0 - a * (alpha * x0 + sigma * eps)) / b


def combine(a, x, b, y):
    """a x + b y in two operations for floats a and b, three for tensors.

    Half of a sampler's time goes into these: as `alpha` a float costs nothing, as a factor it is made a tensor first.
    """
    if isinstance(b, torch.Tensor):
        return a * x + b * y
    return torch.add(x, x, alpha=a - 1).add_(y, alpha=b)


class Prediction:
    """A network's output `out` of a `kind` at x_t = alpha x0 + sigma eps, read as x0, eps, v, score or flow velocity.

    alpha and sigma are floats, or tensors that broadcast against x_t (B, C, H, W). x0 and eps are formed on first
    use. v, flow and edm are finite everywhere; x0 from eps or score needs alpha > 0, eps from x0 needs sigma > 0.
    `v_range` is the raw second half of a network that also predicts a variance range, else None.
    """

    def __init__(self, kind, x_t, out, alpha, sigma, v_range=None):
        self.kind, self.x_t, self.out, self.alpha, self.sigma, self.v_range = kind, x_t, out, alpha, sigma, v_range
        self._x0 = out if kind == "x0" else None
        self._eps = out if kind == "eps" else None

    @property
    def x0(self):
        """The clean image that the network sees in x_t."""
        if self._x0 is None:
            (a, b), _ = KINDS[self.kind](self.alpha, self.sigma)
            self._x0 = combine(a, self.x_t, b, self.out)
        return self._x0

    @property
    def eps(self):
        """The noise that the network sees in x_t."""
        if self._eps is None:
            _, (c, d) = KINDS[self.kind](self.alpha, self.sigma)
            self._eps = d * self.out if self.kind == "score" else combine(c, self.x_t, d, self.out)
        return self._eps

    @property
    def v(self):
        """alpha eps - sigma x0."""
        return self.out if self.kind == "v" else self.alpha * self.eps - self.sigma * self.x0

    @property
    def flow(self):
        """The velocity eps - x0 of the straight path from data to noise."""
        return self.out if self.kind == "flow" else self.eps - self.x0

    @property
    def score(self):
        """The gradient of log p(x_t): -eps / sigma."""
        return self.out if self.kind == "score" else -self.eps / self.sigma

    def replace(self, kind, out):
        """The same x_t with another output: how clipping, thresholding and guidance change a prediction."""
        return Prediction(kind, self.x_t, out, self.alpha, self.sigma, self.v_range)


def clip(denoise, low=-1.0, high=1.0):
    """A bound denoiser whose x0 stays in [low, high]; eps is derived anew from the clipped x0. Goes outermost."""

    def clipped(x_t, t):
        prediction = denoise(x_t, t)
        return prediction.replace("x0", torch.clamp(prediction.x0, low, high))

    return clipped
