"""What a run writes while it trains: log.csv always, sheets of samples, TensorBoard or Weights & Biases when asked."""

import csv
import io
import os
from pathlib import Path

from minidiff.errors import unknown_name
from minidiff.safe_files import write_text
from minidiff.training.history import BINS

TRACKERS = ("tensorboard", "wandb")
COLUMNS = ["step", "loss", "lr", "gradient_norm", "images_per_second", "seconds",
           *(f"loss_at_{(bin + 0.5) / BINS:g}" for bin in range(BINS))]  # fmt: skip


class Log:
    """Rows of numbers by step, in FOLDER/log.csv and with the trackers asked for; without a folder it does nothing.

    On resumption the rows after `step` are dropped, as those steps are made again.
    """

    def __init__(self, folder, track=(), step=0, arguments=None):
        for name in track:
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)
        if track and folder is None:
            raise ValueError(f"track={tuple(track)!r} needs a folder to write to: give folder='runs/my-run'.")
        self.folder = None if folder is None else Path(folder)
        self.trackers = [_tracker(name, self.folder, arguments or {}) for name in track]
        self._keep("log.csv", COLUMNS, step)
        self._keep("evaluations.csv", None, step)

    def row(self, **values):
        """One row of log.csv; `loss_by_time` (20,) fills its last columns, empty where no time fell."""
        by_time = values.pop("loss_by_time")
        values |= {name: loss for name, loss in zip(COLUMNS[-BINS:], by_time) if loss == loss}
        self._append("log.csv", COLUMNS, values)

    def evaluation(self, step, values):
        """One row of evaluations.csv: what `evaluate` returned."""
        self._append("evaluations.csv", self._columns("evaluations.csv", ["step", *values]), {"step": step, **values})

    def close(self):
        for tracker in self.trackers:
            tracker.finish()

    def _append(self, name, columns, values):
        for tracker in self.trackers:
            tracker.log({key: value for key, value in values.items() if key != "step"}, step=values["step"])
        if self.folder is None:
            return
        row = io.StringIO()
        writer = csv.DictWriter(row, columns, lineterminator="\n")
        path = self.folder / name
        before = path.stat().st_size if path.exists() else 0
        if not before:
            writer.writeheader()
        writer.writerow({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in values.items()})
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(row.getvalue())
        except OSError as error:  # a full disk must not end a run whose checkpoints may still find room
            if path.exists():
                os.truncate(path, before)  # no half row
            print(f"step {values['step']} is missing in {path}: {error.strerror}")

    def _columns(self, name, columns):
        """The columns that a file has and those that are new, which its rows get empty."""
        path = None if self.folder is None else self.folder / name
        if path is None or not path.exists() or not path.stat().st_size:
            return columns
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = list(csv.reader(file))
        new = [column for column in columns if column not in head]
        if new:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([head + new, *(row + [""] * len(new) for row in rows)])
            write_text(path, text.getvalue())
        return head + new

    def _keep(self, name, columns, step):
        """Leave the whole rows up to `step`; a kill may have cut the last one."""
        path = None if self.folder is None else self.folder / name
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        head, *rows = [line for line in text.splitlines(keepends=True) if line.endswith("\n")] or [""]
        if columns and head.strip() != ",".join(columns):
            rows, head = [], ",".join(columns) + "\n"
        kept = head + "".join(row for row in rows if int(row.split(",")[0]) <= step)
        if kept != text:
            write_text(path, kept)


def read_log(folder, name="log.csv"):
    """{column: list of floats} of FOLDER/log.csv (or evaluations.csv), NaN where a cell is empty."""
    with (Path(folder) / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [float(row[key] or "nan") for row in rows] for key in (rows[0] if rows else {})}


def _tracker(name, folder, arguments):
    """accelerate's tracker of this name, started."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # a tracker writes from the first process, which it asks this
    module = {"tensorboard": "tensorboard", "wandb": "wandb"}[name]
    try:
        __import__(module)
    except ImportError:
        raise ImportError(f"track={name!r} needs a package that is not here: pip install {module}") from None
    tracker = LOGGER_TYPE_TO_CLASS[name](folder.name, **({"logging_dir": folder} if name == "tensorboard" else {}))
    if hasattr(tracker, "start"):
        tracker.start()
    tracker.store_init_configuration({key: value if isinstance(value, (int, float, str)) else str(value)
                                      for key, value in arguments.items()})  # fmt: skip
    return tracker
