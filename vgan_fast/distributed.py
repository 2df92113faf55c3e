"""Several processes that train one model, one for each device, as `torchrun` starts them.

A batch is the whole batch over all processes: process r of N takes rows r B/N to (r + 1) B/N of it,
of clips and of random draws alike, so that N processes with synchronised batch norm follow one
process to rounding. What the processes hold is the same everywhere but for the running statistics
of a local batch norm, of which process 0's are kept.

Gradients are averaged by one all-reduce a network, of one flat buffer, after its backward pass.
PyTorch's DistributedDataParallel would overlap that with the pass, but its reducer hooks one
forward of one network to one backward: here the generator is run once for two updates, the
discriminator twice for one and then for another network's gradient, and all of it is one CUDA graph
(`vgan_fast.graph`), in which NCCL's all-reduce is a node like any other. What the overlap would
save is counted in `benchmarks.scaling`.
"""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from vgan_fast.errors import UserError
from vgan_fast.settings import Settings

# Until a process that waits for another gives up. Long enough for the others to tune kernels, or
# for process 0 to write a checkpoint to a slow disk.
PATIENCE = timedelta(minutes=10)
# Until the others have opened the data, whose videos process 0 decodes, which may take hours;
# torchrun ends those that wait for a process that has died.
DECODING = timedelta(days=7)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun


class LostProcessError(UserError):
    """Another process of the run has died or is stuck."""


class Ranks:
    """The processes of a run, seen from one of them; a process by itself without a store.

    What sends something is called by all processes in the same order. Tensors on a GPU go by NCCL,
    others by gloo.

    Args:
        number: of this process, from 0.
        count: of processes.
        store: what they share before they can send tensors.

    Raises:
        LostProcessError: from what sends something, when another process has died or is stuck.
    """

    def __init__(self, number: int = 0, count: int = 1, store: dist.Store | None = None):
        self.number, self.count, self._store = number, count, store

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.number == 0

    def own(self, whole: Tensor) -> Tensor:
        """This process's share of rows that all have: (N, ...) to (N / count, ...)."""
        return whole.unflatten(0, (self.count, -1))[self.number]

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes in their order: (n, ...) to (count · n, ...); no gradient."""
        if self._store is None:
            return rows
        rows = rows.detach().contiguous()
        gathered = rows.new_empty(self.count, *rows.shape)
        with _sent():
            dist.all_gather(list(gathered.unbind()), rows)
        return gathered.flatten(0, 1)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their means over all processes, bit for bit the same.

        They are dense, and their memory has the same order in every process.
        """
        if self._store is None or not tensors:
            return
        flat = [tensor.detach().as_strided((tensor.numel(),), (1,)) for tensor in tensors]
        together = torch.cat(flat)
        with _sent():
            dist.all_reduce(together)
        together /= self.count
        torch._foreach_copy_(flat, together.split([tensor.numel() for tensor in flat]))

    def means(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name as their means over all processes."""
        if self._store is None:
            return values
        together = torch.stack(list(values.values()))
        self.average([together])
        return dict(zip(values, together.unbind(), strict=True))

    def largest(self, value: int) -> int:
        """The largest of the processes' values; waits for all of them, not for their devices."""
        if self._store is None:
            return value
        together = torch.tensor(value)
        with _sent():
            dist.all_reduce(together, dist.ReduceOp.MAX)
        return int(together)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of process 0."""
        if self._store is None:
            return
        with _sent():
            for tensor in tensors:
                # Contiguous, whatever the order of its memory is.
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                tensor.detach().copy_(whole)

    def decided(self, key: str, decide: Callable[[], str]) -> str:
        """What process 0 decides, once for each key."""
        if self._store is None:
            return decide()
        decision = decide() if self.first else ""
        with _sent():
            if self.first:
                self._store.set(key, decision)
            self._wait_for(key, PATIENCE)
            return self._store.get(key).decode()

    def part(self, pieces: int) -> range:
        """Which of so many pieces of work fall to this process: neighbours, in its turn."""
        return range(*((self.number + i) * pieces // self.count for i in (0, 1)))

    def together(self, pieces: list) -> list:
        """What all processes have made of their parts, in order, in each process."""
        if self._store is None:
            return pieces
        of_each: list[list] = [[]] * self.count
        with _sent():
            dist.all_gather_object(of_each, pieces)
        return list(itertools.chain(*of_each))

    @contextlib.contextmanager
    def first_before_others(self, key: str) -> Iterator[None]:
        """A block that process 0 has done before the others begin it, and that all leave together.

        It may last as long as it likes. Once for each key.
        """
        if self._store is None:
            yield
            return
        done = [f"{key}-{number}" for number in range(self.count)]
        if not self.first:
            with _sent():
                self._wait_for(done[0], DECODING)
        yield
        with _sent():
            self._store.set(done[self.number], "done")
            for key in done:
                self._wait_for(key, DECODING)

    def _wait_for(self, key: str, patience: timedelta) -> None:
        """Wait for what another process sets, in slices: signals are heard in between, and its end.

        Raises:
            SystemExit: another process has ended with an error, and says why.
        """
        end = time.monotonic() + patience.total_seconds()
        while not self._store.check([key]):
            if self._store.check(["ended"]):
                raise SystemExit(2)
            if time.monotonic() > end:
                raise RuntimeError(f"nothing within {patience}")
            time.sleep(0.05)

    @property
    def workers(self) -> int | None:
        """Threads and processes that each of a machine's processes may start; None for any."""
        if self._store is None:
            return None
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))
        return max(1, len(os.sched_getaffinity(0)) // beside)

    def use_device(self, device: str) -> None:
        """Make the GPU of this process the current one.

        Raises:
            UserError: when a machine has more processes than GPUs.
        """
        if self._store is None or device != "cuda":
            return
        local, there = int(os.environ.get("LOCAL_RANK", self.number)), torch.cuda.device_count()
        if local >= there:
            raise UserError(
                f"--nproc-per-node: {there} GPUs are here; start no more processes on a machine"
            )
        torch.cuda.set_device(local)

    def share(self, settings: Settings) -> int:
        """Clips of a batch that fall to each process.

        Raises:
            UserError: when the run cannot be shared by so many processes.
        """
        if self._store is None:
            return settings.batch_size
        if settings.model == "stgconvnet":
            raise UserError(
                "--model stgconvnet: its chains belong to one process; start it without torchrun"
            )
        clips, rest = divmod(settings.batch_size, self.count)
        if rest:
            raise UserError(
                f"--batch-size {settings.batch_size}: must be a multiple of the {self.count} "
                "processes, which share each batch"
            )
        if clips < 2 and settings.batch_norm == "local":
            raise UserError(
                f"--batch-size {settings.batch_size}: leaves {self.count} processes one clip each, "
                "too few for --batch-norm local; use synchronised or a larger batch"
            )
        return clips

    def speaks(self) -> bool:
        """Whether this process is the first to end with an error, and says why."""
        if self._store is None:
            return True
        try:
            return self._store.compare_set("ended", "", str(self.number)) == b"%d" % self.number
        except RuntimeError:  # The process that kept it is gone.
            return True


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this run as `torchrun` has started them, or this one alone.

    Raises:
        UserError: one that the block raises, in the process that raises one first; others leave in
            silence, with the same status.
    """
    if not all(name in os.environ for name in _VARIABLES):
        yield ALONE
        return
    # Both, since losses and decisions on the CPU go by gloo where gradients on GPUs go by NCCL.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    with _sent():
        store, number, count = next(rendezvous("env://", timeout=PATIENCE))
        # Processes that are started again meet what the store held before: addresses of the dead.
        store = dist.PrefixStore(f"vgan_fast-{attempt}", store)
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=PATIENCE
        )
    ranks = Ranks(number, count, store)
    try:
        yield ranks
    except BaseException as error:
        spoke = ranks.speaks()
        if isinstance(error, UserError):
            if not spoke:
                raise SystemExit(2) from None
            # torchrun, which sees another process end first, must not come between it and its line.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _sent() -> Iterator[None]:
    try:
        yield
    # gloo's errors are of no class of their own.
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostProcessError(
            f"another process of the run has died or is stuck ({reason}); look for its own message "
            "and go on with --resume"
        ) from error
