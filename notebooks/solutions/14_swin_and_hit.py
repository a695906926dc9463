# %% tags=["exercise"] name="line_mask"
def line_mask(n, w, s):
    """-> (n / w windows, w, w), 0.0 or -100.0; 0 <= s < w, and w divides n."""
    place = torch.arange(n).roll(-s).view(-1, w)
    apart = (place[:, :, None] - place[:, None]).abs()
    return torch.where(apart >= w, -100.0, 0.0)

# %% tags=["exercise"] name="tf_shuffle"
def tf_shuffle(x):
    """x (B, 4 C, H, W), channels in the order (row, column, C) -> (B, C, 2 H, 2 W)."""
    return F.pixel_shuffle(x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2), 2)

# %% tags=["exercise"] name="reached"
def reached(allowed):
    """allowed: a list of (N, N) bool, the first layer first -> (N, N) bool, True where output i depends on input j."""
    seen = torch.eye(len(allowed[0]))
    for pairs in allowed:
        seen = ((pairs.float() + torch.eye(len(pairs))) @ seen > 0).float()
    return seen > 0
