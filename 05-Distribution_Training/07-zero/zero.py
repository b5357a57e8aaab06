"""ZeRO written out: the same training as with one process, with optimiser, gradients and weights cut into slices.

    torchrun --standalone --nproc_per_node 2 zero.py OUT

Every stage makes the same updates from the same weights on the same texts. OUT/rank-R.json gets what rank R held and sent,
its losses and seconds; OUT/weights.safetensors the weights after each stage.

What is unusual: the parameters of a block are views into one flat tensor. Freeing that tensor's storage and filling it
again leaves the views, and whatever autograd has kept of them for the backward pass, in place.
Source: S. Rajbhandari et al. (2020), ZeRO: Memory Optimizations Toward Training Trillion Parameter Models.
"""

import argparse
import json
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from common import RoadmapError, checkpoint, load_data, pick, set_seed
from common.distributed import print0, rank, start, stop, world_size

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL = checkpoint("bert")
UPDATES, PER_RANK = 6, 8
LENGTH, LR = pick(tiny=48, full=256), pick(tiny=3e-4, full=2e-5)


class Wire:
    """The three conversations, and the bytes that this rank sends in them when they go round in a ring."""

    sent = 0.0

    def _count(self, whole: torch.Tensor, times: int = 1) -> None:
        self.sent += times * whole.nbytes * (world_size() - 1) / world_size()

    def all_reduce(self, whole: torch.Tensor) -> torch.Tensor:
        """Everybody gets the sum."""
        self._count(whole, 2)  # a reduce-scatter, then an all-gather
        dist.all_reduce(whole)
        return whole

    def reduce_scatter(self, whole: torch.Tensor) -> torch.Tensor:
        """Everybody gets a slice of the sum: (size,) -> (size / N,)."""
        self._count(whole)
        mine = whole.new_empty(len(whole) // world_size())
        dist.reduce_scatter(mine, list(whole.chunk(world_size())))
        return mine

    def all_gather(self, mine: torch.Tensor, whole: torch.Tensor) -> None:
        """Everybody gets all slices: (size / N,) -> (size,)."""
        self._count(whole)
        dist.all_gather(list(whole.chunk(world_size())), mine)


class Block:
    """The parameters of one module in one flat tensor, and what of it this rank keeps.

    Attributes:
        flat: All parameters in a row, padded so that N ranks can share it: (size,). In stage 3 mostly without storage.
        owned: What this rank's optimiser updates: all of it in stage 0, else its slice, (size / N,).
    """

    def __init__(self, module: torch.nn.Module, zero: "Zero") -> None:
        self.zero, self.parameters = zero, list(module.parameters())
        n, numbers = world_size(), sum(p.numel() for p in module.parameters())
        self.flat = self.parameters[0].new_zeros(-(-numbers // n) * n, requires_grad=False)
        begin = 0
        for p in self.parameters:
            piece = self.flat[begin : begin + p.numel()].view_as(p)
            piece.copy_(p.detach())
            p.data = piece
            begin += p.numel()
            p.register_post_accumulate_grad_hook(self.arrived)
        self.missing, self.bytes = len(self.parameters), self.flat.nbytes
        mine = self.flat if zero.stage == 0 else self.flat.chunk(n)[rank()]
        self.owned = torch.nn.Parameter(mine.clone() if zero.stage == 3 else mine)  # below 3 it is a view
        if zero.stage == 3:
            self.free()
            module.register_forward_pre_hook(lambda *_: self.gather())
            module.register_forward_hook(self.passed)

    def gather(self) -> None:
        """Stage 3: the block is needed; fetch the slices of the others."""
        self.flat.untyped_storage().resize_(self.bytes)
        self.zero.wire.all_gather(self.owned.detach(), self.flat)
        self.zero.look()

    def free(self) -> None:
        """Stage 3: the block has done its part; keep only the slice."""
        self.flat.untyped_storage().resize_(0)

    def passed(self, module: torch.nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
        """Stage 3: forward is done; when backward comes to this output, the weights will be needed again."""
        self.free()
        first = output if isinstance(output, torch.Tensor) else output[0]
        if first.requires_grad:
            first.register_hook(lambda _: self.gather())

    def arrived(self, _: torch.Tensor) -> None:
        """Autograd calls this for each finished gradient. From stage 2 on none is kept longer than its block needs."""
        self.missing -= 1
        if self.missing == 0 and self.zero.stage >= 2:
            self.reduce()
            if self.zero.stage == 3:
                self.free()

    def reduce(self) -> None:
        """Give ``owned`` the mean gradient over the ranks, and forget the gradients of the parameters."""
        whole = torch.cat([p.grad.flatten() for p in self.parameters])
        whole = torch.nn.functional.pad(whole, (0, len(self.flat) - len(whole)))
        self.zero.look(whole.nbytes)
        talk = self.zero.wire.all_reduce if self.zero.stage == 0 else self.zero.wire.reduce_scatter
        self.owned.grad = talk(whole) / world_size()
        self.missing = len(self.parameters)
        for p in self.parameters:
            p.grad = None


class Zero:
    """Train a model with AdamW, each rank keeping all of it (stage 0) or less and less (1, 2, 3)."""

    def __init__(self, model: torch.nn.Module, stage: int, lr: float) -> None:
        if stage not in (0, 1, 2, 3):
            raise RoadmapError(f"There is no ZeRO stage {stage}; choose 0, 1, 2 or 3.")
        self.model, self.stage, self.wire, self.highest = model, stage, Wire(), 0
        for p in model.parameters():
            dist.broadcast(p.data, 0)
        modules = list(blocks_of(model))
        if sorted(map(id, model.parameters())) != sorted(id(p) for module in modules for p in module.parameters()):
            raise RoadmapError("Each parameter must be in exactly one block; tied or loose weights cannot be cut up here.")
        self.blocks = [Block(module, self) for module in modules]
        self.optimizer = torch.optim.AdamW([block.owned for block in self.blocks], lr=lr)

    def step(self) -> None:
        """After backward: bring the rest of the gradients together, update what is owned, share the news."""
        for block in self.blocks:
            if self.stage < 2:
                block.reduce()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for block in self.blocks:
            if self.stage in (1, 2):
                self.wire.all_gather(block.owned.detach().clone(), block.flat)

    def held(self) -> dict[str, int]:
        """Bytes on this rank now, without activations."""
        every = [*self.model.parameters(), *(block.owned for block in self.blocks)]
        gradients = [p.grad for p in every if p.grad is not None]
        states = [value for state in self.optimizer.state.values() for value in state.values() if value.ndim]
        storages = [t.untyped_storage() for block in self.blocks for t in (block.owned, block.flat)]
        return {
            "parameters": sum({m.data_ptr(): m.nbytes() for m in storages}.values()),  # a view is not counted twice
            "gradients": sum(t.nbytes for t in gradients),
            "optimizer": sum(t.nbytes for t in states),
        }

    def look(self, beside: int = 0) -> None:
        """Remember the most that was ever held, with so many bytes beside what :meth:`held` counts."""
        self.highest = max(self.highest, sum(self.held().values()) + beside)

    def weights(self) -> torch.Tensor:
        """All parameters in a row, without padding; every rank must ask."""
        rows = []
        for block in self.blocks:
            if self.stage == 3:
                block.gather()
            rows += [p.detach().flatten().cpu().clone() for p in block.parameters]  # views would lose their ground
            if self.stage == 3:
                block.free()
        return torch.cat(rows)


def blocks_of(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules that are gathered as one: embeddings, each layer, the head; only what holds a list of layers is opened."""
    for child in model.children():
        if any(isinstance(part, torch.nn.ModuleList) for part in child.modules()):
            yield from blocks_of(child)
        elif any(True for _ in child.parameters()):
            yield child


def train(zero: Zero, batches: list[dict]) -> dict:
    """One update a batch; what the last of them held after backward, and means over all of them."""
    losses, began = [], time.perf_counter()
    zero.wire.sent = 0.0
    for batch in batches:
        loss = zero.model(**batch).loss
        loss.backward()
        losses.append(loss.detach())
        held = zero.held()
        zero.step()
    seconds = (time.perf_counter() - began) / len(batches)
    mean = torch.stack(losses)
    dist.all_reduce(mean)
    sent = zero.wire.sent / len(batches)
    return {**held, "highest": zero.highest, "sent": sent, "seconds": seconds, "losses": (mean / world_size()).tolist()}


@cache
def source():
    """The training reviews and the tokenizer, read once."""
    return load_data("sentiment")["train"], AutoTokenizer.from_pretrained(MODEL)


def texts(numbers: range, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """A batch of training reviews by number."""
    rows, tokenizer = source()
    rows = rows.select(numbers)
    batch = tokenizer(rows["text"][:], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    return {**batch.to(device), "labels": torch.tensor(rows["label"][:], device=device)}


def fresh(seed: int = 0) -> torch.nn.Module:
    """The pre-trained encoder with a random head; dropout is off, so that runs can be compared digit by digit."""
    set_seed(seed)
    return AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2, dtype=torch.float32).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3], help="which to run, one after another")
    options = parser.parse_args()
    device = start()
    begins = [(update * world_size() + rank()) * PER_RANK for update in range(UPDATES)]
    batches = [texts(range(begin, begin + PER_RANK), device) for begin in begins]
    found, weights = {}, {}
    for stage in options.stages:
        zero = Zero(fresh(rank()).to(device), stage, LR)  # heads differ on purpose: the first thing is to agree
        found[stage] = train(zero, batches)
        weights[f"stage {stage}"] = zero.weights()
        total = sum(found[stage][kind] for kind in ("parameters", "gradients", "optimizer"))
        print0(f"stage {stage}: {total / 1e6:5.1f} MB held, {found[stage]['sent'] / 1e6:5.1f} MB sent an update")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"rank-{rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    if rank() == 0:
        save_file(weights, options.out / "weights.safetensors")
    stop()


if __name__ == "__main__":
    main()
