"""A Gaussian mixture as a data set: samples with their components, exact log density and score, noisy or not."""

import torch

from minidiff.oracles import Mixture


class GaussianMixture:
    """p(x) = sum_k w_k N(x; mu_k, C_k), with `weights` (K,), `means` (K, D), `covariances` (K, D, D).

    All methods take any batch shape of points (..., D) and answer in their dtype and on their device. `.oracle` is the
    same density for every t of a schedule, with the components as classes: `oracles.Mixture`.
    """

    def __init__(self, weights, means, covariances):
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        self.weights = self.weights / self.weights.sum()
        self.means = torch.as_tensor(means, dtype=torch.float64)
        self.covariances = torch.as_tensor(covariances, dtype=torch.float64)
        self.oracle = Mixture(self.weights, self.means, self.covariances, labels=range(len(self.weights)))

    def sample(self, num, generator=None):
        """`num` points (num, D) float32 and the components they came from (num,) int64."""
        component = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        noise = torch.randn(num, self.means.shape[1], dtype=torch.float64, generator=generator)
        spread = torch.linalg.cholesky(self.covariances)[component]  # (num, D, D)
        return (self.means[component] + (spread @ noise[..., None])[..., 0]).float(), component

    def log_density(self, x, alpha=1.0, sigma=0.0):
        """log p(x) of alpha x0 + sigma eps, shape (...,); the defaults give the data's own density."""
        return self.oracle.log_density_at(x.reshape(-1, x.shape[-1]), alpha, sigma).view(x.shape[:-1])

    def score(self, x, alpha=1.0, sigma=0.0):
        """The gradient of `log_density` with respect to x, (..., D), in closed form."""
        return self.oracle.score_at(x.reshape(-1, x.shape[-1]), alpha, sigma).view(x.shape)
