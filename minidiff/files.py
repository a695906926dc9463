"""Where files are: the data that comes with the package, and the folder that everything written goes to."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def data_folder():
    """The folder of shipped data: `MINIDIFF_DATA` if set, else the wheel's own copy (a clone has none), else `data/`.

    Raises FileNotFoundError when none of the three holds data.
    """
    named = os.environ.get("MINIDIFF_DATA")
    places = [Path(named)] if named else [PACKAGE / "_data", PACKAGE.parent / "data"]
    for place in places:
        if (place / "README.md").is_file():
            return place
    raise FileNotFoundError(
        f"no minidiff data in {' or '.join(map(str, places))}: "
        + ("MINIDIFF_DATA must name a copy of the repository's data/ folder." if named else "install minidiff again.")
    )


def cache_folder():
    """The folder for downloads, caches and runs: `MINIDIFF_CACHE`, else `minidiff` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("MINIDIFF_CACHE") or Path(base) / "minidiff")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
