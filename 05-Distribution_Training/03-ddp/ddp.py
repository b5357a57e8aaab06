"""Fine-tune a text classifier with DistributedDataParallel, on GPUs (nccl) or in CPU processes (gloo).

    torchrun --standalone --nproc_per_node 2 ddp.py --out my-run --save-every 100

One update sees batch-size x accumulate x processes texts: keep that product when you change the number of processes.
Without torchrun the same file trains in one process. Rank 0 writes OUT/checkpoint.pt, OUT/model and OUT/log.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from common import RoadmapError, checkpoint, load_data, outputs, pick, set_seed
from common.distributed import gather, print0, rank, start, stop, world_size

import torch
import torch.distributed as dist
from safetensors.torch import save_model
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer

SAME = ("data", "train_samples", "length", "batch_size", "accumulate", "epochs", "lr", "precision", "seed")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", default="sentiment", help="a data set of the course, or a .csv with columns text and label")
    made.add_argument("--model", default=checkpoint("bert"), help="a folder or a Hub name")
    made.add_argument("--train-samples", type=int, default=pick(tiny=640, full=9_600), help="first so many of the training split")
    made.add_argument("--eval-samples", type=int, default=pick(tiny=101, full=1_200), help="first so many of the split evaluated")
    made.add_argument("--split", choices=("validation", "test"), default="validation", help="what to evaluate on at the end")
    made.add_argument("--length", type=int, default=pick(tiny=48, full=256), help="tokens at which a text is cut")
    made.add_argument("--batch-size", type=int, default=pick(tiny=8, full=32), help="texts a process takes at a time")
    made.add_argument("--accumulate", type=int, default=1, help="batches before an update")
    made.add_argument("--epochs", type=int, default=pick(tiny=1, full=2), help="passes over the training samples")
    made.add_argument("--lr", type=float, default=pick(tiny=6e-4, full=2e-5), help="peak learning rate")
    made.add_argument("--precision", choices=("fp32", "bf16"), default=pick(tiny="fp32", full="bf16"), help="bf16: autocast")
    made.add_argument("--seed", type=int, default=0, help="of the new head and of the order of the data")
    made.add_argument("--out", type=Path, default=None, help="folder for the results (default: outputs of the lesson)")
    made.add_argument("--save-every", type=int, default=0, help="updates between checkpoints (default: none)")
    made.add_argument("--resume", action="store_true", help="continue from OUT/checkpoint.pt")
    made.add_argument("--crash-at", type=int, default=-1, help="a drill: the last rank kills itself before this update")
    return made


def main(arguments: list[str] | None = None) -> dict:
    """Train, evaluate, save; returns what is written to ``log.json``."""
    options = parser().parse_args(arguments)
    options.out = options.out or outputs("05-Distribution_Training/03-ddp") / "run"
    device = start()
    print0(f"{world_size()} processes on {device.type}, {options.batch_size * options.accumulate * world_size()} texts an update")
    rows = load_data(options.data)
    train = rows["train"].select(range(min(options.train_samples, len(rows["train"]))))
    held = rows[options.split].select(range(min(options.eval_samples, len(rows[options.split]))))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = build(options, len(rows["train"].features["label"].names)).to(device)

    def collate(items: list[dict]) -> dict[str, torch.Tensor]:
        texts = [item["text"] for item in items]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=options.length, return_tensors="pt")
        batch["labels"] = torch.tensor([item["label"] for item in items])
        return {key: value.to(device) for key, value in batch.items()}

    log = fine_tune(model, train, collate, options, device)
    predictions = predict(model, held, collate, options.batch_size)
    right = int((predictions == torch.tensor(held["label"][:])).sum())
    log |= {"predictions": predictions.tolist(), "accuracy": right / len(predictions)}
    print0(f"{options.split}: {right} of {len(predictions)} right, accuracy {log['accuracy']:.4f}")
    if rank() == 0:
        (options.out / "model").mkdir(exist_ok=True)
        save_model(model, str(options.out / "model" / "model.safetensors"))
        for part in (model.config, tokenizer):
            part.save_pretrained(options.out / "model")
        (options.out / "log.json").write_text(json.dumps(log), encoding="utf-8")
    stop()
    return log


def build(options: argparse.Namespace, classes: int) -> torch.nn.Module:
    """The pre-trained encoder with a head of so many classes (a new one if it has another), the same on every rank."""
    set_seed(options.seed)
    return AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=classes, dtype=torch.float32, ignore_mismatched_sizes=True
    )


def fine_tune(model: torch.nn.Module, train, collate, options: argparse.Namespace, device: torch.device) -> dict:
    """Train ``model`` in place; returns the loss of each update (mean of all ranks), seconds, and where it began."""
    sampler = DistributedSampler(train, world_size(), rank(), seed=options.seed)
    update = options.batch_size * options.accumulate
    updates = len(sampler) // update  # in an epoch; what is left over is dropped, so that all batches weigh the same
    total = updates * options.epochs
    if total < 1:
        raise RoadmapError(f"{len(train)} texts do not fill one update of {update * world_size()}; lower --batch-size.")
    parallel = DistributedDataParallel(model, [device] if device.type == "cuda" else None) if dist.is_initialized() else model
    hold_back = parallel.no_sync if dist.is_initialized() else nullcontext
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.01)
    step, losses = load(model, optimizer, options)
    first, began = step, time.perf_counter()
    model.train()
    while step < total:
        epoch, done = divmod(step, updates)
        sampler.set_epoch(epoch)  # or every epoch would have the order of the first
        order = list(sampler)[done * update : updates * update]
        parts = []
        for batch in DataLoader(train, options.batch_size, sampler=order, collate_fn=collate):
            last = len(parts) + 1 == options.accumulate
            if last and step == options.crash_at and rank() == world_size() - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            set_seed(
                (options.seed * 1_000_003 + (step * options.accumulate + len(parts)) * world_size() + rank()) % 2**32
            )  # for dropout
            with nullcontext() if last else hold_back():  # the ranks talk once an update, not once a batch
                with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
                    loss = parallel(**batch).loss
                (loss / options.accumulate).backward()
            parts.append(loss.detach())
            if not last:
                continue
            for group in optimizer.param_groups:
                group["lr"] = options.lr * min((step + 1) / (0.1 * total), (total - step) / total, 1.0)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step, losses, parts = step + 1, [*losses, torch.stack(parts).mean().cpu()], []
            now = bool(options.save_every) and step % options.save_every == 0
            if now or step % max(1, total // 4) == 0:
                losses = list(average(losses, device))
                print0(f"update {step} of {total}, mean loss {losses[-1]:.3f}")
            if now:
                save(model, optimizer, step, losses, options)
    seconds = time.perf_counter() - began
    return {"losses": average(losses, device).tolist(), "first": first, "seconds": seconds, "processes": world_size()}


def average(losses: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """The mean over ranks of values that each rank has, as many on each."""
    mean = torch.tensor([float(loss) for loss in losses], device=device)
    if dist.is_initialized():
        dist.all_reduce(mean)
    return (mean / world_size()).cpu()


def predict(model: torch.nn.Module, rows, collate, batch_size: int) -> torch.Tensor:
    """The predicted class of every row, in order, on every rank; each row is computed by one rank and counted once.

    It takes the bare model: the forward of a DDP wrapper may communicate, and ranks with fewer batches would be waited for.
    """
    mine = torch.arange(rank(), len(rows), world_size())  # nothing is padded: shares may differ by one row
    answers = torch.zeros(len(mine), dtype=torch.long, device=next(model.parameters()).device)
    model.eval()
    with torch.inference_mode():
        for i in range(0, len(mine), batch_size):
            batch = collate([rows[int(j)] for j in mine[i : i + batch_size]])
            answers[i : i + batch_size] = model(**batch).logits.argmax(-1)
    return gather(answers, mine).cpu()


def save(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, losses: list, options: argparse.Namespace) -> None:
    """Rank 0 writes beside the checkpoint and then replaces it: a kill at any moment leaves a whole one."""
    if rank() == 0:
        state = {"step": step, "losses": losses, "same": _same(options)}
        part = options.out / "checkpoint.part"
        torch.save(state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, part)
        part.replace(options.out / "checkpoint.pt")


def load(model: torch.nn.Module, optimizer: torch.optim.Optimizer, options: argparse.Namespace) -> tuple[int, list]:
    """The update to continue with and the losses so far; all ranks read the same file."""
    path = options.out / "checkpoint.pt"
    if not options.resume:
        if path.exists() or (options.out / "log.json").exists():
            raise RoadmapError(f"{options.out} holds an earlier run; continue it with --resume, or give another --out.")
        options.out.mkdir(parents=True, exist_ok=True)
        return 0, []
    if not path.exists():
        raise RoadmapError(f"There is no {path} to resume from; start without --resume, with --save-every N.")
    state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
    for name, value in _same(options).items():
        if state["same"][name] != value:
            flag = name.replace("_", "-")
            raise RoadmapError(
                f"The run to resume had {flag} {state['same'][name]}, not {value}; the data would not be the same."
            )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print0(f"resumed after update {state['step']}")
    return state["step"], state["losses"]


def _same(options: argparse.Namespace) -> dict:
    """What must not change between a run and its continuation."""
    return {"processes": world_size(), **{name: getattr(options, name) for name in SAME}}


if __name__ == "__main__":
    try:
        main()
    except RoadmapError as error:
        sys.exit(f"error: {error}")
