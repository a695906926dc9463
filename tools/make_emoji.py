"""Makes data/emoji/ from the npm packages emoji-datasource-google and emoji-datasource-twitter, version 16.0.0.

    python tools/make_emoji.py                        # fetches both with `npm pack`
    python tools/make_emoji.py google.tgz twitter.tgz

Writes, for each vendor, `<vendor>_64.webp` (the 1911 emoji, 64 x 64) and `<vendor>_tones_32.webp` (their 1875 skin-tone
variants, 32 x 32): lossless sprite sheets on white, COLUMNS tiles in a row, in the order of `emoji.tsv`.
"""

import hashlib
import io
import json
import math
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

VERSION = "16.0.0"
VENDORS = ("google", "twitter")
COLUMNS = 44
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}

# Unicode's older names call every filled sign 'black' and every outlined one 'white'; these say what one sees.
SEEN_AS = {
    "heavy black heart": "red heart", "white smiling face": "smiling face", "black sun with rays": "sun with rays",
    "white medium star": "yellow star", "black spade suit": "spade suit", "black heart suit": "heart suit",
    "black diamond suit": "diamond suit", "black club suit": "club suit", "playing card black joker": "joker card",
    "black telephone": "telephone", "black scissors": "scissors", "upwards black arrow": "up arrow",
    "black rightwards arrow": "right arrow", "downwards black arrow": "down arrow",
    "leftwards black arrow": "left arrow", "black right-pointing triangle": "play button",
    "black left-pointing triangle": "reverse button", "black right-pointing double triangle": "fast-forward button",
    "black left-pointing double triangle": "fast reverse button", "black up-pointing double triangle": "fast up button",
    "black down-pointing double triangle": "fast down button", "black question mark ornament": "red question mark",
    "white question mark ornament": "white question mark", "white exclamation mark ornament": "white exclamation mark",
    "heavy exclamation mark symbol": "red exclamation mark", "black universal recycling symbol": "recycling symbol",
    "heavy large circle": "hollow red circle", "white heavy check mark": "check mark button",
    "eight pointed black star": "eight-pointed star", "white flower": "white flower stamp",
    "mens symbol": "men's symbol", "womens symbol": "women's symbol", "womans hat": "woman's hat",
    "womans clothes": "woman's clothes", "womans sandal": "woman's sandal", "womans boots": "woman's boots",
    "mans shoe": "man's shoe", "hash key": "keycap #",
    "white left pointing backhand index": "hand pointing left",
    "white right pointing backhand index": "hand pointing right",
    "white up pointing backhand index": "hand pointing up, back side",
    "white down pointing backhand index": "hand pointing down", "white up pointing index": "hand pointing up",
}  # fmt: skip
JAPANESE = {
    "6708": "monthly amount", "6709": "not free of charge", "6307": "reserved", "5272": "discount",
    "7121": "free of charge", "7981": "prohibited", "7533": "application", "5408": "passing grade",
    "7a7a": "vacancy", "55b6": "open for business", "6e80": "no vacancy",
}  # fmt: skip


def caption_of(entry):
    """A readable caption from the official name: 'Sark Flag' -> 'flag of Sark', 'MAN: BALD' -> 'bald man'."""
    name = entry["name"].replace("’", "'")
    if name.endswith(" Flag"):
        return f"flag of {name.removesuffix(' Flag')}"
    name = name.lower()
    if name in SEEN_AS:
        return SEEN_AS[name]
    if "ideograph" in name:
        meaning = name.split()[-1].removeprefix("ideograph-")
        return f"japanese {JAPANESE.get(meaning, meaning)} button"
    if name.startswith(("squared ", "negative squared ")):
        return re.sub("^(negative )?squared (latin capital letter |katakana )?", "", name) + " button"
    if name.startswith(("medium black ", "medium white ")):
        return name.removeprefix("medium ")
    if entry["unified"] == "1F935":  # its picture is neutral; the official name is that of 1F935-200D-2642
        return "person in tuxedo"
    if name.startswith("emoji modifier fitzpatrick"):
        return f"{TONES[entry['unified']]} skin tone swatch"
    head, colon, rest = name.partition(": ")
    if not colon:
        return name
    if head == "keycap":
        return f"keycap {rest}"
    if rest == "bald":
        return f"bald {head}"
    if head in ("man", "woman", "person"):
        return f"{head} with {rest}"
    people = rest.replace(", ", " and ") if rest.count(",") == 1 else " and ".join(rest.rsplit(", ", 1))
    return f"{head} of {people}" if head in ("family", "kiss") else f"{head}, {people}"


def tone_of(code):
    """'1F3FB-1F3FF' -> 'light and dark skin tone'."""
    return " and ".join(dict.fromkeys(TONES[c] for c in code.split("-"))) + " skin tone"


def picture(package, vendor, name):
    """One 64 x 64 picture on white. Composited before any resizing, which is resizing in premultiplied alpha."""
    with Image.open(io.BytesIO(package[f"package/img/{vendor}/64/{name}"])) as file:
        rgba = file.convert("RGBA")
    if rgba.size != (64, 64):
        raise ValueError(f"{vendor} {name} is {rgba.size}, expected 64 x 64")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB")


def sheet(tiles, path):
    """Writes the tiles as one lossless WebP, COLUMNS in a row."""
    size = tiles[0].size[0]
    out = Image.new("RGB", (COLUMNS * size, math.ceil(len(tiles) / COLUMNS) * size), "white")
    for i, tile in enumerate(tiles):
        out.paste(tile, (i % COLUMNS * size, i // COLUMNS * size))
    stored = io.BytesIO()
    out.save(stored, "webp", lossless=True, quality=100, method=6)
    with Image.open(stored) as again:
        assert np.array_equal(np.asarray(again.convert("RGB")), np.asarray(out)), f"{path} does not read back"
    path.write_bytes(stored.getvalue())


def groups(entries, packages):
    """For each emoji the number of the first one with the same picture (at either vendor): twins share a split."""
    first, group = {}, []
    for i, entry in enumerate(entries):
        keys = [
            hashlib.sha256(packages[v][f"package/img/{v}/64/{image}"]).digest()
            for v in VENDORS
            for image in [entry["image"], *(s["image"] for s in entry.get("skin_variations", {}).values())]
        ]
        found = {first[k] for k in keys if k in first}
        group.append(min(found, default=i))
        for other in found - {group[i]}:  # this one joins two groups
            group = [group[i] if g == other else g for g in group]
            first = {k: group[i] if g == other else g for k, g in first.items()}
        first |= dict.fromkeys(keys, group[i])
    return group


def make(tgz, folder):
    """Writes the sheets and the table from the two opened packages."""
    packages = {}
    for vendor, path in zip(VENDORS, tgz, strict=True):
        with tarfile.open(path) as tar:
            packages[vendor] = {
                m.name: tar.extractfile(m).read()
                for m in tar
                if m.name == "package/emoji.json" or m.name.startswith(f"package/img/{vendor}/64/")
            }
    entries = json.loads(packages["google"]["package/emoji.json"])
    entries.sort(key=lambda entry: entry["sort_order"])
    group = groups(entries, packages)
    rows, variants = [], []  # (code, caption, category, base, image)
    for i, entry in enumerate(entries):
        caption = caption_of(entry)
        rows.append((entry["unified"], caption, entry["category"], group[i], "", entry["image"]))
        for code, variant in entry.get("skin_variations", {}).items():
            row = (variant["unified"], f"{caption}, {tone_of(code)}", entry["category"], group[i], code)
            variants.append((*row, variant["image"]))
    folder.mkdir(parents=True, exist_ok=True)
    head = ("code", "caption", "category", "group", "tone", "image")
    lines = ["\t".join(map(str, row[:-1])) for row in [head, *rows, *variants]]
    (folder / "emoji.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for vendor in VENDORS:
        sheet([picture(packages[vendor], vendor, row[-1]) for row in rows], folder / f"{vendor}_64.webp")
        tones = [picture(packages[vendor], vendor, row[-1]).resize((32, 32), Image.LANCZOS) for row in variants]
        sheet(tones, folder / f"{vendor}_tones_32.webp")
    return len(rows), len(variants)


if __name__ == "__main__":
    data = Path(__file__).resolve().parent.parent / "data" / "emoji"
    if len(sys.argv) == 3:
        print(make([Path(a) for a in sys.argv[1:]], data))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            names = [f"emoji-datasource-{vendor}@{VERSION}" for vendor in VENDORS]
            subprocess.run(["npm", "pack", *names], cwd=temporary, check=True)
            print(make([Path(temporary) / f"{name.replace('@', '-')}.tgz" for name in names], data))
