"""Oracles: data whose noisy density, score and ideal denoiser are known exactly, at every t of every schedule.

With x_t = alpha x0 + sigma eps the density of x_t is that of alpha x0, blurred by a Gaussian of width sigma. For a
Gaussian, a mixture and a finite set of pictures that is a formula, and so are its score and E[x0 | x_t]. What a network
has to learn is known here, so samplers, guidance and likelihoods can be checked without one.
"""

import math

import torch

from minidiff.prediction import Prediction
from minidiff.schedules import match

CHUNK = 2**24  # entries of the matrix of distances that FiniteData holds at a time
ALPHA_MIN = 1e-6  # below it, what FiniteData sees of the data is less than float32 resolves


def fit(value, like):
    """A float as it is; a tensor (B,) in the type of `like` (B, ...) and in a shape that broadcasts against it."""
    return match(value, like).to(like) if isinstance(value, torch.Tensor) else value


def ideal_denoiser(oracle, schedule):
    """The bound denoiser (x_t, t, y=None) -> Prediction of an oracle: what samplers and guidance take."""

    def denoise(x_t, t, y=None):
        return oracle.denoise(x_t, t, schedule, y)

    return denoise


def class_log_weights(weights, labels):
    """log p(k | y), (classes + 1, K), float64: row y holds the weights of class y alone, the last row those of all."""
    log_weights = (weights / weights.sum()).log()
    if labels is None:
        return log_weights[None]
    labels = torch.as_tensor(labels)
    classes = int(labels.max()) + 1
    if labels.shape != weights.shape or labels.is_floating_point() or sorted(set(labels.tolist())) != [*range(classes)]:
        raise ValueError(
            f"labels must be whole numbers ({len(weights)},) in which each of 0 to classes - 1 occurs, got {labels}"
        )
    members = labels == torch.arange(classes)[:, None]
    rows = torch.where(members, log_weights, -math.inf).log_softmax(1)
    return torch.cat([rows, log_weights[None]])


class Mixture:
    """p(x0) = sum_k w_k N(x0; mu_k, C_k), on vectors or pictures.

    weights (K,), of any positive sum; means (K, *shape), shape being (D,) or (C, H, W). spread: standard deviations
    (a number or (K,)), or covariances: diagonals (K, *shape) or matrices (K, D, D), with D the size of a picture.
    labels (K,), optional: the class of each component; then all methods take y (B,), whose class keeps only its
    own components, and `null(y)` means all of them. Everything is kept in float64 and used in the type of x_t.
    """

    def __init__(self, weights, means, spread, labels=None):
        means = torch.as_tensor(means, dtype=torch.float64)
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if means.ndim < 2 or weights.shape != means.shape[:1] or not (weights > 0).all():
            raise ValueError(
                f"weights (K,) must be positive and means (K, D) or (K, C, H, W), got weights {weights} and means"
                f" {tuple(means.shape)}"
            )
        self.shape, self.weights, self.means = means.shape[1:], weights / weights.sum(), means.flatten(1)
        self.variances, self.basis = spectrum(torch.as_tensor(spread, dtype=torch.float64), means)
        self.log_weights = class_log_weights(weights, labels)
        self._on_device = {}

    def null(self, y):
        """The label of the shape of y that means 'no class': all components count."""
        return torch.full_like(y, len(self.log_weights) - 1)

    def denoiser(self, schedule):
        """The bound denoiser (x_t, t, y=None) -> Prediction; t is a float or a tensor (B,)."""
        return ideal_denoiser(self, schedule)

    def denoise(self, x_t, t, schedule, y=None):
        """E[x0 | x_t] = sum_k p(k | x_t) (mu_k + alpha C_k (alpha^2 C_k + sigma^2)^-1 (x_t - alpha mu_k)).

        The x0 of the Prediction; x_t itself at t = 0. p(k | x_t) is the softmax of log w_k N(x_t; alpha mu_k,
        alpha^2 C_k + sigma^2) (Bishop 2006, eq. 2.116 and 9.13).
        """
        alpha, sigma = schedule(t)
        x0 = self.posterior_mean(x_t, alpha, sigma, y)
        return Prediction("x0", x_t, x0, fit(alpha, x_t), fit(sigma, x_t))

    def score(self, x_t, t, schedule, y=None):
        """The gradient of log p_t(x_t), -sum_k p(k | x_t) (alpha^2 C_k + sigma^2)^-1 (x_t - alpha mu_k), like x_t."""
        return self.score_at(x_t, *schedule(t), y)

    def log_density(self, x_t, t, schedule, y=None):
        """log sum_k w_k N(x_t; alpha mu_k, alpha^2 C_k + sigma^2) in nats, (B,); the data's own density at t = 0."""
        return self.log_density_at(x_t, *schedule(t), y)

    def posterior_mean(self, x, alpha, sigma, y=None):
        """`denoise` for given alpha and sigma, floats or tensors (B,)."""
        logs, gap, variance, alpha = self._terms(x, alpha, sigma, y)
        means, variances, basis, _ = self._on(x)
        inner = alpha * variances / variance * gap
        inner = inner if basis is None else torch.einsum("bke,kde->bkd", inner, basis)
        return torch.einsum("bk,bkd->bd", logs.softmax(1), means + inner).view(x.shape)

    def score_at(self, x, alpha, sigma, y=None):
        """`score` for given alpha and sigma, floats or tensors (B,)."""
        logs, gap, variance, _ = self._terms(x, alpha, sigma, y)
        basis, pull = self._on(x)[2], gap / variance
        pull = pull if basis is None else torch.einsum("bke,kde->bkd", pull, basis)
        return -torch.einsum("bk,bkd->bd", logs.softmax(1), pull).view(x.shape)

    def log_density_at(self, x, alpha=1.0, sigma=0.0, y=None):
        """`log_density` for given alpha and sigma, floats or tensors (B,)."""
        return self._terms(x, alpha, sigma, y)[0].logsumexp(1)

    def sample(self, num, generator=None, y=None):
        """`num` samples x0 (num, *shape), float64, of all components or of the class y, a number."""
        row = self.log_weights[-1 if y is None else y]
        k = torch.multinomial(row.exp(), num, replacement=True, generator=generator)
        noise = torch.randn(num, self.means.shape[1], dtype=torch.float64, generator=generator)
        noise = self.variances[k].sqrt() * noise
        if self.basis is not None:
            noise = torch.einsum("be,bde->bd", noise, self.basis[k])
        return (self.means[k] + noise).view(num, *self.shape)

    def _on(self, x):
        """Means, variances, basis and log weights in the type and on the device of x, copied there once."""
        key = (x.device, x.dtype)
        if key not in self._on_device:
            kept = (self.means, self.variances, self.basis, self.log_weights)
            self._on_device[key] = [None if v is None else v.to(x.dtype).to(x.device) for v in kept]
        return self._on_device[key]

    def _terms(self, x, alpha, sigma, y):
        """log w_k N(x; ...) (B, K), x - alpha mu_k and its variances (B, K, D) in each component's own axes, alpha."""
        means, variances, basis, log_weights = self._on(x)
        gap = x.flatten(1)[:, None]
        alpha, sigma = fit(alpha, gap), fit(sigma, gap)
        gap = gap - alpha * means
        gap = gap if basis is None else torch.einsum("bkd,kde->bke", gap, basis)
        variance = alpha**2 * variances + sigma**2  # (K, D), (K, 1) if all axes share it; or (B, K, ...)
        size = means.shape[1]
        volume = variance.log().sum(-1) * (size / variance.shape[-1]) + size * math.log(2 * math.pi)
        prior = log_weights[-1] if y is None else log_weights[y]
        return prior - (gap.square() / variance).sum(-1) / 2 - volume / 2, gap, variance, alpha


class Gaussian(Mixture):
    """p(x0) = N(x0; mean, covariance): the mixture with one component, whose denoiser is linear in x_t.

    mean (D,) or (C, H, W); covariance: a variance for all, a diagonal of the shape of the mean, or a matrix (D, D).
    """

    def __init__(self, mean, covariance):
        mean = torch.as_tensor(mean, dtype=torch.float64)
        covariance = torch.as_tensor(covariance, dtype=torch.float64)
        if covariance.ndim == 0:
            covariance = covariance.expand(mean.shape)
        super().__init__([1.0], mean[None], covariance[None])


def spectrum(spread, means):
    """Variances (K, 1) or (K, D), and the axes (K, D, D) they belong to, None for the coordinate axes."""
    count, size = len(means), means[0].numel()
    basis = None
    if spread.ndim == 0 or spread.shape == (count,):
        variances = (spread.sign() * spread.square()).expand(count)[:, None]
    elif spread.shape == means.shape:
        variances = spread.flatten(1)
    elif spread.shape == (count, size, size):
        if not torch.allclose(spread, spread.mT):  # eigh would read the lower half alone
            gap = (spread - spread.mT).abs().max()
            raise ValueError(f"a covariance must be symmetric, got entries {gap:g} apart; of a factor L take L @ L.T")
        variances, basis = torch.linalg.eigh(spread)
    else:
        raise ValueError(
            f"the spread of {count} components of shape {tuple(means.shape[1:])} must be a number, ({count},),"
            f" {tuple(means.shape)} or ({count}, {size}, {size}), got shape {tuple(spread.shape)}"
        )
    if not (variances > 0).all():
        raise ValueError(f"variances must be positive, the least is {variances.min():g}; points alone are FiniteData")
    return variances, basis


class FiniteData:
    """The data are N pictures, each as likely as any other: what a network that learns its training set by heart knows.

    images (N, *shape); labels (N,), optional, as for `Mixture`. Distances are formed from differences, so that they
    are right at the least noise, for so many of the B pictures at a time that the distances have CHUNK entries.
    """

    def __init__(self, images, labels=None):
        images = torch.as_tensor(images)
        if images.ndim < 2 or not len(images) or not images.is_floating_point():
            raise ValueError(f"images must be floats (N, D) or (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        self.images, self.shape = images, images.shape[1:]
        self.log_weights = class_log_weights(torch.ones(len(images), dtype=torch.float64), labels)
        self._on_device = {}

    null = Mixture.null
    denoiser = Mixture.denoiser

    def denoise(self, x_t, t, schedule, y=None):
        """E[x0 | x_t] = sum_i softmax_i(-|x_t - alpha y_i|^2 / (2 sigma^2)) y_i (Karras et al. 2022, eq. 57).

        The x0 of the Prediction: the ideal denoiser. At t = 0 the nearest of the pictures.
        """
        alpha, sigma = schedule(t)
        images = self._on(x_t)[0]
        x0 = [logs.softmax(1) @ images for logs in self._logs(x_t, alpha, sigma, y)]
        return Prediction("x0", x_t, torch.cat(x0).view(x_t.shape), fit(alpha, x_t), fit(sigma, x_t))

    def score(self, x_t, t, schedule, y=None):
        """(alpha E[x0 | x_t] - x_t) / sigma^2, like x_t (Karras et al. 2022, eq. 3). ValueError at t = 0."""
        self._check_noise(t)
        alpha, sigma = (fit(value, x_t) for value in schedule(t))
        return (alpha * self.denoise(x_t, t, schedule, y).x0 - x_t) / sigma**2

    def log_density(self, x_t, t, schedule, y=None):
        """log (1 / N) sum_i N(x_t; alpha y_i, sigma^2) in nats, (B,). ValueError at t = 0: points have no density."""
        self._check_noise(t)
        alpha, sigma = schedule(t)
        sums = [logs.logsumexp(1) for logs in self._logs(x_t, alpha, sigma, y, from_nearest=False)]
        log_sigma = sigma.log().to(x_t) if isinstance(sigma, torch.Tensor) else math.log(sigma)
        return torch.cat(sums) - x_t[0].numel() * (log_sigma + math.log(2 * math.pi) / 2)

    def sample(self, num, generator=None, y=None):
        """`num` of the pictures (num, *shape), drawn with replacement, of all or of the class y, a number."""
        row = self.log_weights[-1 if y is None else y]
        return self.images[torch.multinomial(row.exp(), num, replacement=True, generator=generator)]

    def _check_noise(self, t):
        if not isinstance(t, torch.Tensor) and t == 0:
            raise ValueError("a finite set of points has no density and no score at t = 0; take t > 0, or a Mixture")

    def _on(self, x):
        """Pictures (N, D) and log weights in the type and on the device of x, copied there once."""
        key = (x.device, x.dtype)
        if key not in self._on_device:
            kept = (self.images.flatten(1), self.log_weights)
            self._on_device[key] = [v.to(x.dtype).to(x.device) for v in kept]
        return self._on_device[key]

    def _logs(self, x, alpha, sigma, y, from_nearest=True):
        """Parts (b, N) of log (1 / N) - (|x - alpha y_i|^2, less that of the nearest) / (2 sigma^2)."""
        images, log_weights = self._on(x)
        x = x.flatten(1)
        alpha, sigma = fit(alpha, x), fit(sigma, x)
        if isinstance(alpha, torch.Tensor):  # |x - alpha y| = alpha |x / alpha - y|; where alpha is 0, y is no matter
            alpha = alpha.clamp(min=ALPHA_MIN)
            variance = (sigma / alpha).square().clamp(min=torch.finfo(x.dtype).tiny)
        else:
            alpha = max(alpha, ALPHA_MIN)
            variance = max((sigma / alpha) ** 2, torch.finfo(x.dtype).tiny)
        prior = (log_weights[-1] if y is None else log_weights[y]).expand(len(x), -1)
        scaled, rows = x / alpha, max(1, CHUNK // len(images))
        for first in range(0, len(x), rows):
            part = slice(first, first + rows)
            distance = torch.cdist(scaled[part], images, compute_mode="donot_use_mm_for_euclid_dist").square()
            if from_nearest:  # of those that count; others may be nearer, and must not become -inf + inf
                nearest = distance.masked_fill(prior[part] == -math.inf, math.inf).amin(1, keepdim=True)
                distance = (distance - nearest.detach()).clamp(min=0)
            over = variance[part] if isinstance(variance, torch.Tensor) else variance
            yield prior[part] - distance / (2 * over)
