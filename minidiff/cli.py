"""The command line: `minidiff train | sample | evaluate | export | recipes`.

This file is all that `minidiff --help` loads. It chooses the command and says what went wrong in one line: mistakes of
the user (a value, a file, a permission) show no traceback, unless MINIDIFF_DEBUG=1 asks for it.
"""

import os
import re
import sys
from importlib import import_module

HELP = """usage: minidiff COMMAND ...

  train NAME            train a recipe or a network: minidiff train emoji_tiny
  train --config FILE   repeat a run from its config.json
  sample MODEL          draw pictures: minidiff sample emoji-unet --num 16
  evaluate MODEL        loss by noise level, distances to the data, what the pictures show
  export MODEL          a run's averaged weights as a pretrained model
  recipes               list the recipes; minidiff train NAME --show prints one

MODEL is the folder of a run or of a pretrained model, or the name of weights that come with the package.
`minidiff COMMAND --help` has the options, for train NAME with that recipe's own defaults. On several processes:
torchrun --nproc-per-node 2 -m minidiff train NAME ...   MINIDIFF_DEBUG=1 shows tracebacks."""

COMMANDS = ("train", "sample", "evaluate", "export", "recipes")
# What messages of the library tell a reader to write in Python, and what that is here
AS_WORDS = {
    r"(load_dataset|text_encoder)\([^()]*download=True\)": "--download", r"\bdownload=True": "--download",
    r"with folder=\.\.\.": "with --encoder NAME:FOLDER",
    r"with root=\.": "with --data-options root=FOLDER.", r"resume='changed'": "--resume changed",
    r"resume=False": "--resume no",
}  # fmt: skip
MISTAKES = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)


def main(argv=None):
    """Run the command that `argv` (without the program's name) says; returns the exit code: 2 for a mistake in it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0 if argv else 2
    try:
        if argv[0] == "--version":
            print(import_module("minidiff").__version__)
            return 0
        if argv[0] not in COMMANDS:
            raise import_module("minidiff.errors").unknown_name("command", argv[0], COMMANDS)
        import_module(f"minidiff.commands.{argv[0]}").main(argv[1:])
        return 0
    except KeyboardInterrupt:
        return _stopped(argv)
    except BrokenPipeError:  # `minidiff recipes | head` has read enough; nor should Python complain at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MISTAKES as error:
        if os.environ.get("MINIDIFF_DEBUG") == "1":
            raise
        return _failed(said(error))
    except RuntimeError as error:  # torch has no other name for a full device
        if type(error).__name__ != "OutOfMemoryError" or os.environ.get("MINIDIFF_DEBUG") == "1":
            raise
        return _failed(f"{error} Use a smaller --batch-size, for training a larger --accumulate, "
                       "--checkpoint-activations or --amp bf16.")


def said(error):
    """What an exception says, in one line that ends with the way out."""
    if isinstance(error, OSError) and error.strerror:  # from the system: it names what, but not what to do
        advice = {PermissionError: "Choose a place that you may write to with --out, or change its permissions.",
                  FileNotFoundError: "Check the path."}
        advice = advice.get(type(error), "Make room, or choose another place with --out.")
        return f"{error.filename or 'a file'}: {error.strerror}. {advice}"
    text = " ".join(str(error).split()) or type(error).__name__
    for python, words in AS_WORDS.items():
        text = re.sub(python, words, text)
    return text


def say(*words):
    """Print, on the first process alone."""
    if first_process():
        print(*words, flush=True)


def first_process():
    """Whether this process is the only one, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", 0)) == 0


def _failed(line):
    where = "" if first_process() else f" (process {os.environ['RANK']})"  # what only one of many lacks has to be said
    print(f"minidiff{where}: {line}", file=sys.stderr)
    return 2


def _stopped(argv):
    again = "; the same command goes on from the last checkpoint." if argv[0] == "train" else "."
    if first_process():
        print(f"\nminidiff: stopped{again}", file=sys.stderr)
    return 130
