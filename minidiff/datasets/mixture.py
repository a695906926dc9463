"""A Gaussian mixture: samples, exact log density and exact score, also after noise was added."""

import math

import torch


class GaussianMixture:
    """p(x) = sum_k w_k N(x; mu_k, C_k), with `weights` (K,), `means` (K, D), `covariances` (K, D, D).

    All methods take any batch shape of points (..., D) and answer in their dtype and on their device.
    """

    def __init__(self, weights, means, covariances):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.weights = self.weights / self.weights.sum()
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.covariances = torch.as_tensor(covariances, dtype=torch.float64)

    def sample(self, num, generator=None):
        """`num` points (num, D) float32 and the components they came from (num,) int64."""
        component = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        noise = torch.randn(num, self.means.shape[1], dtype=torch.float64, generator=generator)
        spread = torch.linalg.cholesky(self.covariances)[component]  # (num, D, D)
        return (self.means[component] + (spread @ noise[..., None])[..., 0]).float(), component

    def log_density(self, x, alpha=1.0, sigma=0.0):
        """log p(x) of alpha x0 + sigma eps, shape (...,); the defaults give the data's own density."""
        return self._terms(x, alpha, sigma)[0].logsumexp(-1)

    def score(self, x, alpha=1.0, sigma=0.0):
        """The gradient of `log_density` with respect to x, (..., D), in closed form."""
        terms, pull = self._terms(x, alpha, sigma)
        return -(terms.softmax(-1)[..., None] * pull).sum(-2)

    def _terms(self, x, alpha, sigma):
        """log w_k N(x; alpha mu_k, alpha^2 C_k + sigma^2), (..., K), and its inverse covariance times (x - mean)."""
        weights, means, covariances = (v.to(x) for v in (self.weights, self.means, self.covariances))
        dimension = means.shape[1]
        covariances = alpha**2 * covariances + sigma**2 * torch.eye(dimension).to(x)
        away = x[..., None, :] - alpha * means  # (..., K, D)
        pull = (torch.linalg.inv(covariances) @ away[..., None])[..., 0]
        log_norm = 0.5 * (torch.logdet(covariances) + dimension * math.log(2 * math.pi))
        return weights.log() - log_norm - 0.5 * (away * pull).sum(-1), pull
