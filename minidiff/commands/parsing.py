"""Words of a command line to a dataclass of options, by tyro."""

import dataclasses


def parsed(kind, words, command, default=None):
    """The options `kind` that these words say; dicts given on the command line are added to those of `default`.

    Prints the help and exits for --help; exits with code 2 for a word that is no option.
    """
    import tyro

    from minidiff.cli import first_process

    default = kind() if default is None else default
    options = tyro.cli(kind, args=words, default=default, prog=f"minidiff {command}", console_outputs=first_process())
    for field in dataclasses.fields(kind):
        before = getattr(default, field.name)
        if isinstance(before, dict):
            setattr(options, field.name, before | getattr(options, field.name))
    return options


def option(words, name):
    """The value of `--name value` or `--name=value` among the words; None if it is not there."""
    for place, word in enumerate(words):
        if word == name and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(name + "="):
            return word[len(name) + 1:]
    return None
