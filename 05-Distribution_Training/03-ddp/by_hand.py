"""DistributedDataParallel written out twice, beside torch's own: the same updates, and who waits for whom.

    torchrun --standalone --nproc_per_node 2 by_hand.py OUT

Every method makes the same few updates from the same weights on the same texts. OUT/weights.safetensors gets the weights
after each, OUT/rank-N.json what rank N sent, when it computed and when it talked. Unlike in a real run dropout is off and
the optimiser is plain SGD, so that methods can be compared digit by digit.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from common import checkpoint, load_data, pick, set_seed
from common.distributed import print0, rank, start, stop, world_size

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector
from transformers import AutoModelForSequenceClassification, AutoTokenizer

UPDATES, PER_RANK = 6, 8
LENGTH, LR = pick(tiny=48, full=256), pick(tiny=0.1, full=1e-3)


class Clock:
    """Rows (what, begin, end) in seconds since :meth:`zero`, at which all ranks meet."""

    def zero(self) -> None:
        dist.barrier()
        self.rows: list[tuple[str, float, float]] = []
        self.origin = time.perf_counter()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.note(what, begin)

    def note(self, what: str, begin: float) -> None:
        if begin >= self.origin:  # a late message of the update before belongs to that one
            self.rows.append((what, begin - self.origin, time.perf_counter() - self.origin))


class AfterBackward:
    """When backward is done: replace every gradient by its mean over the ranks. This is all that DDP means."""

    def __init__(self, model: torch.nn.Module, clock: Clock) -> None:
        self.model, self.forward, self.clock = model, model, clock
        self.sent: list[int] = []  # bytes of each message
        for p in model.parameters():
            dist.broadcast(p.data, 0)  # the same start: each rank has drawn a head of its own

    def send(self, tensor: torch.Tensor) -> dist.Work:
        """Begin to add up a tensor over the ranks, in the background."""
        begin, work = time.perf_counter(), dist.all_reduce(tensor, async_op=True)
        work.get_future().then(lambda _: self.clock.note("all-reduce", begin))
        self.sent.append(tensor.nbytes)
        return work

    def finish(self) -> None:
        """Make the gradients those of the whole batch; called after backward."""
        for p in self.model.parameters():
            self.send(p.grad).wait()
            p.grad /= world_size()


class Buckets(AfterBackward):
    """The same means, sent in buckets while backward is still computing.

    Backward reaches the last layer first, so buckets are filled from the end of the model. As soon as the last gradient
    of a bucket is there, its all-reduce starts; only :meth:`finish` waits.
    """

    def __init__(self, model: torch.nn.Module, clock: Clock, megabytes: float = 4.0) -> None:
        super().__init__(model, clock)
        self.buckets: list[list[torch.nn.Parameter]] = [[]]
        for p in reversed(list(model.parameters())):
            if self.buckets[-1] and sum(q.nbytes for q in self.buckets[-1]) + p.nbytes > megabytes * 1e6:
                self.buckets.append([])
            self.buckets[-1].append(p)
        self.home = {p: i for i, bucket in enumerate(self.buckets) for p in bucket}
        self.listening = True
        self.reset()
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(self.arrived)

    def reset(self) -> None:
        self.missing = [len(bucket) for bucket in self.buckets]
        self.flying: dict[int, tuple[torch.Tensor, dist.Work]] = {}

    def arrived(self, p: torch.nn.Parameter) -> None:
        """Autograd calls this when the gradient of ``p`` is complete."""
        i = self.home[p]
        self.missing[i] -= self.listening
        if self.listening and not self.missing[i]:
            flat = torch.cat([q.grad.flatten() for q in self.buckets[i]])
            self.flying[i] = flat, self.send(flat)

    def finish(self) -> None:
        if unused := [i for i, missing in enumerate(self.missing) if missing]:
            raise RuntimeError(f"Buckets {unused} were never full: a parameter had no part in the loss.")
        for i, (flat, work) in self.flying.items():
            work.wait()
            means = (flat / world_size()).split([p.numel() for p in self.buckets[i]])
            for p, mean in zip(self.buckets[i], means):
                p.grad.copy_(mean.view_as(p))
        self.reset()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Inside, gradients add up on their own rank and nobody talks."""
        self.listening = False
        yield
        self.listening = True


class Torch(AfterBackward):
    """The library's, with a hook that watches its buckets; its backward returns when they have all arrived."""

    def __init__(self, model: torch.nn.Module, clock: Clock) -> None:
        self.clock, self.sent = clock, []
        home = next(model.parameters()).device
        self.forward = DistributedDataParallel(model, [home] if home.type == "cuda" else None, bucket_cap_mb=4)
        self.forward.register_comm_hook(self, Torch.watch)
        self.no_sync = self.forward.no_sync

    def watch(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        begin, future = time.perf_counter(), allreduce_hook(None, bucket)
        future.then(lambda _: self.clock.note("all-reduce", begin))
        self.sent.append(bucket.buffer().nbytes)
        return future

    def finish(self) -> None:
        pass


def train(method: AfterBackward, batches: list[list[dict]], *, quiet: bool = True) -> dict:
    """One update for each list of batches, whose gradients add up.

    With ``quiet`` ranks talk once an update; without it, after each of its batches. Returns messages and bytes an update
    that this rank hands to all-reduce, and the times of the last update.
    """
    optimizer, clock = torch.optim.SGD(method.forward.parameters(), lr=LR), method.clock
    for parts in batches:
        clock.zero()
        for i, batch in enumerate(parts, 1):
            with method.no_sync() if quiet and i < len(parts) else nullcontext():
                with clock("forward"):
                    loss = method.forward(**batch).loss / len(parts)
                with clock("backward"):
                    loss.backward()
        with clock("wait"):
            method.finish()
        with clock("update"):
            optimizer.step()
            optimizer.zero_grad()
    return {"messages": len(method.sent) / len(batches), "bytes": sum(method.sent) / len(batches), "times": clock.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the results")
    out = parser.parse_args().out
    device = start()
    rows = load_data("sentiment")["train"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("bert"))

    def batch(numbers: range) -> dict[str, torch.Tensor]:
        texts = [rows[i]["text"] for i in numbers]
        made = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
        made["labels"] = torch.tensor([rows[i]["label"] for i in numbers])
        return {key: value.to(device) for key, value in made.items()}

    # update u of all ranks together sees the texts from u * PER_RANK * world_size() on; each rank takes its stretch
    mine = [range(begin := (u * world_size() + rank()) * PER_RANK, begin + PER_RANK) for u in range(UPDATES)]
    whole = [[batch(numbers)] for numbers in mine]
    halves = [[batch(numbers[: PER_RANK // 2]), batch(numbers[PER_RANK // 2 :])] for numbers in mine]
    runs = {
        "after backward": (AfterBackward, whole, True),
        "buckets": (Buckets, whole, True),
        "torch": (Torch, whole, True),
        "buckets, halves": (Buckets, halves, True),
        "torch, halves": (Torch, halves, True),
        "torch, halves, talking": (Torch, halves, False),
    }
    weights, found = {}, {}
    for name, (method, batches, quiet) in runs.items():
        set_seed(rank())  # on purpose not the same on every rank
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint("bert"), num_labels=2, dtype=torch.float32)
        found[name] = train(method(model.to(device).eval(), Clock()), batches, quiet=quiet)
        weights[name] = parameters_to_vector(model.parameters()).detach().cpu()
        print0(f"{name:<24}{found[name]['messages']:4.0f} messages, {found[name]['bytes'] / 1e6:5.1f} MB an update")
    out.mkdir(parents=True, exist_ok=True)
    (out / f"rank-{rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    save_file(weights, out / f"weights-{rank()}.safetensors")
    stop()


if __name__ == "__main__":
    main()
