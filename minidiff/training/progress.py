"""A progress bar in plain text: it reads well in a terminal, in a stored notebook and in a log file."""

import sys
import time

from tqdm import tqdm

BAR = "{desc}{percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class _Lines:
    """A stream that begins a new line where tqdm would overwrite the old one: log files keep no carriage returns."""

    last = ""

    def write(self, text):
        text = text.strip("\r\n ")
        if text and text != self.last:
            self.last = text
            sys.stderr.write(text + "\n")

    def flush(self):
        sys.stderr.flush()


class Progress:
    """Shows step, loss, images per second and time left of a `history`, seldom enough not to hold the device up.

    Twice a second on a terminal, every few seconds in a notebook (whose outputs are stored), every minute in a log:
    only then is the loss fetched.
    """

    def __init__(self, history, enabled=True):
        terminal, notebook = sys.stderr.isatty(), "ipykernel" in sys.modules
        self.interval = 0.5 if terminal else 4.0 if notebook else 60.0
        # notebooks paint stderr red
        stream = sys.stdout if notebook else sys.stderr if terminal else _Lines()
        self.bar = tqdm(total=history.steps, initial=history.step, disable=not enabled, ascii=" -#", bar_format=BAR,
                        file=stream, mininterval=0, miniters=1, delay=1e-9)
        self.history, self.step, self.due = history, history.step, time.monotonic() + self.interval

    def update(self, last=False):
        """Show where the run is, if it is time to, or if this was the `last` step."""
        if not last and time.monotonic() < self.due:
            return
        history, self.due = self.history, time.monotonic() + self.interval
        loss = history.mean_loss(history.step - self.step)
        self.bar.set_postfix_str(f"loss {loss:.4f}, {history.images_per_second:.0f} images/s", refresh=False)
        self.bar.update(history.step - self.step)
        self.step = history.step

    def close(self):
        """Leave the last line as it is."""
        self.bar.close()
