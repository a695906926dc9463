"""What a training run leaves behind: its losses, over steps and over times, its speed, and the averaged model."""

import math
import time

import torch

BINS = 20  # of t in (0, 1]


class History:
    """The record of a run. While it runs, the numbers stay on the device: reading them is what costs a synchronisation.

    losses             (steps,) mean loss of each step
    loss_by_time()     mean loss in 20 equal bins of t
    step               steps done, also those of earlier, resumed parts
    seconds            time spent, also in earlier parts
    images_per_second  of this part
    ema                the Diffusion with averaged weights, or None
    """

    def __init__(self, steps, batch_size, device, average=None):
        self.losses = torch.zeros(steps, device=device)
        self.time_sum = torch.zeros(BINS, device=device)
        self.time_count = torch.zeros(BINS, device=device)
        self.step, self.seconds, self.images_per_second = 0, 0.0, 0.0
        self.steps, self.batch_size = steps, batch_size
        self.ema = average.model if average else None

    def start(self):
        """Begin to measure time, here or where a checkpoint left off; returns the number of the next step."""
        self._before, self._begin = (self.step, self.seconds), time.monotonic()
        return self.step

    def elapsed(self):
        """Seconds since the start of this part; brings `seconds` and `images_per_second` up to date."""
        passed = time.monotonic() - self._begin
        self.seconds = self._before[1] + passed
        self.images_per_second = (self.step - self._before[0]) * self.batch_size / max(passed, 1e-9)
        return passed

    @torch.no_grad()
    def record(self, losses, t):
        """Keep the losses (B,) of a step at times t (B,). Nothing is read back from the device."""
        losses = losses.detach().float()
        self.losses[self.step] = losses.mean()
        place = (t * BINS).ceil().long().clamp_(1, BINS) - 1
        self.time_sum.index_add_(0, place, losses)
        self.time_count.index_add_(0, place, torch.ones_like(losses))
        self.step += 1
        self.elapsed()

    def mean_loss(self, last):
        """The mean of the last `last` losses as a float; waits for the device. FloatingPointError if not finite."""
        loss = self.losses[max(self.step - last, 0):self.step].mean().item()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} in the {last} steps before step {self.step}. Use a lower lr, more warmup, or "
                "clip=1.0; with amp='fp16', try 'bf16'."
            )
        return loss

    def loss_by_time(self):
        """(centres (20,), mean loss (20,)) over bins of t, on the CPU; NaN in bins that no time fell into."""
        return (torch.arange(BINS) + 0.5) / BINS, (self.time_sum / self.time_count).cpu()

    def finish(self):
        """Cut the losses to the steps done and bring them to the CPU."""
        self.losses = self.losses[:self.step].cpu()
        return self

    def __repr__(self):
        last = max(1, self.step // 20)
        return (f"History(steps={self.step}, loss={self.losses[-last:].mean():.4f} over the last {last}, "
                f"seconds={self.seconds:.1f}, images_per_second={self.images_per_second:.0f})")
