"""`minidiff sample`: pictures of a trained model to a sheet, a folder or a file of numbers."""

from pathlib import Path

from minidiff.cli import say


def main(words):
    """Parse, draw, write."""
    from minidiff.commands.models import open_model
    from minidiff.commands.options import Sample
    from minidiff.commands.parsing import parsed

    options = parsed(Sample, words[1:] if words and not words[0].startswith("-") else words, "sample MODEL")
    say(f"wrote {draw(open_model(words, 'sample', options.device), options)}")


def draw(opened, options):
    """Draw and write; returns where."""
    from minidiff.samplers import sample

    diffusion, out = opened.diffusion, Path(options.out)
    if diffusion.latents is not None and out.suffix != ".safetensors":
        raise ValueError(f"--out {options.out}: this model draws latents, which need a decoder to become pictures: "
                         "--out samples.safetensors keeps them, under the name 'samples'.")
    if out.suffix not in ("", ".png", ".safetensors"):
        raise ValueError(f"--out {out}: pictures go to a .png file, to a folder (a name without ending) or, as "
                         "numbers, to a .safetensors file.")
    y = wanted(opened, options)
    pictures = sample(diffusion, options.num, y=y, seed=options.seed, batch_size=options.batch_size,
                      progress=options.progress, **opened.sampling(options))
    write(out, as_pictures(diffusion, pictures.cpu()))
    return out


def as_pictures(diffusion, values):
    """What a model drew, with values in [-1, 1]; latents as they are."""
    if diffusion.latents is not None:
        return values
    low, high = diffusion.value_range
    return (values - low) * (2 / (high - low)) - 1 if (low, high) != (-1.0, 1.0) else values


def write(out, pictures):
    """To one sheet, to one file each in a folder, or as numbers."""
    from minidiff.images import save_grid
    from minidiff.safe_files import write_tensors

    if out.suffix == ".safetensors":
        write_tensors(out, {"samples": pictures}, None)
    elif out.suffix == ".png":
        save_grid(pictures, out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            save_grid(picture, out / f"{number:05d}.png", scale=1)


def wanted(opened, options):
    """The condition of each picture: labels, a Text, or None."""
    diffusion, classes = opened.diffusion, getattr(opened.diffusion.network, "num_classes", 0)
    text = getattr(diffusion.network, "text_dim", 0)
    if options.label and not classes:
        raise ValueError(f"--label {' '.join(options.label)}: this model knows no classes; leave it out.")
    if options.prompt and not text:
        raise ValueError(f"--prompt {options.prompt[0]!r}: this model takes no text"
                         f"{'; choose a class with --label' if classes else '; leave it out'}.")
    if classes:
        labels = [number_of(label, classes, opened, options) for label in options.label] or list(range(classes))
        return [labels[i % len(labels)] for i in range(options.num)]
    return encoded(opened, options) if text else None


def number_of(label, classes, opened, options):
    """The number of a class from its number or its name in the data set of the training."""
    from minidiff.errors import unknown_name

    if label.isdecimal() and int(label) < classes:
        return int(label)
    names = []
    if not label.isdecimal():
        from minidiff.commands.options import Evaluate

        names = list(getattr(opened.data(Evaluate())[0], "classes", None) or [])
        if label in names:
            return names.index(label)
    raise unknown_name("class", label, [*names, f"0 to {classes - 1}"])


def encoded(opened, options):
    """The prompts as one Text, in turn for all pictures."""
    from minidiff.commands.data import load_encoder
    from minidiff.text import padded

    diffusion, name = opened.diffusion, options.encoder or opened.encoder
    if not options.prompt:
        raise ValueError("this model draws what a text says: say it with --prompt 'a small red circle'.")
    if name is None:
        raise ValueError("--prompt needs the encoder that the model was trained with: --encoder words, clip, minilm, "
                         "t5-..., t5-...:FOLDER or MODULE:FUNCTION.")
    encode = load_encoder(name, diffusion.device, options.download)
    text = encode([options.prompt[i % len(options.prompt)] for i in range(options.num)])
    length = diffusion.network.arguments.get("num_text_tokens")
    return (text if length is None else padded(text, length)).to(diffusion.device)
