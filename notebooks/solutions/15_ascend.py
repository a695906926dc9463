# %% tags=["exercise"] name="pairs_in_windows"
def pairs_in_windows(size, window):
    """The number of (query, key) pairs, a whole number."""
    side = min(size, window)
    return (-(-size // side)) ** 2 * side**4

# %% tags=["exercise"] name="conv_from_merge"
def conv_from_merge(weight):
    """weight (out, 4 c) of PatchMerging.reduction -> (out, c, 2, 2), a convolution of stride 2 that does the same."""
    return weight.unflatten(1, (2, 2, -1)).permute(0, 3, 2, 1)  # out, column, row, c -> out, c, row, column

# %% tags=["exercise"] name="light_decode"
def light_decode(h, last, units, ups, emb):
    """The map that the unit of level 0 returns."""
    for level in reversed(range(len(units))):
        h = units[level](torch.cat([h, last[level]], dim=1), emb)
        if level:
            h = ups[level - 1](h)
    return h
