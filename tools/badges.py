"""Write the repository's address, which stands once in pyproject.toml, into README.md and CITATION.cff.

    python tools/badges.py            rewrites what is generated
    python tools/badges.py --check    says what differs, exit status 1 if anything does

Generated text in README.md stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. Notebooks get their badge and
their install line from here when tools/notebooks.py builds them.
"""

import argparse
import difflib
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"


def address(root=ROOT):
    """The repository's address, e.g. https://github.com/owner/name."""
    with open(root / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["urls"]["Repository"]


def install_line(root=ROOT):
    """What pip takes to install minidiff from the repository: no pins, so torch and numpy stay as they are."""
    return f'pip install -q "minidiff @ git+{address(root)}"'


def colab_link(path, root=ROOT):
    """Where Colab opens the notebook at `path`, given relative to the root of the repository."""
    return f"{address(root).replace('https://github.com', 'https://colab.research.google.com/github')}/blob/main/{path}"


def colab_badge(path, root=ROOT):
    """The badge of a notebook in Markdown."""
    return f"[![Open in Colab]({BADGE_IMAGE})]({colab_link(path, root)})"


def heading(source):
    """(title, sentence) of a notebook source: its first heading and the paragraph below it."""
    text = Path(source).read_text(encoding="utf-8")
    cell = text.split("# %% [markdown]", 1)[1].split("\n# %%", 1)[0]
    lines = "\n".join(re.sub(r"^# ?", "", line) for line in cell.strip().splitlines())
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", lines.strip())]
    return paragraphs[0].lstrip("# "), paragraphs[1] if len(paragraphs) > 1 else ""


def notebook_table(root=ROOT):
    """The table of the notebooks that exist: title, what it is for, badge."""
    rows = ["| notebook | | |", "|---|---|---|"]
    for source in sorted((root / "notebooks" / "src").glob("[0-9]*.py")):
        title, sentence = heading(source)
        path = f"notebooks/{source.stem}.ipynb"
        number = source.stem.split("_")[0]
        title = title if title.startswith(number) else f"{number} {title}"
        rows.append(f"| [{title}]({path}) | {sentence} | {colab_badge(path, root)} |")
    return "\n".join(rows)


def blocks(root=ROOT):
    """Each generated block of README.md by name."""
    return {
        "colab": f"```\n%{install_line(root)}\n```",
        "clone": f"```\ngit clone {address(root)}\ncd {address(root).rsplit('/', 1)[1]}\n```",
        "notebooks": notebook_table(root),
    }


def generated(root=ROOT):
    """{path: text as it should be} for each file that holds generated text."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    for name, text in blocks(root).items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin in readme:
            before, rest = readme.split(begin, 1)
            readme = f"{before}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}"
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    citation = re.sub(r"(?m)^repository-code:.*$", f'repository-code: "{address(root)}"', citation)
    return {root / "README.md": readme, root / "CITATION.cff": citation}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    check = parser.parse_args().check
    stale = 0
    for path, text in generated().items():
        old = path.read_text(encoding="utf-8")
        if old == text:
            continue
        stale += 1
        if check:
            lines = difflib.unified_diff(old.splitlines(True), text.splitlines(True), path.name, "as generated")
            sys.stdout.writelines(lines)
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {path.relative_to(ROOT)}")
    if check and stale:
        sys.exit("Run `python tools/badges.py` to write these again.")


if __name__ == "__main__":
    main()
