# %% tags=["exercise"] name="threshold_in"
def threshold_in(x0, low, high, p=0.995):
    """x0 (B, C, H, W) of the range [low, high] -> the same, thresholded."""
    middle, half = (low + high) / 2, (high - low) / 2
    x = (x0 - middle) / half
    s = torch.quantile(x.abs().flatten(1), p, dim=1).clamp(min=1).view(-1, 1, 1, 1)
    return middle + half * x.clamp(-s, s) / s

# %% tags=["exercise"] name="blame"
def blame(small_right, large_right):
    """Two bool tensors (B,) -> (inherited, broken, repaired), floats."""
    parts = ~small_right & ~large_right, small_right & ~large_right, ~small_right & large_right
    return tuple(part.float().mean().item() for part in parts)

# %% tags=["exercise"] name="rescaled"
def rescaled(weights, activations, flops, width, side):
    """-> (weights, activations, flops)."""
    return weights * width**2, activations * width * side**2, flops * width**2 * side**2

# %% tags=["exercise"] name="gpus_for"
def gpus_for(days, steps, batch, forward, peak, utilisation, checkpointing):
    """-> a whole number of GPUs, a divisor of batch; 0 if not even one GPU a picture suffices."""
    work = steps * batch * forward * (4 if checkpointing else 3)
    needed = work / (days * 86_400 * peak * utilisation)
    return next((n for n in range(1, batch + 1) if batch % n == 0 and n >= needed), 0)
