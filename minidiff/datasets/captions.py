"""Captions of picture files: text files beside them, their names, or tables as Hugging Face's imagefolder has."""

import csv
import json
import unicodedata
import warnings
from pathlib import Path

from minidiff.datasets.unreadable import shown

CAPTIONS = ("auto", "txt", "name", "csv", "jsonl", None)
COLUMNS = ("text", "caption", "prompt", "description")


def captions_of(files, found, root, captions):
    """The list of captions of these picture files; `found` are all files of the folder, tables and texts among them."""
    if captions is None:
        return [""] * len(files)
    if captions == "name":
        return [name_of(file) for file in files]
    kinds = (captions,) if captions != "auto" else ("txt", "csv", "jsonl")
    known = {}
    if "txt" in kinds:
        texts = {file.with_suffix(""): file for file in found if file.suffix.lower() == ".txt"}
        beside = {file: texts.get(file.with_suffix("")) for file in files}
        known |= {key(file): " ".join(text_of(text).split()) for file, text in beside.items() if text}
    for kind in set(kinds) & {"csv", "jsonl"}:
        known |= table(found, root, kind, needed=captions == kind)
    missing = [file for file in files if key(file) not in known]
    if missing and captions != "auto":
        raise ValueError(lacking(missing, files, root, captions))
    if missing and known:
        warnings.warn(
            f"data set 'folder': {len(missing)} of {len(files)} pictures have no caption and get their file name, like"
            f" {name_of(missing[0])!r}. captions='txt', 'csv' or 'jsonl' refuses that, 'name' and None take none.",
            stacklevel=4,
        )
    return [known[key(file)] if key(file) in known else name_of(file) for file in files]


def lacking(missing, files, root, captions):
    """The message for pictures without a caption."""
    names = ", ".join(shown(file.relative_to(root)) for file in missing[:5]) + (", ..." if len(missing) > 5 else "")
    where = "no .txt file beside them" if captions == "txt" else f"no line in metadata.{captions}"
    return (
        f"data set 'folder': captions={captions!r}, but {len(missing)} of {len(files)} pictures have {where}: {names}."
        " Write them or take these pictures out; captions='auto' gives them their file name, None gives all an empty"
        " one."
    )


def key(file):
    """A path as tables and disks agree on it: Macs write 'é' as two characters."""
    return unicodedata.normalize("NFC", str(file))


def name_of(file):
    """The file name as a caption, with blanks for underscores and hyphens."""
    return " ".join(unicodedata.normalize("NFC", shown(file.stem)).replace("_", " ").replace("-", " ").split())


def text_of(file):
    """The text of a file in UTF-8, with or without a byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the caption file {shown(file)} is not UTF-8 ({error}); save it as UTF-8.") from error
    except OSError as error:
        raise type(error)(f"cannot read the caption file {shown(file)}: {error.strerror}. Mend that or take another"
                          " captions=, such as 'name'.") from error  # fmt: skip


def table(found, root, kind, needed):
    """{path: caption} of all metadata files of this kind; one nearer to the picture comes before one further up."""
    name, known = f"metadata.{kind}", {}
    files = sorted((file for file in found if file.name.lower() == name), key=lambda file: (len(file.parts), file))
    if needed and not files:
        raise FileNotFoundError(
            f"data set 'folder': captions={kind!r}, but there is no {name} in {shown(root)} or below. Write one with"
            ' file_name and text for every picture, or take captions="txt" or "name".'
        )
    for file in files:
        rows = list(rows_of(file, kind))
        column = next((column for column in COLUMNS if rows and column in rows[0]), None)
        if rows and (column is None or "file_name" not in rows[0]):
            if not needed:  # a table of something else, in a folder of which nobody said that it has captions
                continue
            raise ValueError(
                f"{shown(file)} has {', '.join(map(str, rows[0]))}; expected file_name and one of {', '.join(COLUMNS)}."
                " Rename them."
            )
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("file_name"), str) or not isinstance(row.get(column), str):
                raise ValueError(
                    f"{shown(file)}, entry {number}: {row!r}, expected a file_name and a {column}, both text. Mend it."
                )
            known[key(Path(file.parent, row["file_name"]))] = " ".join(row[column].split())
    return known


def rows_of(file, kind):
    """The rows of a table, dicts."""
    if kind == "csv":
        yield from csv.DictReader(text_of(file).splitlines(keepends=True))
        return
    for number, line in enumerate(text_of(file).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = error
            if not isinstance(row, dict):
                raise ValueError(f'{shown(file)}, line {number}: {line[:60]!r} is not like {{"file_name": "a.jpg",'
                                 ' "text": "a caption"}; mend that line.')  # fmt: skip
            yield row
