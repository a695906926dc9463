# %% tags=["exercise"] name="gate_gradients"
def gate_gradients(slope, branch, gate):
    """slope = dL/dx' (B, N, d), branch = f(x) (B, N, d), gate (B, d) -> (dL/dgate (B, d), dL/dbranch (B, N, d))."""
    return (slope * branch).sum(1), gate[:, None] * slope

# %% tags=["exercise"] name="dit_weights"
def dit_weights(depth, d, p):
    """The number of parameters, a whole number."""
    entrance = (4 * p * p + 1) * d + (32 // p) ** 2 * d  # patches and fixed positions
    condition = (256 + 1) * d + (d + 1) * d + 1001 * d  # time, and one row for no class
    branches = 4 * (d + 1) * d + (d + 1) * 4 * d + (4 * d + 1) * d  # q, k, v, out; MLP
    modulation = (d + 1) * 6 * d
    head = (d + 1) * 2 * d + (d + 1) * 8 * p * p  # 4 channels and their variance
    return entrance + condition + depth * (branches + modulation) + head

# %% tags=["exercise"] name="adaln_single"
def adaln_single(shared, tables):
    """shared (B, 6 d) from the one map, tables (L, 6, d) -> the six vectors of every block, (L, B, 6, d)."""
    return shared.unflatten(1, (6, -1)) + tables[:, None]
