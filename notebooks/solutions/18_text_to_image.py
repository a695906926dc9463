# %% tags=["exercise"] name="share_and_error"
def share_and_error(right):
    """right: a list of N bools -> (share, its standard error), two floats."""
    share = sum(right) / len(right)
    return share, (share * (1 - share) / len(right)) ** 0.5

# %% tags=["exercise"] name="gentlest"
def gentlest(right):
    """right: {scale: (N,) bool}, the same captions and noise for all -> a scale, one of the keys."""
    best = max(right, key=lambda scale: right[scale].double().mean())
    for scale in sorted(right):
        gap = right[best].double() - right[scale].double()
        if gap.mean() <= 2 * gap.std() / len(gap) ** 0.5:
            return scale

# %% tags=["exercise"] name="shows"
def shows(caption, pair):
    """Whether the picture of this caption shows the pair: True or False."""
    scene = parse(caption)
    places = [scene.relation, RELATIONS.get(scene.relation)]  # of each thing to the other
    return any(thing.shape == pair[1] and pair[0] in (thing.colour, place)
               for thing, place in zip(scene.things, places))
