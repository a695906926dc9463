# %% tags=["exercise"] name="time_weights"
def time_weights(depth, dim):
    """(all parameters of the maps of c, those without any effect), two whole numbers."""
    return depth * 3 * dim * (dim + 1), depth * dim * (dim + 1)

# %% tags=["exercise"] name="look_from"
def look_from(maps, row, column, side, window):
    """maps (windows, heads, window^2, window^2) of a square of `side` pixels -> (heads, side, side)."""
    top, left = row // window * window, column // window * window
    number = row // window * (side // window) + column // window
    asking = (row - top) * window + column - left
    picture = torch.zeros(maps.shape[1], side, side)
    picture[:, top : top + window, left : left + window] = maps[number, :, asking].unflatten(1, (window, window))
    return picture

# %% tags=["exercise"] name="timed_bias"
def timed_bias(tables, g):
    """tables (B, (2g - 1)^2, heads), for rows apart first and columns apart second -> (B, heads, g^2, g^2)."""
    row, column = torch.arange(g * g) // g, torch.arange(g * g) % g
    down, right = row[:, None] - row, column[:, None] - column
    return tables[:, (down + g - 1) * (2 * g - 1) + right + g - 1].permute(0, 3, 1, 2)
