# %% tags=["exercise"] name="shifted_grid"
def shifted_grid(steps, k):
    """steps + 1 floats (a list or a tensor), the first 1, the last 0; k = 1 gives even steps."""
    t = torch.linspace(1, 0, steps + 1)
    return k * t / (1 + (k - 1) * t)

# %% tags=["exercise"] name="sit_loss"
def sit_loss(network, x0, eps, tau):
    """The mean squared error, a number. x0, eps (B, 2); tau (B,); the network is called as network(x, tau)."""
    x = tau[:, None] * x0 + (1 - tau)[:, None] * eps
    return (network(x, tau) - (x0 - eps)).square().mean()

# %% tags=["exercise"] name="untangle"
def untangle(x0, eps, i, j):
    """A new x0 (N, 2) in which x0[i[k]] and x0[j[k]] are exchanged wherever that shortens; no index occurs twice."""
    now = (x0[i] - eps[i]).square().sum(1) + (x0[j] - eps[j]).square().sum(1)
    exchanged = (x0[j] - eps[i]).square().sum(1) + (x0[i] - eps[j]).square().sum(1)
    better = exchanged < now
    new = x0.clone()
    new[i[better]], new[j[better]] = x0[j[better]], x0[i[better]]
    return new
