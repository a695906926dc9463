"""How the weights move: AdamW, its learning rate over the steps, and one step with clipping and the guard."""

import math
import warnings

import torch

from minidiff.training.world import local

DECAYS = (None, "cosine", "linear")


def learning_rate(step, steps, lr, warmup=0, decay="cosine", final_lr=0.0):
    """The learning rate of step number `step` (0, 1, ...): a linear rise, then half a cosine, a line, or constant."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if decay is None:
        return lr
    done = (step - warmup) / max(steps - warmup, 1)
    left = 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return final_lr + (lr - final_lr) * left


class Optimisation:
    """AdamW on the trained weights of a model, one kernel for all (on a CPU that is 6 times faster than a plain loop).

    rate   function step -> learning rate, or None and
    scheduler  a function optimizer -> scheduler of torch.optim.lr_scheduler, stepped after each step: `go_to`
    clip   largest norm of the gradient, None for no limit
    amp    "fp16" scales the loss so that small gradients survive, and skips steps that overflow
    With sharded weights it works on this process's parts.
    """

    def __init__(self, weights, world, guard, *, rate, scheduler, lr, betas, weight_decay, clip, amp):
        self.weights, self.world, self.guard, self.rate, self.clip = weights, world, guard, rate, clip
        self.parts = [torch.nn.Parameter(local(weight)) for weight in weights] if world.mesh else weights
        self.optimizer = torch.optim.AdamW(self.parts, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=amp == "fp16")
        self.make_scheduler, self.lr = scheduler, lr
        self.gradient_norm, self.rate_taken = None, None  # of the last step
        self.go_to(0)

    def go_to(self, step):
        """Put a scheduler where it is after `step` steps. It is made anew, since its state also holds old arguments."""
        self.scheduler = None
        if self.make_scheduler is None:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.scheduler = self.make_scheduler(self.optimizer)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError("decay: ReduceLROnPlateau waits for a metric, and a run tells its scheduler of steps "
                             "only; take another one of torch.optim.lr_scheduler, or 'cosine'.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimiser made no step
            for _ in range(step):
                self.scheduler.step()

    @torch.no_grad()
    def step(self, number, loss):
        """Step number `number` (0, 1, ...) down the gradients that backward passes have left; then they are cleared."""
        if self.world.mesh:
            for part, weight in zip(self.parts, self.weights):
                part.grad = None if weight.grad is None else local(weight.grad)
        if self.scaler.is_enabled():  # which skips steps that are not finite: so all of them once something broke
            grad = next(part.grad for part in self.parts if part.grad is not None)
            grad.add_(torch.where(self.guard.broken.bool(), math.inf, 0.0))
            self.scaler.unscale_(self.optimizer)
        norms, self.gradient_norm = self._norms()
        self.guard.watch(norms, self.gradient_norm, loss, self.scaler.is_enabled())
        if self.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parts, self.clip, self.gradient_norm)
        if self.rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(number)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = self.guard.broken
            self.optimizer.step()
        self.rate_taken = float(self.optimizer.param_groups[0]["lr"])  # a scheduler's next one is another
        if self.scheduler is not None:
            self.scheduler.step()
        self.clear()

    def clear(self):
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        for weight in self.weights if self.world.mesh else ():
            weight.grad = None

    def _norms(self):
        """The norm of each gradient (n,), 0 for a weight without one, and that of all, over all processes."""
        norms = torch._foreach_norm([part.grad if part.grad is not None else part.new_zeros(()) for part in self.parts])
        norms = torch.stack([norm.to(torch.float32) for norm in norms])
        if self.world.mesh:
            norms = self.world.sum(norms.square()).sqrt()
        return norms, torch.linalg.vector_norm(norms)
