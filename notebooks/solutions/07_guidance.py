# %% tags=["exercise"] name="guided_with_w"
def guided_with_w(with_y, without, w):
    """The guided prediction in the convention of Ho and Salimans; all are tensors (B, C, H, W), w a number."""
    return (1 + w) * with_y - w * without

# %% tags=["exercise"] name="classifier_guided_eps"
def classifier_guided_eps(eps, x_t, log_prob, y, sigma, scale):
    """log_prob(x, y) -> (B,) is differentiable in x (B, C, H, W); sigma and scale are numbers. Returns the new eps."""
    x = x_t.detach().requires_grad_()
    g = torch.autograd.grad(log_prob(x, y).sum(), x)[0]
    return eps - scale * sigma * g

# %% tags=["exercise"] name="rescale"
def rescale(guided, conditional, phi):
    """Both are predictions (B, C, H, W), phi is a number from 0 to 1."""
    dims = (1, 2, 3)
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return phi * ratio * guided + (1 - phi) * guided
