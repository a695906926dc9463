"""`minidiff train NAME --smoke`: the same recipe on a network of milliseconds, for two steps, on noise."""

from minidiff.commands.data import TEXT_SHAPE

SIZE, CLASSES = 8, 3
SMALL = {"steps": 2, "batch_size": 4, "warmup": 1, "workers": 0, "accumulate": 1, "log_every": 1, "save_every": 2,
         "progress": False, "amp": None, "data": "noise", "size": SIZE}  # fmt: skip
LATENT_DIFFIT = dict(hidden_size=24, depth=2, num_heads=2)  # the only family whose test size is another network's


def shrink(options):
    """Make these Train options small, in place: network FAMILY_test, 8 pixels, random data, and the rest as it is."""
    from minidiff.commands.train import published

    known = published(options)
    family = {"iddpm": "adm"}.get(name := options.network.split("_")[0], name)
    family = "adm" if options.network.startswith("edm_adm") else family
    channels, arguments = known["in_channels"], {}
    if options.network.startswith("diffit_xl"):
        arguments |= LATENT_DIFFIT | {"num_classes": CLASSES}
    else:
        options.network = f"{family}_test"
    if "learn_sigma" in known:
        arguments["learn_sigma"] = known["learn_sigma"]
    if known.get("text_dim"):
        arguments["text_dim"] = TEXT_SHAPE[1]
        arguments |= {"pooled_dim": TEXT_SHAPE[1]} if known.get("pooled_dim") else {}
        options.encoder = "minidiff.commands.data:random_text"
    options.arguments = arguments
    options.data_options = {"channels": channels, "classes": CLASSES}
    options.sampling = options.sampling | ({"steps": 3} if "steps" in options.sampling else {})
    for key, value in SMALL.items():
        setattr(options, key, value)
