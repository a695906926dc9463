"""The card of a model: the README.md that the Hugging Face hub shows, without what must not leave this machine."""

import json
import re
from pathlib import Path

from minidiff.checkpoints import describe

NAME = "organisation/model"  # stands for the name on the hub until there is one
LICENCES = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0",
            "bsd-3-clause", "gpl-3.0", "openrail", "creativeml-openrail-m")  # fmt: skip
# An address of the web stays; a path from the root, the home folder or a drive loses all but its last part.
PLACES = re.compile(
    r"(?P<web>https?://[^\s\"'<>)]+)|"
    r"(?P<path>(?:file://|(?<![\w.~/\\)])(?:~[\w-]*)?/(?=\w|\.)|(?<!\w)[A-Za-z]:[\\/]|\\\\\w)[^\s\"'`,;:<>()\[\]]*)"
)
SECRETS = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|sk-|xox[abp]-|AKIA|glpat-)[\w-]{8,}"
    r"|(?i:(?<=token=)|(?<=--token )|(?<=password=)|(?<=--password )|(?<=api_key=)|(?<=--api-key )|(?<=secret=))"
    r"(?!\[removed|(?:True|False|None|[\d.]+)\b)[^\s&\"',]{4,}"
    r"|(?<=://)[^\s/@]+:(?!\[removed)[^\s/@]+(?=@)"
)
SECRET_KEYS = re.compile(r"(?i)(^|_)(token|secret|password|passwd|credentials?|api_?key|access_?key|auth)$")


def model_card(diffusion, card=None):
    """The README.md of a model on the Hugging Face hub: YAML for its search, then what a reader has to know.

    card: what is known of the training, as `save_pretrained` keeps it: dataset (a name, or a dict with one), licence
    (of the data), weights_licence, steps, seconds, device, loss, training {batch_size, lr, ...}, limits (a sentence).
    What is not known is said to be so. Paths of this machine and passwords are taken out.
    """
    card, about = cleaned(card or {}), describe(diffusion)
    name = about["network"]["name"]
    parts = [
        _front_matter(about, card), f"# {name}{_on(card)}", _what(diffusion, about), "## Training", _training(card),
        "## Use", _use(diffusion, about), "## Limits", _limits(diffusion, card), "## Licence of the data",
        _licence(card),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def cleaned(value):
    """A copy of plain values (dict, list, str, ...) without passwords and without paths of this machine."""
    if isinstance(value, dict):
        return {clean_text(str(key)): cleaned(held) for key, held in value.items() if not _is_secret(key, held)}
    if isinstance(value, (list, tuple)):
        return [cleaned(held) for held in value]
    return clean_text(str(value)) if isinstance(value, (str, Path)) else value


def _is_secret(key, held):
    return bool(SECRET_KEYS.search(str(key))) and not isinstance(held, (int, float))


def clean_text(text):
    """The text with [removed] for passwords, and the last part alone of each path of this machine."""

    def last(found):
        return found["web"] or re.split(r"[\\/]", found["path"].rstrip("\\/"))[-1] or "[removed]"

    return PLACES.sub(last, SECRETS.sub("[removed]", text))


def draws_alone(diffusion):
    """Whether pictures of this model need nothing besides it: no text encoder, no decoder of latents."""
    return diffusion.latents is None and not _takes_text(describe(diffusion)) and diffusion.shape[0] in (1, 3)


def _takes_text(about):
    return bool(about["network"]["arguments"].get("text_dim"))  # text_heads and the like mean nothing without it


def _front_matter(about, card):
    """The YAML at the top; every value is written as JSON, which YAML reads."""
    licence = str(card.get("weights_licence") or card.get("licence") or "").strip().lower()
    known = licence in LICENCES
    name, dataset = about["network"]["name"], _dataset(card)
    classes = about["network"]["arguments"].get("num_classes")
    kind = "text-to-image" if _takes_text(about) else None if classes else "unconditional-image-generation"
    values = {
        "license": licence if known else "other",
        **({} if known else {"license_name": "see-below"}),
        "library_name": "minidiff",
        **({"pipeline_tag": kind} if kind else {}),
        "tags": ["diffusion", "image-generation", "pytorch", name.split("_")[0]],
        **({"datasets": [re.sub(r"[^a-z0-9._/-]+", "-", dataset.lower()).strip("-/.")]} if dataset else {}),
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"])


def _dataset(card):
    dataset = card.get("dataset")
    return str(dataset.get("name") or "") if isinstance(dataset, dict) else str(dataset or "")


def _on(card):
    return f" on {_dataset(card)}" if _dataset(card) else ""


def _what(diffusion, about):
    network, schedule = diffusion.network, diffusion.schedule
    count = sum(weight.numel() for weight in network.parameters())
    channels, height, width = about["shape"]
    what = f"{height} x {width} pixels, {channels} channels" if diffusion.latents is None else (
        f"latents of {channels} x {height} x {width} (scale {diffusion.latents:g}), to be decoded by their autoencoder")
    classes = about["network"]["arguments"].get("num_classes")
    asked = "text" if _takes_text(about) else (
        f"a class from 0 to {classes - 1}, or {classes} for none" if classes else "nothing: it is unconditional")
    changes = ", ".join(f"{key}={value}" for key, value in about["network"]["arguments"].items())
    return "\n".join([
        "A diffusion model made with minidiff.", "", "| | |", "|---|---|",
        f"| Network | `{about['network']['name']}`, {count:,} weights |", f"| Its arguments | {changes} |",
        f"| Makes | {what} |", f"| Asked for | {asked} |", f"| Schedule | `{schedule}` |",
        f"| Predicts | {diffusion.prediction}{', and a variance range' if diffusion.learned_range else ''} |",
    ])  # fmt: skip


def _training(card):
    training = card.get("training") if isinstance(card.get("training"), dict) else {}
    dataset = card.get("dataset")
    facts = {
        "Data": ", ".join(str(v) if k == "name" else f"{k} {v}" for k, v in dataset.items())
        if isinstance(dataset, dict) else dataset,
        "Steps": _number(card.get("steps", training.get("steps"))),
        "Batch": _number(card.get("batch_size", training.get("batch_size"))),
        "Time": _time(card.get("seconds")),
        "Device": card.get("device"),
        "Last loss": card.get("loss"),
        "Settings": ", ".join(f"{k}={v}" for k, v in training.items() if k not in ("steps", "batch_size")),
    }
    known = [f"| {name} | {value} |" for name, value in facts.items() if value not in (None, "")]
    if not known:
        return "How it was trained was not written down."
    missing = [name.lower() for name in ("Data", "Steps", "Batch", "Time", "Device") if facts[name] in (None, "")]
    note = f"\n\nNot written down: {', '.join(missing)}." if missing else ""
    return "\n".join(["| | |", "|---|---|", *known]) + note


def _number(value):
    return f"{value:,}" if isinstance(value, int) else value


def _time(seconds):
    if not isinstance(seconds, (int, float)):
        return seconds
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"


def _use(diffusion, about):
    classes = about["network"]["arguments"].get("num_classes")
    steps = min(50, diffusion.schedule.steps or 50)
    first, last = f'diffusion = minidiff.from_pretrained("{NAME}", download=True)', ""
    if _takes_text(about):
        draw, last = f"latents = minidiff.sample(diffusion, 16, y=text, steps={steps})", (
            "\n\n`text` is a `minidiff.Text` of the encoder that the network was trained with.")
    else:
        y = f", y=[k % {classes} for k in range(16)]" if classes else ""
        draw = f"pictures = minidiff.sample(diffusion, 16{y}, steps={steps})"
    if diffusion.latents is not None:
        return f"```python\nimport minidiff\n\n{first}\n{draw.replace('pictures', 'latents', 1)}\n```{last}"
    draw = draw.replace("latents", "pictures", 1)
    save = 'save_grid(pictures, "samples.png")  # (16, C, H, W) in [-1, 1], as one sheet'
    return f"```python\nimport minidiff\nfrom minidiff.images import save_grid\n{first}\n{draw}\n{save}\n```{last}"


def _limits(diffusion, card):
    _, height, width = diffusion.shape
    own = f"{str(card['limits']).rstrip('.')}. " if card.get("limits") else ""
    return (
        f"{own}It makes {height} x {width} {'pixels' if diffusion.latents is None else 'latents'} and has seen nothing "
        "but its training data, whose gaps and leanings it shares. Nothing keeps it from repeating a training picture "
        "closely, and nothing filters what it makes: look at samples before you show them to others."
    )


def _licence(card):
    licence = card.get("licence")
    weights = f"\n\nThe weights: {card['weights_licence']}." if card.get("weights_licence") else ""
    if not licence:
        return "Not written down. Ask who shares this model before you use it or its pictures." + weights
    return f"{licence}. Whoever shares pictures of this model, or trains on them, should keep to it." + weights
