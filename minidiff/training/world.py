"""The processes that train together: who they are, and what they tell each other.

`torchrun --nproc-per-node N` (or `accelerate launch`) starts N processes with the same script; accelerate reads who is
who from the environment and opens the connections, torch's DistributedDataParallel and fully_shard (FSDP2) do the rest.
Without them there is one process, and nothing here costs anything.

With "ddp" each process holds the whole model, and gradients are averaged. With "fsdp" each holds a part of every weight
matrix, of its average and of its moments, and the whole only of the block at work. Everything that works on weights
one by one (optimiser, average, norms) works on these parts as plain tensors: `local`. A checkpoint has the whole
tensors: `full` puts them together, `part_of` takes them apart, for any number of processes.
"""

import atexit
import os
import time
import warnings

from torch import distributed, nn

BACKENDS = ("ddp", "fsdp")


class World:
    """rank, size: number of this process and of all; device: where it computes.

    parallel  "ddp" or "fsdp"
    expected  how many processes there should be, None for any
    Raises ValueError for another number of processes: a script started without its launcher would train alone.
    """

    def __init__(self, device=None, parallel="ddp", expected=None):
        if parallel not in BACKENDS:
            raise ValueError(f"parallel={parallel!r}: processes work together as 'ddp' (each holds the whole model) "
                             "or 'fsdp' (each holds a part of it).")
        self.rank, self.size, self.device, self.mesh = 0, 1, device, None
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 or distributed.is_initialized():
            from accelerate import PartialState

            opened = not distributed.is_initialized()
            state = PartialState(cpu=device is not None and device.type == "cpu")
            if opened and distributed.get_backend() == "gloo":
                atexit.register(leave)
            self.rank, self.size = state.process_index, state.num_processes
            self.device = device if device is not None and device.type == "cpu" else state.device
        self.parallel = parallel if self.size > 1 else None
        if expected is not None and expected != self.size:
            raise ValueError(
                f"processes={expected}, but {self.size} {'is' if self.size == 1 else 'are'} running. Start the script "
                f"with  torchrun --nproc-per-node {expected} SCRIPT  (several machines: --nnodes and --rdzv-endpoint "
                "too), or leave `processes` out. On a CPU `accelerate launch` starts one process whatever it is told."
            )
        if self.parallel == "fsdp":
            self.mesh = distributed.device_mesh.init_device_mesh(self.device.type, (self.size,))

    def mine(self, batch):
        """The part of a whole batch (anything that can be sliced) that belongs to this process."""
        share = len(batch) // self.size
        return batch[self.rank * share:(self.rank + 1) * share] if self.size > 1 else batch

    def agree(self, model):
        """Give the first process's weights and buffers to all: a script that sets no seed makes others on each."""
        for tensor in model.state_dict().values() if self.size > 1 else ():
            whole = tensor.contiguous()
            distributed.broadcast(whole, 0)
            tensor.copy_(whole)

    def wrap(self, module, network):
        """`module`, made to train together with its copies on the other processes; `network` has its weights."""
        if self.parallel == "ddp":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers is to get another name
                return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False,
                                                           gradient_as_bucket_view=True)  # fmt: skip
        self.sharded = self.shard(network) if self.parallel == "fsdp" else None
        return module

    def shard(self, module):
        """`module`, a network, with its weights divided among the processes, block by block, in place (FSDP2).

        A block is a member of a ModuleList: of these, the whole weights are there only while they compute. The others
        are whole from the network's call on to the backward pass, or to `network.reshard()` where there is none.
        """
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        lists = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
        blocks = {block for blocks in lists for block in blocks if _is_called(block)}
        for inner in reversed([m for m in module.modules() if m in blocks]):  # those inside of others first
            fully_shard(inner, mesh=self.mesh)
        fully_shard(module, mesh=self.mesh)
        # Blocks that return views, of which torch warns that nobody may change them in place: nobody does.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        if hasattr(module, "null"):  # it may read weights, and is called before the network
            register_fsdp_forward_method(module, "null")
        return module

    def synchronise(self, module, yes):
        """Whether the next backward pass of a wrapped module shares its gradients: only the last of a step does."""
        if self.parallel == "ddp":
            module.require_backward_grad_sync = yes
        elif self.parallel == "fsdp":
            self.sharded.set_requires_gradient_sync(yes)

    def sum(self, tensor):
        """The sum of `tensor` over the processes, in place; returns it."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def mean(self, tensor):
        """The mean of `tensor` over the processes, in place; returns it."""
        return self.sum(tensor).div_(self.size) if self.size > 1 else tensor

    def gather(self, value):
        """The list of every process's `value`, a plain Python object, on every process."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def wait(self):
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()


def leave():
    """Close the connections to the other processes, before Python ends.

    A thread of gloo lets go of its last tensors a moment after the main thread has them. It needs Python for that: if
    Python is gone by then, it aborts the whole process, once in twenty short runs.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
    time.sleep(0.1)


def _is_called(module):
    """Whether a module computes when it is called. Of others, lists and GenViT's halves, FSDP cannot see when."""
    return type(module).forward is not nn.Module.forward


def local(tensor):
    """This process's part of a sharded tensor, as a plain tensor that shares its memory; any other tensor itself."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def full(tensor, like=None):
    """The whole of a sharded tensor, on every process; any other tensor itself.

    like: the sharded tensor that the part `tensor` lies beside, where it is a plain one (an optimiser's moment).
    """
    if hasattr(like, "to_local") and tensor.shape == like.to_local().shape and tensor.ndim:
        from torch.distributed.tensor import DTensor

        tensor = DTensor.from_local(tensor, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def part_of(tensor, like):
    """This process's part of the whole `tensor`, where `like` is sharded; else `tensor`."""
    if not hasattr(like, "to_local") or tensor.shape != like.shape:
        return tensor
    parts = tensor.chunk(like.device_mesh.size(), dim=0)  # as Shard(0) divides: the last parts may be short or empty
    rank = like.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else tensor[:0]
