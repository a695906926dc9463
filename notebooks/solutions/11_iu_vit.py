# %% tags=["exercise"] name="head_cost"
def head_cost(dim, p):
    """Operations per token: (linear first with its 3 x 3 convolution, rearrange first)."""
    linear = 2 * dim * 3 * p**2 + p**2 * 2 * 9 * 3 * 3
    rearrange = p**2 * 2 * 9 * (dim // p**2) * 3  # the patch drops out: 54 dim
    return linear, rearrange

# %% tags=["exercise"] name="dwconv_by_shifts"
def dwconv_by_shifts(x, weight, bias, extras):
    """x (B, extras + side^2, C), weight (C, 1, 3, 3), bias (C,) -> the shape of x."""
    side = int((x.shape[1] - extras) ** 0.5)
    grid = F.pad(x[:, extras:].unflatten(1, (side, side)), (0, 0, 1, 1, 1, 1))  # (B, side + 2, side + 2, C)
    out = bias
    for a in range(3):
        for b in range(3):
            out = out + weight[:, 0, a, b] * grid[:, a : a + side, b : b + side]
    return torch.cat([x[:, :extras], out.flatten(1, 2)], dim=1)

# %% tags=["exercise"] name="text_share"
def text_share(q, k_text, k_image, mask):
    """q, k_image (B, heads, N, c), k_text (B, heads, L, c), mask (B, L) bool -> s (B, heads, N)."""
    text, image = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5 for k in (k_text, k_image))
    text = text.masked_fill(~mask[:, None, None], -torch.inf)  # e to this is 0: padding adds nothing to the sum
    return torch.sigmoid(text.logsumexp(3) - image.logsumexp(3))
