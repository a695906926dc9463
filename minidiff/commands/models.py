"""MODEL of a command line to a trained Diffusion: a run, a pretrained folder or shipped weights."""

from pathlib import Path

CONFIG = "config.json"


class Opened:
    """A trained model and where it comes from.

    diffusion: with the averaged weights, in eval mode. options: the Train options of its run, or None. folder: of a
    run or a pretrained model, None for shipped weights. card: what is known of the training, a dict.
    """

    def __init__(self, diffusion, options, folder, card):
        self.diffusion, self.options, self.folder, self.card = diffusion, options, folder, card

    @property
    def encoder(self):
        """What --encoder was in the training, or the name in the data card; None if neither is known."""
        return self.options.encoder if self.options else self.card.get("encoder")

    def data(self, options, **more):
        """The data set that the command's options name, else that of the training; its `split`, or "test" if it has.

        Returns (data set, its name). Raises ValueError if neither is known.
        """
        from minidiff.commands.data import load_data

        run, known = self.options, self.card.get("dataset") or {}
        known = {"name": known} if isinstance(known, str) else dict(known)
        name = options.data or (run.data if run else known.pop("name", None))
        if name is None:
            raise ValueError("what the model was trained on is not written beside it: name a data set with --data.")
        own = {} if options.data else (run.data_options if run else known)
        own = {key: value for key, value in {**own, **options.data_options}.items() if key not in ("size", "split")}
        for split in (options.split,) if options.split else ("test", None):
            try:
                return load_data(name, size=self.diffusion.shape[-1], split=split, **own, **more), name
            except ValueError:
                if split is None or options.split:  # not every set has a part for tests
                    raise

    def sampling(self, options):
        """The arguments of minidiff.sample: those of the run, then those of the command line."""
        chosen = dict(self.options.sampling if self.options else self.card.get("sampling") or {})
        chosen.pop("prompts", None)
        given = {key: getattr(options, key) for key in ("sampler", "steps", "guidance")}
        given = {key: value for key, value in given.items() if value is not None}
        if given.get("sampler", chosen.get("sampler")) != chosen.get("sampler"):
            chosen = {key: chosen[key] for key in ("guidance",) if key in chosen}  # the rest suited another sampler
        return chosen | given | options.options


def open_model(words, command, device=None):
    """The Opened model that the first of these words names; ValueError or FileNotFoundError if there is none."""
    if not words or words[0].startswith("-"):
        raise ValueError(f"say which model: minidiff {command} MODEL, the folder of a run or of a pretrained model, or "
                         "the name of shipped weights, such as emoji-unet.")
    from minidiff.diffusion import Diffusion

    opened = _open(words[0])
    if not isinstance(opened.diffusion, Diffusion):
        raise ValueError(f"{words[0]} holds a {type(opened.diffusion).__name__}, which judges pictures and draws none.")
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    opened.diffusion.to(device).eval()
    return opened


def _open(name):
    from minidiff.checkpoints import WEIGHTS, from_pretrained, load, read_card
    from minidiff.commands.train import from_config
    from minidiff.training import checkpoints

    folder = Path(name).expanduser()
    if not folder.is_dir():
        if "/" in name or name.startswith("."):
            raise FileNotFoundError(f"there is no folder {name}; give that of a run (minidiff train prints it) or of a "
                                    "pretrained model, or the name of shipped weights, such as emoji-unet.")
        return Opened(load(name), None, None, read_card(name))
    if checkpoints(folder):
        options = from_config(folder / CONFIG) if (folder / CONFIG).is_file() else None
        diffusion, card = _of_run(folder, options)
        return Opened(diffusion, options, folder, card)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} holds neither checkpoints of a run nor {WEIGHTS} of a pretrained model.")
    return Opened(from_pretrained(folder), None, folder, read_card(folder))


def _of_run(folder, options):
    """(the Diffusion with the averages of the newest checkpoint, what a data card says of the run)."""
    from minidiff.checkpoints import build
    from minidiff.text import ENCODERS
    from minidiff.training import read_averaged

    tensors, about = read_averaged(folder)
    diffusion = build(about["arguments"])
    diffusion.load_state_dict(tensors)
    last = about["losses"][max(about["step"] - 1000, 0):about["step"]]
    model = ("network", "schedule", "prediction", "time", "learned_range", "shape", "value_range", "latents")
    card = {"steps": about["step"], "seconds": round(about["seconds"]), "loss": round(float(last.mean()), 5),
            "device": about.get("machine", {}).get("device"),
            "training": {key: value for key, value in about["arguments"].items() if key not in model}}  # fmt: skip
    if options is not None:
        card |= {"sampling": options.sampling} if options.sampling else {}
        name = (options.encoder or "").partition(":")[0]
        card |= {"encoder": name if name in ENCODERS else options.encoder} if name else {}  # its folder is of no use
        card["dataset"] = {"name": options.data, "size": options.size, **options.data_options}
        card["command"] = f"minidiff train {options.recipe}" if options.recipe else "minidiff train"
    return diffusion, card
