"""The guard: an optimiser's step that would put NaN or infinity into the weights is not taken, nor any after it.

All of it happens on the device, as the fused optimisers skip a step when their `found_inf` says so; nobody waits. The
loop asks now and then whether something broke; weights and moments are then still those before the first bad step.
"""

import math

import torch

MOST_SKIPPED = 25  # steps in a row that a gradient scaler of fp16 may skip: it halves its scale each time


class Guard:
    """Watches the gradients of named weights; `names` is in the order of the gradients."""

    def __init__(self, names, device):
        self.names = list(names)
        self.norms = torch.zeros(len(self.names), device=device)  # of the first bad step, or the last one
        self.broken = torch.zeros((), device=device)  # 1 from the first bad step on: the found_inf of fused optimisers
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)
        self.loss = torch.zeros((), device=device)  # of the first bad step, or the last one
        self.skipped = torch.zeros((), device=device)

    @torch.no_grad()
    def watch(self, norms, total, loss, scaled=False):
        """Take in one step: the norm of each gradient (n,), that of all, the loss; none of them is read.

        scaled: a gradient scaler (fp16) skips the step by itself, which is nothing unusual, unless it does not end.
        """
        bad = ~torch.isfinite(total)
        before = self.broken.bool()
        torch.where(before, self.norms, norms, out=self.norms)
        torch.where(before, self.loss, loss, out=self.loss)
        if scaled:
            self.skipped.add_(1).mul_(bad)
            bad = self.skipped > MOST_SKIPPED
        broken = before | bad
        self.broken.copy_(broken)
        self.good_steps.add_(~broken)

    def is_broken(self):
        """Whether something broke since the start; waits for the device."""
        return bool(self.broken)

    def story(self, step):
        """What happened at `step` (1, 2, ...): the loss and the gradient norms by layer, in words."""
        norms = self.norms.tolist()
        bad = [name for name, norm in zip(self.names, norms) if not math.isfinite(norm)]
        good = sorted(((norm, name) for name, norm in zip(self.names, norms) if math.isfinite(norm)), reverse=True)
        lines = [f"step {step}: the loss is {float(self.loss):g}, {len(bad)} of {len(norms)} gradients are not finite"]
        lines += [f"  {name}: {norm}" for name, norm in zip(self.names, norms) if not math.isfinite(norm)][:6]
        lines += [f"  and {len(bad) - 6} more"] if len(bad) > 6 else []
        if good:
            lines.append("the largest of the others: " + ", ".join(f"{name} {norm:.3g}" for norm, name in good[:3]))
        return "\n".join(lines)
