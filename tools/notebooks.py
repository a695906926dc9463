"""One tool for the notebooks: notebooks/src/NN_name.py is what authors edit, notebooks/NN_name.ipynb what readers open.

    python tools/notebooks.py build [NN ...]     sources -> notebooks, outputs kept where the code did not change
    python tools/notebooks.py execute [NN ...]   runs them in cpu tier and stores clean outputs; --stale: only those
                                                 whose code changed since
    python tools/notebooks.py diff [NN ...]      what differs between sources and notebooks
    python tools/notebooks.py check [NN ...]     everything that must hold of a stored notebook
    python tools/notebooks.py solutions [NN ...] writes build/smoke/: each notebook untouched, whose checks must fail
                                                 without raising, and with its solutions, whose checks must pass
    python tools/notebooks.py smoke [NN ...]     the same, and runs them all with nbmake
    python tools/notebooks.py tour               runs notebook 00 into build/tour/ and says where the picture is

NN is a notebook's number or name; without it, all. A source is in percent format; an exercise's cell is headed
`# %% tags=["exercise"] name="..."`, a cell whose picture `tour` shows `# %% tags=["picture"]`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import notebook_build
import notebook_run
from badges import ROOT

SMOKE_CELL_SECONDS = 120  # for one cell on a busy machine; a whole notebook takes 25 at most on a quiet one


def chosen(folder, wanted):
    """The names that the command line asks for."""
    known = notebook_build.names(folder)
    if not wanted:
        return known
    names = [name for name in known if any(name == want or name.split("_")[0] == want for want in wanted)]
    if len(names) < len(set(wanted)):
        sys.exit(f"no such notebook among {' '.join(wanted)}; there are {', '.join(known) or 'none'}.")
    return names


def build(args, names):
    for name in names:
        changed = notebook_build.build(args.folder, name, args.root)
        print(f"{name}: {'written' if changed else 'unchanged'}")


def execute(args, names):
    for name in names:
        path = args.folder / f"{name}.ipynb"
        notebook_build.build(args.folder, name, args.root)
        nb = nbformat.read(path, as_version=4)
        fresh = nb.metadata.get("minidiff", {}).get("code") == notebook_build.code_stamp(nb)
        if args.stale and fresh:
            print(f"{name}: up to date")
            continue
        seconds = notebook_run.execute(path, args.tier)
        print(f"{name}: {seconds:.0f} s in {args.tier} tier, {path.stat().st_size / 1000:.0f} kB", flush=True)


def diff(args, names):
    lines = [line for name in names for line in notebook_build.difference(args.folder, name, args.root)]
    print("\n".join(lines) if lines else "Sources and notebooks agree.")
    sys.exit(bool(lines))


def check(args, names):
    from notebook_checks import check_all

    found = check_all(args.folder, args.root)
    if args.names:
        found = {name: complaints for name, complaints in found.items() if name in names}
    for name, complaints in found.items():
        for complaint in complaints:
            print(f"{name} {complaint}")
    if found:
        sys.exit(f"{sum(map(len, found.values()))} complaints about {len(found)} of {len(names)} notebooks.")
    print(f"{len(names)} notebooks checked, nothing to complain about.")


def solutions(args, names):
    from notebook_exercises import write_copies

    out = args.build / "smoke"
    shutil.rmtree(out, ignore_errors=True)
    paths = [path for name in names for path in write_copies(args.folder, name, args.root, out)]
    print(f"{len(paths)} notebooks to run in {out}")
    return paths


def smoke(args, names):
    paths = solutions(args, names)
    if not paths:
        return
    env = {**os.environ, "MINIDIFF_TIER": "smoke", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name in ("MINIDIFF_STRICT", "MPLBACKEND"):
        env.pop(name, None)
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(args.workers), "--nbmake", "--durations=10",
               f"--nbmake-timeout={SMOKE_CELL_SECONDS}", "-p", "no:cacheprovider", *map(str, paths)]
    sys.exit(subprocess.run(command, env=env, cwd=args.root).returncode)


def tour(args, names):
    first = next(iter(sorted(args.folder.glob("00_*.ipynb"))), None)
    if first is None:
        sys.exit(f"there is no notebook 00 in {args.folder}.")
    print(f"Running {first.name}, some seconds ...", flush=True)
    start = time.perf_counter()
    paths = notebook_run.tour(first, args.build / "tour")
    print(f"Done in {time.perf_counter() - start:.0f} s.")
    for label, path in zip(("the notebook", "the page", "the picture"), paths):
        print(f"  {label:13}{path.resolve()}")
    print("`make lab` opens the notebooks, with their formulas; the page needs a network to draw those.")


def main():
    commands = (build, execute, diff, check, solutions, smoke, tour)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[command.__name__ for command in commands])
    parser.add_argument("names", nargs="*", help="numbers or names; all if none is given")
    parser.add_argument("--tier", default="cpu", choices=("smoke", "cpu", "gpu", "big"), help="for execute")
    parser.add_argument("--stale", action="store_true", help="execute only what changed")
    parser.add_argument("--workers", type=int, default=2, help="for smoke")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    parser.add_argument("--folder", type=Path, help="where the notebooks are; ROOT/notebooks")
    parser.add_argument("--build", type=Path, help="what is made goes there; ROOT/build")
    args = parser.parse_args()
    args.folder = (args.folder or args.root / "notebooks").resolve()
    args.build = (args.build or args.root / "build").resolve()
    command = {function.__name__: function for function in commands}[args.command]
    command(args, chosen(args.folder, args.names))


if __name__ == "__main__":
    main()
