"""What a training run leaves behind: its losses, over steps and over times, its speed, and the averaged model."""

import time

import torch

BINS = 20  # of t in (0, 1]


class History:
    """The record of a run. While it runs, the numbers stay on the device: reading them is what costs a synchronisation.

    losses             (steps,) mean loss of each step
    loss_by_time()     mean loss in 20 equal bins of t
    step               steps done, also those of earlier, resumed parts
    seconds            time spent, also in earlier parts
    images_per_second  of this part, of all processes together
    ema                the Diffusion with averaged weights, or None

    While several processes train, each records its part of the batch; `reduce` makes the record that of the whole.
    """

    def __init__(self, steps, batch_size, device, average=None):
        self.losses = torch.zeros(steps, device=device)
        self.time_sum = torch.zeros(BINS, device=device)
        self.time_count = torch.zeros(BINS, device=device)
        self.step, self.seconds, self.images_per_second = 0, 0.0, 0.0
        self.steps, self.batch_size = steps, batch_size
        self.ema = average.model if average else None
        self._recent = []  # (losses, times) of the steps since the last reduction: sorting them can wait until then
        self._reduced = 0

    def start(self):
        """Begin to measure time, here or where a checkpoint left off; returns the number of the next step."""
        self._before, self._begin = (self.step, self.seconds), time.monotonic()
        self._reduced = self.step
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
        self.losses[self.step] = losses.mean()
        self._recent.append((losses, t))
        self.step += 1
        self.elapsed()

    def reduce(self, world):
        """Make the record that of all processes; returns the mean loss since the last reduction and that by time (20,).

        Both stay on the device. All processes have to call it.
        """
        new = slice(self._reduced, self.step)
        world.mean(self.losses[new])
        recent = world.sum(self._by_time())
        self.time_sum += recent[0]
        self.time_count += recent[1]
        by_time = recent[0] / recent[1]
        self._recent.clear()
        self._reduced = self.step
        return self.losses[new].mean(), by_time

    def _by_time(self):
        """Sums and counts (2, 20) of the losses since the last reduction by their times."""
        losses, t = (torch.cat(parts) for parts in zip(*self._recent))
        place = (t * BINS).ceil().long().clamp_(1, BINS) - 1
        sums = torch.zeros(2, BINS, device=losses.device)
        return sums.index_add_(1, place, torch.stack([losses, torch.ones_like(losses)]))

    def mean_loss(self, last):
        """The mean of the last `last` losses as a float; waits for the device."""
        return self.losses[max(self.step - last, 0):self.step].mean().item()

    def back_to(self, step, world):
        """Forget the steps after `step`. (The loss by time leaves out all those since the last reduction.)"""
        world.mean(self.losses[self._reduced:step])
        self.step = step
        self._recent.clear()

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
