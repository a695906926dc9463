# %% tags=["exercise"] name="keep"
def keep(about):
    """about: the metadata, a dict -> whether to use the sample."""
    return min(about["width"], about["height"]) >= 256 and about.get("similarity", 1.0) >= 0.28

# %% tags=["exercise"] name="passes"
def passes(memory, weights, per_picture, batch, gpus):
    """memory: bytes of one GPU -> the smallest number of passes, or 0."""
    room = (memory - 20 * weights) // per_picture  # pictures of one pass on one GPU
    for parts in range(1, batch // gpus + 1):
        if batch % (gpus * parts) == 0 and batch // (gpus * parts) <= room:
            return parts
    return 0

# %% tags=["exercise"] name="moved_to"
def moved_to(recipe, batch_size):
    """recipe: dict of steps, warmup, batch_size, lr, ema -> the same for another batch_size; steps are whole."""
    k = recipe["batch_size"] / batch_size
    return {"steps": round(k * recipe["steps"]), "warmup": round(k * recipe["warmup"]), "batch_size": batch_size,
            "lr": recipe["lr"] / k**0.5, "ema": recipe["ema"] ** (1 / k)}
