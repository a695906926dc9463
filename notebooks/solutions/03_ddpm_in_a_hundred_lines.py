# %% tags=["exercise"] name="v_loss"
def v_loss(network, x0, i, eps, table):
    """The mean squared error of v, a number; the network is called as network(x_i, i)."""
    v = at(table.alpha, i, x0) * eps - at(table.sigma, i, x0) * x0
    return (network(q_sample(x0, i, eps, table), i) - v).square().mean()

# %% tags=["exercise"] name="sample_ddim"
@torch.no_grad()
def sample_ddim(network, table, x, stride):
    """x (B, ...) of pure noise -> samples; stops at entries T - 1, T - 1 - stride, ... as long as they are >= 0."""
    _, alpha, sigma = table
    for i in range(len(alpha) - 1, -1, -stride):
        eps = network(x, torch.full((len(x),), i))
        x0 = (x - sigma[i] * eps) / alpha[i]
        j = i - stride
        x = alpha[j] * x0 + sigma[j] * eps if j >= 0 else x0
    return x

# %% tags=["exercise"] name="copied"
def copied(samples, training):
    """The share, from 0 to 1, of samples (M, ...) that are copies of one of the training pictures (N, ...)."""
    distance = torch.cdist(samples.flatten(1), training.flatten(1))  # (M, N)
    first, second = distance.topk(2, dim=1, largest=False).values.T
    return (first < second / 3).float().mean().item()
