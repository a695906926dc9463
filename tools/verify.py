"""`make verify`: compare everything with the recorded references and write docs/verification.md."""

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import goldens  # noqa: E402
import goldens_solvers  # noqa: E402
import orders  # noqa: E402

from minidiff import create_model  # noqa: E402

HEAD = """# Verification

Written by `make verify`; every number below is computed by it, and `make test` fails where one leaves its tolerance.
The references are outputs of the official implementations, recorded once (`tests/golden/`).
"""


def table(title, columns, rows, note=""):
    lines = [f"\n## {title}\n{note}", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows]) + "\n"


def mathematics():
    for family, rows in goldens.MATH_ROWS.items():
        for what, error in rows():
            yield family, what, f"{error:.1e}", f"{goldens.MATH:.0e}", "ok" if error < goldens.MATH else "**OFF**"
    for family, rows in goldens_solvers.FLOAT32_ROWS.items():
        for what, error in rows():
            most = goldens_solvers.FLOAT32
            yield f"{family}, float32", what, f"{error:.1e}", f"{most:.0e}", "ok" if error < most else "**OFF**"


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


def printed_counts():
    for name, (millions, slack) in goldens.MILLIONS.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in create_model(name).parameters()) / 1e6
        verdict = "ok" if abs(count - millions) <= slack else "**OFF**"
        yield f"`{name}`", f"{count:.2f} M", f"{millions} M", f"{slack} M", verdict


PRINTED = """
IU-ViT and ASCEND have no published code; their papers print these sizes, and what they leave open was chosen so that
the counts agree (the files say how).
"""
SAMPLERS = f"""
Data: the mixture of `two_d("mixture")`, whose denoiser is exact, on the schedule `linear(None)`, from t = 1 to
{orders.T_END:g} in times evenly spaced in log-SNR. The numbers of the first table are median distances to the exact
solution of the probability-flow ODE, for the same {len(orders.starts())} starts. Those of the second are
sliced Wasserstein distances of {len(orders.exact_samples(0)):,} points to as many exact ones, of which two sets
are {orders.noise_floor():.1e} apart. The order is that of the error between {orders.FINE[0]} and {orders.FINE[1]}
evaluations: of those distances, and for stochastic samplers of the variance they give a Gaussian, which is computed
without Monte Carlo (the corrector's step depends on norms, so it has none). An order may be {orders.SLACK:g} below the
theory's.
"""


def sampler_rows(names):
    for name, errors, order, theory, ok in orders.rows(names):
        orders_of = ("-", "-") if order is None else (f"{order:.2f}", theory)
        yield name, *(f"{error:.1e}" for error in errors), *orders_of, "ok" if ok else "**OFF**"


def main():
    text = HEAD
    text += table("Networks: largest error over the output's standard deviation",
                  ["fixture", "dtype", "error", "tolerance", ""], networks())  # fmt: skip
    text += table("Parameter counts", ["model", "here", "published", ""], parameter_counts())
    text += table("Parameter counts that a paper prints in millions", ["model", "here", "printed", "tolerance", ""],
                  printed_counts(), PRINTED)  # fmt: skip
    columns = ["sampler", *(f"{n} evaluations" for n in orders.BUDGETS), "order", "theory", ""]
    text += table("Deterministic samplers: distance to the exact solution", columns,
                  sampler_rows(orders.DETERMINISTIC), SAMPLERS)  # fmt: skip
    text += table("Stochastic samplers: distance of the distributions", columns, sampler_rows(orders.STOCHASTIC))
    text += table("Mathematics: largest absolute error, in float64 where nothing else is said",
                  ["golden", "what", "error", "tolerance", ""], mathematics())  # fmt: skip
    out = ROOT / "docs" / "verification.md"
    out.write_text(text)
    off = text.count("**OFF**")
    print(f"wrote {out}: {text.count('| ok |')} checks within tolerance, {off} outside")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
