"""`minidiff export`: a run as a pretrained model, for minidiff or diffusers, with a card, on the hub."""

from pathlib import Path

from minidiff.cli import say


def main(words):
    """Parse, write, upload if asked to."""
    from minidiff.commands.models import open_model
    from minidiff.commands.options import Export
    from minidiff.commands.parsing import parsed

    options = parsed(Export, words[1:] if words and not words[0].startswith("-") else words, "export MODEL")
    folder = export(open_model(words, "export", "cpu"), options)
    say(f"wrote {folder}")
    if options.push:
        from minidiff.sharing import push

        say(f"uploaded to {push(folder, options.push)}")


def export(opened, options):
    """Write the folder; returns it."""
    from minidiff.checkpoints import save_pretrained
    from minidiff.safe_files import write_text

    usual = "diffusers" if options.to == "diffusers" else "pretrained"
    folder = Path(options.out or (opened.folder or Path(".")) / usual)
    if opened.folder is not None and folder.resolve() == opened.folder.resolve():
        raise ValueError(f"--out {folder}: that is where the model comes from; choose another folder.")
    card = opened.card | ({"weights_licence": options.licence} if options.licence else {})
    if options.to == "diffusers":
        from minidiff.official.diffusers import export_diffusers

        if options.dtype != "float32":
            raise ValueError(f"--dtype {options.dtype} with --to diffusers: its files are written in float32.")
        export_diffusers(opened.diffusion, folder)
    elif options.push:
        from minidiff.sharing import save_shared

        save_shared(opened.diffusion, folder, card, dtype=options.dtype)
        return folder
    else:
        save_pretrained(opened.diffusion, folder, card, options.dtype)
    if options.card or options.push:
        from minidiff.sharing import model_card

        write_text(folder / "README.md", model_card(opened.diffusion, card))
    return folder
