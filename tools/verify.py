"""`make verify`: compare everything with the recorded references and write docs/verification.md."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import goldens  # noqa: E402
import orders  # noqa: E402

from minidiff import create_model  # noqa: E402

HEAD = """# Verification

Written by `make verify`; every number below is computed by it, and `make test` fails where one leaves its tolerance.
The references are outputs of the official implementations, recorded once (`tests/golden/`).
"""


def table(title, columns, rows):
    lines = [f"\n## {title}\n", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def mathematics():
    for family, rows in goldens.MATH_ROWS.items():
        for what, error in rows():
            yield family, what, f"{error:.1e}", f"{goldens.MATH:.0e}", "ok" if error < goldens.MATH else "**OFF**"


def networks():
    for name in goldens.NETWORKS:
        for dtype in goldens.DTYPES:
            error, tolerance = goldens.network_error(name, dtype)
            verdict = "ok" if error < tolerance else "**OFF**"
            yield f"`{name}`", str(dtype).removeprefix("torch."), f"{error:.1e}", f"{tolerance:.0e}", verdict


def parameter_counts():
    for name, published in goldens.PARAMETERS.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in create_model(name).parameters())
        yield f"`{name}`", f"{count:,}", f"{published:,}", "ok" if count == published else "**OFF**"


def sampler_orders():
    for name in orders.SAMPLERS:
        order = orders.measured_order(name)
        yield name, f"{order:.2f}", 1, "ok" if abs(order - 1) < 0.15 else "**OFF**"


def main():
    text = HEAD
    text += table("Networks: largest error over the output's standard deviation",
                  ["fixture", "dtype", "error", "tolerance", ""], networks())  # fmt: skip
    text += table("Parameter counts", ["model", "here", "published", ""], parameter_counts())
    text += table("Samplers: order of convergence, variance of a Gaussian, 200 to 400 steps",
                  ["sampler", "measured", "expected", ""], sampler_orders())  # fmt: skip
    text += table("Mathematics: largest absolute error in float64",
                  ["golden", "what", "error", "tolerance", ""], mathematics())  # fmt: skip
    out = ROOT / "docs" / "verification.md"
    out.write_text(text)
    off = text.count("**OFF**")
    print(f"wrote {out}: {text.count('| ok |')} checks within tolerance, {off} outside")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
