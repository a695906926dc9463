# %% tags=["exercise"] name="linear_from_conv"
def linear_from_conv(weight):
    """weight (dim, C, p, p) of a convolution with stride p -> (dim, p * p * C), the same map for patchify(x, p)."""
    return weight.permute(0, 2, 3, 1).flatten(1)

# %% tags=["exercise"] name="skip_weight"
def skip_weight(dim, a, b):
    """The weight (dim, 2 dim) of a Linear that makes a * x + b * lower of the concatenation [x, lower]."""
    return torch.cat([a * torch.eye(dim), b * torch.eye(dim)], dim=1)

# %% tags=["exercise"] name="grow_positions"
def grow_positions(pos_embed, extras, size):
    """pos_embed (1, extras + N, dim), N a square -> (1, extras + size * size, dim), the grid resized bilinearly."""
    first, grid = pos_embed[:, :extras], pos_embed[:, extras:]
    side = round(grid.shape[1] ** 0.5)
    grid = grid.transpose(1, 2).unflatten(2, (side, side))  # (1, dim, side, side)
    grid = F.interpolate(grid, size=(size, size), mode="bilinear")
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)
