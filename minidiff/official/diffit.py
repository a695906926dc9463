"""DiffiT (Hatamizadeh et al. 2024): the state dicts of its official code and weights -> our LatentDiffiT's."""

import re

from minidiff.layers import sincos_positions
from minidiff.official import dit

RENAMES = [*dit.RENAMES[:3], (r"^final_layer\.linear\.", "head.")]  # theirs -> ours
INDEX = re.compile(r"\.relative_position_index$")  # a table of whole numbers that ours makes itself

# One of our names, and for each of them whose weights were published what they were trained with
MODEL = "diffit_xl_256"
RELEASED = {"diffit_xl_256": dit.TRAINED, "diffit_xl_512": dit.TRAINED}


def convert(state, arguments=None):
    """The state dict of our LatentDiffiT from an official one: {name: tensor} -> {name: tensor}.

    arguments: those of our network; from them come the fixed positions of a file that does not hold them.
    """
    result = {}
    for name, tensor in state.items():
        if INDEX.search(name):
            continue
        for theirs, ours in RENAMES:
            name = re.sub(theirs, ours, name)
        result[name] = tensor
    if arguments and "pos_embed" not in result:
        grid = arguments["img_size"] // arguments["patch_size"]
        result["pos_embed"] = sincos_positions(arguments["hidden_size"], grid, grid)[None]
    return result


def arguments(config):
    """The arguments of our LatentDiffiT from those of the official constructor, which are DiT's.

    Raises ValueError for an argument that our network has no equal of.
    """
    ours = dit.arguments(config)
    del ours["conditioning"]
    return ours
