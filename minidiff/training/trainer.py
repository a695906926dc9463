"""The training loop, from one laptop core to many GPUs.

Everything random (order of pictures, times, noise, dropped labels, dropout) comes from streams seeded by (seed, step),
so a run needs no random state to be saved, and one that was killed goes on as if nothing had happened. The streams are
those of the whole batch, of which each process takes its part: so two processes train what one would have trained.
Nothing in the loop waits for the device except where it reports: the progress bar a few times a minute, a row of the
log every `log_every` steps, and checkpoints.

A third of this file says what the arguments mean, which is why it is longer than others.
"""

import contextlib
import copy

import torch
from torch import nn

from minidiff.training.checkpoint import identity, load_checkpoint, make_folder, save_checkpoint, trained
from minidiff.training.checks import (
    AMP,
    check_checkpointing,
    check_data,
    check_gradients,
    check_options,
    check_prompts,
    check_whole,
)
from minidiff.training.data import batches, stream_seed
from minidiff.training.ema import EMA
from minidiff.training.evaluation import sheet
from minidiff.training.guard import Guard
from minidiff.training.history import History
from minidiff.training.logs import Log
from minidiff.training.optimisation import Optimisation, learning_rate
from minidiff.training.progress import Progress
from minidiff.training.world import World, full


def train(diffusion, dataset, **options):
    """Train `diffusion` on `dataset`: Trainer(diffusion, dataset, **options).run(). Returns a History."""
    return Trainer(diffusion, dataset, **options).run()


class Trainer:
    """Trains `diffusion` on `dataset` for `steps` steps of AdamW: `history = Trainer(...).run()`.

    The same script trains in one process or, started by `torchrun --nproc-per-node N`, in N.

    dataset      finite in memory (`.images()` (N, C, H, W), `.labels` (N,), `.captions`): moved to the device once; or
                 records (image, label, caption) by number, read by a DataLoader with `workers` processes; or a stream
                 (datasets/shards.py). training/data.py says more
    batch_size   of a step, over all processes; `accumulate` divides a process's part into so many passes, which need
                 less memory and give the same gradient
    encode       function list of captions -> Text, for networks that take text
    lr, warmup   rises linearly for `warmup` steps to `lr`; then decay="cosine" or "linear" falls to `final_lr` at
                 `steps`, decay=None stays; or decay is a function optimizer -> scheduler of torch.optim.lr_scheduler,
                 which then says all
    ema          decay of the averaged weights, None for none; with `ema_warmup` d = min(ema, (1 + step) / (10 + step));
                 or ema_halflife, in images, as in EDM
    clip         largest norm of the gradient, None for no limit
    weight       of the loss over times, as in `Diffusion.loss`; `p_uncond` is the fraction of conditions dropped there
    times        how times are drawn: None as the schedule does, or "logit_normal" (Diffusion.sample_times)
    folder       where checkpoints are kept, the newest `keep` of them, every `save_every` steps and at the end, and
                 log.csv. With `resume` a run goes on from the newest whole one, on a CPU bit for bit as if never
                 interrupted, also in another number of processes; other arguments raise ValueError, unless
                 resume="changed" and only those of the training differ
    stop_after   stop after so many seconds of this call, with a checkpoint; the learning rate still aims at `steps`
    amp          "bf16" or "fp16": mixed precision; compile: torch.compile the network; checkpoint_activations: compute
                 blocks anew in the backward pass instead of keeping what they computed
    parallel     how several processes work together: "ddp" or "fsdp" (training/world.py); processes: how many there
                 must be, None for any
    log_every    steps between rows of log.csv, where the run also looks for NaN; track: "tensorboard", "wandb"
    sample_every, sampling    steps between sheets of samples of the averaged model in FOLDER/samples; the arguments of
                 `minidiff.sample`, or prompts=[...]
    evaluate_every, evaluate  steps between calls of evaluate(averaged Diffusion) -> {name: float}, logged in
                 evaluations.csv; training.distance_to makes such a function
    on_step      called as on_step(step, history) after each step; step counts those done
    device       default: where the network is; with several processes each has its own

    The model is trained in place and left in eval mode; with "fsdp" it stays divided, and history.ema is whole.
    Raises FloatingPointError when loss or gradients are not finite, after writing the last good state.
    """

    def __init__(
        self, diffusion, dataset, *, steps, batch_size=64, lr=1e-3, warmup=100, decay="cosine", final_lr=0.0,
        betas=(0.9, 0.999), weight_decay=0.0, clip=1.0, ema=0.999, ema_warmup=True, ema_halflife=None,
        weight="uniform", times=None, p_uncond=0.0, seed=0, folder=None, save_every=1000, keep=2, resume=True,
        stop_after=None, amp=None, compile=False, checkpoint_activations=False, accumulate=1, parallel="ddp",
        processes=None, workers=0, encode=None, log_every=50, track=(), sample_every=None, sampling=None,
        evaluate_every=None, evaluate=None, progress=True, on_step=None, device=None,
    ):  # fmt: skip
        device = torch.device(device or next(diffusion.parameters()).device)
        self.world = World(device, parallel, processes)
        fixed = dict(batch_size=batch_size, lr=lr, warmup=warmup, final_lr=final_lr, betas=betas, clip=clip,
                     decay=getattr(decay, "__qualname__", type(decay).__name__) if callable(decay) else decay,
                     weight_decay=weight_decay, ema=ema, ema_warmup=ema_warmup, weight=weight, times=times,
                     p_uncond=p_uncond, seed=seed, amp=amp)  # what a resumed run must share with its beginning
        fixed |= {"steps": steps} if decay else {}
        fixed |= {"ema_halflife": ema_halflife} if ema_halflife else {}
        check_options(steps, fixed, decay, accumulate, self.world)
        check_whole(batch_size=batch_size, save_every=save_every, keep=keep, log_every=log_every)
        check_prompts(sampling, encode)
        self.diffusion, self.dataset, self.steps, self.batch_size = diffusion, dataset, steps, batch_size
        self.weight, self.times, self.p_uncond, self.seed = weight, times, p_uncond, seed
        self.folder, self.save_every, self.keep, self.stop_after = folder, save_every, keep, stop_after
        self.amp, self.compile, self.accumulate, self.workers, self.encode = amp, compile, accumulate, workers, encode
        self.log_every, self.sample_every, self.sampling = log_every, sample_every, dict(sampling or {})
        self.evaluate_every, self.evaluate, self.on_step = evaluate_every, evaluate, on_step
        self.progress = progress and self.world.rank == 0

        device = self.world.device
        diffusion.to(device).train()
        self.world.agree(diffusion)
        if compile and device.type == "cuda":  # not in eager mode: each group norm would transpose twice
            diffusion.network.to(memory_format=torch.channels_last)
        if checkpoint_activations:
            check_checkpointing(diffusion.network)
            diffusion.network.checkpoint = True
        self.arguments = fixed | identity(diffusion)
        # A copy without weights, to hold the whole ones at the end where each process has only a part of them.
        bare = {id(weight): nn.Parameter(weight.detach().to("meta"), False) for weight in diffusion.parameters()}
        self.blank = copy.deepcopy(diffusion, bare).eval() if self.world.mesh else None
        halflife = ema_halflife and (ema_halflife, batch_size)
        self.ema = EMA(diffusion, ema, ema_warmup, halflife) if ema is not None or ema_halflife else None
        self.model = self.world.wrap(_Losses(diffusion), diffusion.network)
        if self.world.mesh and self.ema:
            self.world.shard(self.ema.model.network)
            self.ema.follow(diffusion)
        weights = trained(diffusion)
        self.guard = Guard([name for name, _ in weights], device)
        self.optimisation = Optimisation(
            [weight for _, weight in weights], self.world, self.guard, lr=lr, betas=betas, weight_decay=weight_decay,
            clip=clip, amp=amp, scheduler=decay if callable(decay) else None,
            rate=None if callable(decay) else lambda step: learning_rate(step, steps, lr, warmup, decay, final_lr),
        )  # fmt: skip
        self.history = History(steps, batch_size, device, self.ema)
        self.positions = {}  # of a stream after each step from the last report on
        self.position = None
        self._resume(resume)
        self.log = Log(folder if self.world.rank == 0 else None, track if self.world.rank == 0 else (),
                       self.history.step, self.arguments)  # fmt: skip

    def run(self):
        """Train to the end; returns a History, whose `.ema` is the averaged model."""
        history, device = self.history, self.world.device
        stream = batches(self.dataset, self.batch_size, self.seed, history.step, self.world, self.diffusion.network,
                         workers=self.workers, encode=self.encode, position=self.position)  # fmt: skip
        bar = Progress(history, self.progress)
        with contextlib.closing(bar), contextlib.closing(self.log), _own_random_state(device), self._compiled():
            self.first = history.start()
            for step in range(self.first, self.steps):
                images, y, position = next(stream)
                if step == self.first:
                    check_data(self.diffusion, self.dataset, images, y)
                losses, t = self._backward(images, y, step)
                if step == self.first:
                    check_gradients(trained(self.diffusion), self.world)
                self.optimisation.step(step, losses.mean())
                if self.ema:
                    self.ema.update(step)
                history.record(losses, t)
                if position is not None:
                    self.positions[history.step] = position
                if self.on_step is not None:
                    self.on_step(history.step, history)
                last = self._is_last()
                bar.update(last)
                self._report(last, y)
                if last:
                    break
        self.diffusion.eval()
        if self.world.mesh and self.ema:
            history.ema = self.whole(self.ema.model)
        return history.finish()

    def whole(self, model):
        """The undivided copy, on the CPU, of a model whose weights the processes share. All of them have to call it."""
        if not self.world.mesh:
            return model
        copied = copy.deepcopy(self.blank)
        copied.load_state_dict({name: full(tensor) for name, tensor in model.state_dict().items()}, assign=True)
        return copied.cpu()

    # --- one step ------------------------------------------------------------------------------------------------

    def _backward(self, images, y, step):
        """The backward passes of one step on this process's part of the batch: losses (b,) and times (b,)."""
        draws = self._draws(step)
        torch.manual_seed(stream_seed(self.seed, "layers", step, *[self.world.rank] * (self.world.rank > 0)))
        size, losses = len(images) // self.accumulate, []
        for place in range(self.accumulate):
            part = slice(place * size, (place + 1) * size)
            self.world.synchronise(self.model, place == self.accumulate - 1)
            with torch.autocast(self.world.device.type, AMP[self.amp], enabled=self.amp is not None):
                loss = self.model(images[part], None if y is None else y[part], weight=self.weight,
                                  p_uncond=self.p_uncond, **{key: value[part] for key, value in draws.items()})
            mean = loss.mean() if self.accumulate == 1 else loss.mean() / self.accumulate
            self.optimisation.scaler.scale(mean).backward()
            losses.append(loss.detach())
        losses = torch.cat(losses) if len(losses) > 1 else losses[0]
        return losses.float(), draws["t"]

    def _draws(self, step):
        """This process's part of the times, the noise and the dropped conditions that are drawn for the whole batch."""
        device = self.world.device
        generator = torch.Generator(device).manual_seed(stream_seed(self.seed, "noise", step))
        draws = {"t": self.diffusion.sample_times(self.batch_size, generator, device, self.times)}
        shape = (self.batch_size, *self.diffusion.shape)
        draws["eps"] = torch.randn(shape, generator=generator, device=device)
        if self.p_uncond and hasattr(self.diffusion.network, "null"):
            draws["dropped"] = torch.rand(self.batch_size, generator=generator, device=device) < self.p_uncond
        return {key: self.world.mine(value) for key, value in draws.items()}

    # --- now and then --------------------------------------------------------------------------------------------

    def _report(self, last, y):
        """Whatever is due after this step: look for NaN, write the log, sample, evaluate, write a checkpoint."""
        step = self.history.step
        log = last or step % self.log_every == 0 or (step < self.log_every and step & (step - 1) == 0)  # 1, 2, 4, 8 ..
        save = self.folder is not None and (last or step % self.save_every == 0)
        sample = self.folder is not None and self.sample_every and (last or step % self.sample_every == 0)
        evaluate = self.evaluate is not None and (last or step % (self.evaluate_every or self.save_every) == 0)
        if not (log or save or sample or evaluate):
            return
        if self.guard.is_broken():
            self._stop_broken()
        self.positions = {key: place for key, place in self.positions.items() if key == step}
        loss, by_time = self.history.reduce(self.world)
        if log and (self.log.folder or self.log.trackers):
            numbers = torch.stack([loss, self.optimisation.gradient_norm, *by_time]).tolist()  # read once
            self.log.row(step=step, loss=numbers[0], lr=self.optimisation.rate_taken,
                         gradient_norm=numbers[1], images_per_second=self.history.images_per_second,
                         seconds=self.history.seconds, loss_by_time=numbers[2:])  # fmt: skip
        if sample and (self.world.rank == 0 or self.world.mesh):  # of divided weights everyone has a part
            with self._averaged() as model:
                sheet(model, f"{self.folder}/samples/step-{step:08d}.png", y, self.encode, self.sampling,
                      writes=self.world.rank == 0)  # fmt: skip
        if evaluate:
            with self._averaged() as model:
                self.log.evaluation(step, self.evaluate(model))
        if save:
            self._save(last)

    @contextlib.contextmanager
    def _averaged(self):
        """Inside, the model to sample from: the averages, or the weights themselves in a run without."""
        model = self.ema.model if self.ema else self.diffusion
        try:
            yield model
        finally:
            if self.world.mesh:  # else the next to come would see the weights of now
                model.network.reshard()

    def _resume(self, resume):
        if self.folder is None:
            return
        if self.world.rank == 0:
            make_folder(self.folder)
        self.world.wait()
        if not resume:
            return
        about = load_checkpoint(self.folder, self.arguments, self.diffusion, self.ema, self.optimisation.optimizer,
                                self.optimisation.scaler, self.history, changed=resume == "changed")  # fmt: skip
        steps = sorted(set(self.world.gather(self.history.step)))
        if len(steps) > 1:
            raise ValueError(f"folder={self.folder!r}: the processes found checkpoints after different steps there, "
                             f"{steps}. It must be one folder, on a disk that all machines share.")
        if about:
            self.position = about.get("position")
            self.optimisation.go_to(self.history.step)
            if self.progress:
                print(f"going on after step {self.history.step} of {about['path']}")

    def _save(self, last=True):
        """A checkpoint; a full disk stops only a run that is at its end, an earlier one tries again at the next."""
        merged = {}
        for part in self.world.gather(self.positions.get(self.history.step)):
            merged |= part or {}
        about = {"position": merged} if merged else {}
        try:
            save_checkpoint(self.folder, self.keep, self.world, self.arguments, self.diffusion, self.ema,
                            self.optimisation.optimizer, self.optimisation.scaler, self.history, **about)  # fmt: skip
        except OSError as error:
            message = (f"step {self.history.step}: no checkpoint could be written to {self.folder} "
                       f"({error.strerror}). The ones before are as they were; make room, or let this user write there")
            if last:
                raise OSError(error.errno, f"{message}, and run again: it goes on from the newest.") from error
            print(f"{message}. The next try is in {self.save_every} steps.")

    def _stop_broken(self):
        """Go back to the last good step, write it, and raise FloatingPointError with what happened and the way out."""
        good = self.first + int(self.guard.good_steps)
        story, where = self.guard.story(good + 1), ""
        if self.ema:
            self.ema.undo(range(good, self.history.step))
        self.history.back_to(good, self.world)
        if self.folder is not None and good > self.first:
            try:
                self._save()
                where = f", written to {self.folder}"
            except OSError as error:
                where = f" ({error.strerror})"
        raise FloatingPointError(
            f"{story}.\nThat step was not taken: the weights are those after step {good}{where}. Look at its "
            "data; go on with a lower lr, more warmup, or clip=1.0 (and resume='changed'); with amp='fp16', try 'bf16'."
        )

    def _is_last(self):
        """Whether this step is the last one: of the run, or of the time that was given. All processes agree."""
        if self.history.step == self.steps:
            return True
        if self.stop_after is None or (self.world.size > 1 and self.history.step % self.log_every):
            return False
        return any(self.world.gather(self.history.elapsed() >= self.stop_after))

    @contextlib.contextmanager
    def _compiled(self):
        """Inside, with `compile`, the network is compiled; its weights and their names stay as they are."""
        network = self.diffusion.network
        if not self.compile:
            yield
            return
        network.compile()
        try:
            yield
        finally:
            network._compiled_call_impl = None


class _Losses(nn.Module):
    """A Diffusion whose forward pass is its loss: what DDP and FSDP wrap, since they act around a forward pass."""

    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, images, y, **options):
        return self.diffusion.loss(images, y, **options)


@contextlib.contextmanager
def _own_random_state(device):
    """Inside, seed the global generators at will; afterwards they are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
