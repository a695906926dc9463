# %% tags=["exercise"] name="pool"
def pool(tokens, mask):
    """tokens (B, L, D), mask (B, L) bool, True where a token counts -> (B, D)."""
    counts = mask[..., None].to(tokens.dtype)  # (B, L, 1)
    return (tokens * counts).sum(1) / counts.sum(1).clamp(min=1)

# %% tags=["exercise"] name="map_of_word"
def map_of_word(weights, word, extras=0):
    """weights (heads, extras + g * g, L) of one picture, each row summing to 1 -> (g, g)."""
    one = weights[:, extras:, word].mean(0)
    side = round(len(one) ** 0.5)
    return one.reshape(side, side)

# %% tags=["exercise"] name="twins"
def twins():
    """Two captions, such as 'a large red circle left of a small blue square'."""
    caption = "a small {} triangle right of a small {} square"
    return caption.format("red", "yellow"), caption.format("yellow", "red")
