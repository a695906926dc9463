"""What is wrong with a picture file that cannot be read, in words, and the way out."""

import os

REPAIR = "Repair it or take it out"
# What people find in picture folders that is no picture: (first bytes, where they begin, what it is, the way out).
STRANGERS = (
    (b"version https://git-lfs", 0, "a Git LFS pointer that stands for the picture", "Run `git lfs pull`"),
    (b"<!doctype html", 0, "a web page, mostly the trace of a failed download", "Fetch it again or take it out"),
    (b"<html", 0, "a web page, mostly the trace of a failed download", "Fetch it again or take it out"),
    (b"<svg", 0, "an SVG drawing", "Render it to png or take it out"),
    (b"<?xml", 0, "an XML file, perhaps an SVG drawing", "Render it to png or take it out"),
    (b"%pdf", 0, "a PDF document", "Render its pages to png or take it out"),
    (b"pk\x03\x04", 0, "a zip archive", "Unpack it or take it out"),
    (b"\x1f\x8b", 0, "a gzip archive", "Unpack it or take it out"),
    (b"ftyp", 4, "a video or another file of the MP4 family", "Take it out or save its frames as png"),
)
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class UnreadablePicture(ValueError):
    """A picture file that cannot be read; the message names it, says what it is and the way out."""


def has_heic(file):
    """Whether this is a HEIC picture and pillow-heif, which reads them, is installed; switches it on."""
    if not is_heic(first_bytes(file)):
        return False
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def is_heic(head):
    return head[4:8] == b"ftyp" and head[8:12] in HEIC


def first_bytes(file, count=64):
    if hasattr(file, "read"):
        file.seek(0)
        head = file.read(count)
        file.seek(0)
        return head
    with open(file, "rb") as opened:
        return opened.read(count)


def reason(file, error):
    """What is wrong with a file that gave this error, and the way out."""
    from PIL import Image

    if isinstance(error, PermissionError):
        return f"no permission to read it. `chmod u+r` it, or {REPAIR[:1].lower()}{REPAIR[1:]}"
    if isinstance(error, FileNotFoundError):
        kind = "it is a link to a file that does not exist" if os.path.islink(file) else "there is no such file"
        return f"{kind}. Bring the file back or take this one out"
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it is larger than Pillow reads unasked ({error}). Make it smaller, take it out, or, if you trust it,"
            " set PIL.Image.MAX_IMAGE_PIXELS = None first"
        )
    try:
        head = first_bytes(file)
    except OSError:  # a disk that fails, a folder
        return f"{error}. {REPAIR}"
    if not head:
        return "the file is empty (0 bytes). Fetch it again or take it out"
    if is_heic(head) and isinstance(error, Image.UnidentifiedImageError):
        return "it is a HEIC picture, which Pillow needs a plugin for: pip install pillow-heif, or convert it to jpg"
    for start, place, what, way_out in STRANGERS:
        if head.lstrip(b"\xef\xbb\xbf \r\n").lower()[place:].startswith(start):
            return f"it is {what}. {way_out}"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is no picture of a kind that Pillow knows; it begins with {head[:16]!r}. {REPAIR}"
    return f"{error}. {REPAIR}"


def shown(path):
    """A path for a message: bytes that are no UTF-8 would stop the printing of it."""
    return str(path).encode("utf-8", "replace").decode()
