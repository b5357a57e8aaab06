"""A training loop to rely on, and the defaults of the library's own.

``fit`` is the loop that lesson 04 of the first chapter writes by hand, with what a long run needs around it. What is
unusual: it stores no random state. Every optimiser step seeds the generators from ``(seed, step)``, every batch from
``(seed, epoch, place in the epoch)`` and every order from ``(seed, epoch)``. So a run that is resumed after a crash continues
with the very same numbers.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from common.errors import RoadmapError
from common.hardware import set_seed
from common.scale import cap, pick, progress

import torch
from torch.utils.data import DataLoader

Evaluate = Callable[[torch.nn.Module], dict[str, float]]
Precision = Literal["no", "bf16", "fp16"]  # format of the arithmetic under autocast; weights stay as they are


@dataclass
class History:
    """What happened in a run.

    Attributes:
        steps: One record per optimiser step: ``step``, ``epoch`` (fractional), ``loss`` (nats), ``lr``.
        evaluations: One record per evaluation: ``step`` and the metrics.
        best: The evaluation whose weights the model holds at the end, or None if no metric was chosen.
        seconds: Wall-clock time of this process in the loop, evaluation and saving included.
        tokens: Input positions seen by this process, padding included.
        stopped: Why the run ended: ``"done"`` or ``"no better evaluation"``.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] | None = None
    seconds: float = 0.0
    tokens: int = 0
    stopped: str = "done"

    @property
    def losses(self) -> list[float]:
        """The training loss of each optimiser step, in nats."""
        return [record["loss"] for record in self.steps]


def fit(
    model: torch.nn.Module,
    train: DataLoader[Any],
    *,
    epochs: int | None = None,
    max_steps: int | None = None,
    lr: float = 5e-5,
    weight_decay: float = 0.01,
    schedule: str = "linear",
    warmup: float = 0.1,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    accumulate: int = 1,
    clip: float | None = 1.0,
    precision: Precision = "no",
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    best: str | None = None,
    patience: int | None = None,
    folder: str | Path | None = None,
    save_every: int | None = None,
    resume: bool = False,
    seed: int = 42,
    label: str = "train",
) -> History:
    """Train a model whose ``forward(**batch)`` returns an object with ``loss``.

    Runs on one device, or on several when started by torchrun (the loader is then sharded by accelerate).

    Args:
        model: Trained in place; at the end it is in evaluation mode and, if ``best`` is given, has the best weights.
        train: Yields dictionaries of tensors. Randomness in the data belongs in its ``collate_fn``.
        epochs: Passes over the data; or give ``max_steps``.
        max_steps: Optimiser steps; the data is repeated as needed.
        lr: Peak learning rate of the AdamW made here (ignored if ``optimizer`` is given).
        weight_decay: Of matrices only; biases and norms (fewer than two dimensions) are never decayed.
        schedule: A name that ``transformers.get_scheduler`` knows, such as ``"linear"``, ``"cosine"``, ``"constant"``.
        warmup: Part of all steps over which the rate rises from 0.
        optimizer: Your own, made from this model's parameters, or several, each for a part of them; the schedule scales
            the rate of each.
        accumulate: Batches per optimiser step; their mean losses count equally.
        clip: Largest gradient norm, or None.
        precision: Autocast format. On a CPU ``"bf16"`` pays only where the processor multiplies it (avx512_bf16).
        evaluate: Called with the model in evaluation mode and without gradients; returns metrics.
        evaluate_every: Optimiser steps between evaluations; None means at the end of each epoch.
        best: The metric to choose weights by, higher is better; ``"-loss"`` means lower ``"loss"`` is better.
        patience: Stop after this many evaluations without a better ``best``.
        folder: Where checkpoints go. An earlier run's checkpoints there are continued (``resume=True``) or refused.
        save_every: Optimiser steps between checkpoints.
        resume: Continue from the newest checkpoint in ``folder``, if there is one.
        seed: Seeds the order of the data and everything random in a step.
        label: What the progress bar is called.

    Raises:
        RoadmapError: Arguments that contradict each other, checkpoints in the way, no loss, or a loss that is not finite.

    Source:
        Accelerate documentation, "Gradient accumulation" and "Checkpointing".
    """
    settings = Settings(
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        accumulate=accumulate,
        clip=clip,
        precision=precision,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        best=best,
        patience=patience,
        folder=Path(folder) if folder else None,
        save_every=save_every,
        resume=resume,
        seed=seed,
        label=label,
    )
    _check(train, epochs, max_steps, settings)
    if isinstance(optimizer, torch.optim.Optimizer):
        optimizer = [optimizer]
    optimizers = list(optimizer or [adamw(model, lr=lr, weight_decay=weight_decay)])
    return Training(model, train, optimizers, epochs, max_steps, settings).run()


@dataclass(frozen=True)
class Settings:
    """The options of :func:`fit` that its loop reads; they are explained there."""

    lr: float
    weight_decay: float
    schedule: str
    warmup: float
    accumulate: int
    clip: float | None
    precision: Precision
    evaluate: Evaluate | None
    evaluate_every: int | None
    best: str | None
    patience: int | None
    folder: Path | None
    save_every: int | None
    resume: bool
    seed: int
    label: str


class Training:
    """The loop of :func:`fit`: epochs of batches; forward pass, backward pass, optimiser step; evaluation and saving between.

    Attributes:
        step: Optimiser steps done.
        total: Optimiser steps wanted.
        batches: Batches done of the current epoch.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        train: DataLoader[Any],
        optimizers: list[torch.optim.Optimizer],
        epochs: int | None,
        max_steps: int | None,
        settings: Settings,
    ):
        """Put everything on its device, and make a schedule for each optimiser."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DataLoaderConfiguration
        from transformers import get_scheduler

        AcceleratorState._reset_state()  # an earlier run in this process may have used another precision
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=settings.precision,
            gradient_accumulation_steps=settings.accumulate,
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=settings.seed),
        )
        self.settings, self.bare_model = settings, model
        self.model, self.loader, *self.optimizers = self.accelerator.prepare(model, train, *optimizers)
        self.steps_per_epoch = math.ceil(len(self.loader) / settings.accumulate)
        self.total = max_steps or self.steps_per_epoch * (epochs or 1)
        self.total = min(self.total, cap("steps") or self.total)
        warm = math.ceil(self.total * settings.warmup)
        self.schedulers = [
            get_scheduler(settings.schedule, one, num_warmup_steps=warm, num_training_steps=self.total) for one in optimizers
        ]
        self.accelerator.register_for_checkpointing(*self.schedulers)
        self.collate = _SeededCollate(self.loader.base_dataloader.collate_fn, settings.seed)
        self.loader.base_dataloader.collate_fn = self.collate
        self.history, self.keeper = History(), _Keeper(model, settings.best, settings.folder)
        self.step = self.batches = 0
        self.losses: list[torch.Tensor] = []  # of the batches since the last optimiser step
        self.waiting: list[tuple[dict[str, float], list[torch.Tensor]]] = []  # not yet fetched: fetching makes a GPU wait

    def run(self) -> History:
        """Train to the end, from the newest checkpoint if asked to."""
        began = time.perf_counter()
        if self.settings.resume:
            self.load()
        self.bar = progress(total=self.total, label=self.settings.label)
        self.bar.update(self.step)
        self.model.train()
        while not self.finished:
            self.train_epoch()
        self.bar.close()
        self.end()
        self.history.seconds = time.perf_counter() - began
        return self.history

    @property
    def finished(self) -> bool:
        return self.step >= self.total or self.keeper.exhausted(self.settings.patience)

    def train_epoch(self) -> None:
        """One pass over the data, or what is left of it after resuming."""
        from accelerate import skip_first_batches

        epoch, seed = self.step // self.steps_per_epoch, self.settings.seed
        self.loader.set_epoch(epoch)
        self.collate.start(epoch, self.batches)
        set_seed((seed * 15_485_863 + epoch) % 2**32)  # a sampler that draws from torch's generator: the same order when resumed
        for batch in skip_first_batches(self.loader, self.batches) if self.batches else self.loader:
            self.train_batch(batch)
            if self.accelerator.sync_gradients:  # not while gradients of several batches are added up
                self.after_step()
                if self.finished:
                    return

    def train_batch(self, batch: dict[str, torch.Tensor]) -> None:
        """Forward pass, loss, backward pass; and an optimiser step if enough batches have been added up."""
        with self.accelerator.accumulate(self.model):
            set_seed((self.settings.seed * 1_000_003 + self.step * self.settings.accumulate + len(self.losses)) % 2**32)
            loss = getattr(self.model(**batch), "loss", None)
            if loss is None:
                raise RoadmapError(f"The model returned no loss; its batch has the keys {sorted(batch)}: is 'labels' missing?")
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.settings.clip is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        self.batches += 1
        self.losses.append(loss.detach())
        self.history.tokens += batch["input_ids"].numel() if "input_ids" in batch else 0

    def after_step(self) -> None:
        """Move the schedule on, keep the loss, and evaluate or save if it is time to."""
        rate = self.schedulers[0].get_last_lr()[0]
        for scheduler in self.schedulers:
            scheduler.step()
        self.step += 1
        self.bar.update()
        self.waiting.append(({"step": self.step, "epoch": self.step / self.steps_per_epoch, "lr": rate}, self.losses))
        self.losses = []
        end_of_epoch = self.batches >= len(self.loader)
        self.batches = 0 if end_of_epoch else self.batches
        every, last = self.settings.evaluate_every, self.step >= self.total
        evaluate_now = self.step % every == 0 or last if every else end_of_epoch
        save_now = self.settings.save_every is not None and self.step % self.settings.save_every == 0
        if len(self.waiting) >= 20 or evaluate_now or save_now or last:
            self.fetch_losses()
        if evaluate_now:
            self.evaluate()
        if save_now:
            self.save()

    def fetch_losses(self) -> None:
        """Bring the losses that are still on the device into the history.

        Raises:
            RoadmapError: If one is not a finite number.
        """
        for record, losses in self.waiting:
            record["loss"] = math.fsum(loss.item() for loss in losses) / len(losses)
            if not math.isfinite(record["loss"]):
                raise RoadmapError(
                    f"The loss became {record['loss']} at step {record['step']:.0f}; lower lr, raise warmup, or check the labels "
                    "(-100 everywhere in a batch also gives nan)."
                )
            self.history.steps.append(record)
        if self.waiting:
            self.bar.set_postfix(loss=f"{self.history.losses[-1]:.3f}", refresh=False)
        self.waiting.clear()

    def evaluate(self) -> None:
        """Ask ``evaluate`` for metrics, and keep the weights if they are the best so far."""
        if self.settings.evaluate is None:
            return
        with evaluating(self.bare_model):
            metrics = self.settings.evaluate(self.accelerator.unwrap_model(self.model))
        record = {"step": float(self.step), **metrics}
        self.history.evaluations.append(record)
        if self.keeper.is_better(record):
            self.history.best = record

    def end(self) -> None:
        """Evaluate if the last step was not, put the best weights back, save, and free what the loop held."""
        evaluations = self.history.evaluations
        if not evaluations or evaluations[-1]["step"] != self.step:
            self.evaluate()  # max_steps need not end with an epoch
        self.keeper.restore(self.history.best)
        self.save()
        self.accelerator.free_memory()
        self.bare_model.eval()
        if self.step < self.total:
            self.history.stopped = "no better evaluation"

    def save(self) -> None:
        """Write a checkpoint from which :meth:`load` goes on with the very same numbers."""
        if self.settings.folder is None:
            return
        history, keeper = self.history, self.keeper
        state = {"step": self.step, "batches": self.batches, "tokens": history.tokens, "steps": history.steps}
        state |= {"evaluations": history.evaluations, "best": history.best}
        state |= {"value": keeper.value, "waited": keeper.waited, "best_step": keeper.step}
        _save(self.accelerator, self.settings.folder, self.step, state)
        keeper.prune()

    def load(self) -> None:
        """Go back to the newest checkpoint, if there is one."""
        if not (found := latest_checkpoint(self.settings.folder)):
            return
        self.accelerator.load_state(str(found))
        state = json.loads((found / "state.json").read_text(encoding="utf-8"))
        history, keeper = self.history, self.keeper
        self.step, self.batches, history.tokens = state["step"], state["batches"], state["tokens"]
        history.steps, history.evaluations, history.best = state["steps"], state["evaluations"], state["best"]
        keeper.value, keeper.waited, keeper.step = state["value"], state["waited"], state["best_step"]
        self.accelerator.print(f"Resumed {self.settings.label} at step {self.step} of {self.total} from {found.name}.")


def adamw(
    parameters: torch.nn.Module | Iterable[torch.nn.Parameter],
    *,
    lr: float,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, without decay for biases and norms (fewer than two dimensions).

    Args:
        parameters: A model, or some of its parameters.
        lr: Learning rate.
        weight_decay: Of matrices.
        betas: Decay of the two running means.

    Raises:
        RoadmapError: If every parameter is frozen.
    """
    if isinstance(parameters, torch.nn.Module):
        parameters = parameters.parameters()
    trainable = [p for p in parameters if p.requires_grad]
    if not trainable:
        raise RoadmapError("Every parameter of the model is frozen (requires_grad is False); nothing can be trained.")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Evaluation mode without gradients inside the block; the former mode after it."""
    before = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield model
    finally:
        model.train(before)


def predict(model: torch.nn.Module, loader: DataLoader[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits and labels of a whole loader, on the CPU.

    Args:
        model: On any device; its ``forward(**batch)`` returns an object with ``logits``.
        loader: Yields dictionaries of tensors, in order (no shuffling).

    Returns:
        ``logits`` of shape ``(examples, ...)`` and ``labels`` of shape ``(examples, ...)``, or None without labels.
        Sequences of different lengths are padded at the end: logits with 0, labels with -100.
    """
    home = next(model.parameters()).device
    logits, labels = [], []
    with evaluating(model):
        for batch in loader:
            batch = {key: value.to(home) for key, value in batch.items()}
            logits.append(model(**batch).logits.float().cpu())
            if "labels" in batch:
                labels.append(batch["labels"].cpu())
    return _stack(logits, 0), _stack(labels, -100) if labels else None


def latest_checkpoint(folder: str | Path | None) -> Path | None:
    """The newest complete checkpoint that :func:`fit` left in a folder, or None."""
    found = sorted(Path(folder).glob("step-*/state.json")) if folder else []
    return found[-1].parent if found else None


def training_arguments(output_dir: str | Path, **overrides: Any) -> Any:
    """``TrainingArguments`` for both scales: quiet, offline, no trackers, one seed; bf16 where a GPU has it.

    Args:
        output_dir: Where the Trainer writes checkpoints.
        overrides: Any field of ``transformers.TrainingArguments``.

    Raises:
        RoadmapError: A field that does not exist in the installed version (many were renamed in version 5).
    """
    from transformers import TrainingArguments

    has_gpu = torch.cuda.is_available()
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": pick(tiny=1e-3, full=2e-5),
        "warmup_steps": 0.1,  # below 1 it is a part of all steps
        "weight_decay": 0.01,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "logging_steps": 10,
        "use_cpu": not has_gpu,  # without it a machine without GPU warns about pinned memory
        "bf16": has_gpu and torch.cuda.is_bf16_supported(),
        "disable_tqdm": True,
        "report_to": "none",
        "seed": 42,
    }
    if missing := set(overrides) - set(TrainingArguments.__dataclass_fields__):
        names = ", ".join(sorted(missing))
        raise RoadmapError(
            f"TrainingArguments has no {names} in this version of transformers; see its documentation for the new name."
        )
    if (most := cap("steps")) is not None:
        overrides["max_steps"] = min(most, overrides.get("max_steps", most)) if overrides.get("max_steps", -1) > 0 else most
    return TrainingArguments(**(defaults | overrides))


# ------------------------------------------------------------------------------------------------ what fit() stands on


class _SeededCollate:
    """Runs a collate function with the generators seeded by (seed, epoch, place), so its randomness can be repeated.

    With worker processes each has its own copy that counts its own batches; then only a collate function without
    randomness resumes exactly.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], seed: int):
        self.collate, self.seed = collate, seed
        self.start(0, 0)

    def start(self, epoch: int, place: int) -> None:
        self.epoch, self.place = epoch, place

    def __call__(self, examples: list[Any]) -> Any:
        set_seed((self.seed * 7_368_787 + self.epoch * 104_729 + self.place) % 2**32)
        self.place += 1
        return self.collate(examples)


class _Keeper:
    """Keeps the weights of the best evaluation, in a file if there is a folder, else in memory."""

    def __init__(self, model: torch.nn.Module, metric: str | None, folder: Path | None):
        self.model, self.folder = model, folder
        self.metric, self.sign = (metric or "").removeprefix("-"), -1.0 if (metric or "").startswith("-") else 1.0
        self.value: float | None = None
        self.step: int | None = None
        self.waited = 0
        self.weights: dict[str, torch.Tensor] = {}

    def is_better(self, record: dict[str, float]) -> bool:
        """Whether this evaluation is the best so far; if so its weights are kept."""
        if not self.metric:
            return False
        if self.metric not in record:
            raise RoadmapError(f"best={self.metric!r} is not among the metrics that evaluate returned: {', '.join(record)}.")
        value = self.sign * record[self.metric]
        if self.value is not None and value <= self.value:
            self.waited += 1
            return False
        self.value, self.waited, self.step = value, 0, int(record["step"])
        if self.folder:
            from safetensors.torch import save_model

            self.folder.mkdir(parents=True, exist_ok=True)
            save_model(self.model, str(self._file()))
        else:
            self.weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return True

    def exhausted(self, patience: int | None) -> bool:
        return patience is not None and self.waited >= patience

    def restore(self, best: dict[str, float] | None) -> None:
        if best is None:
            return
        if self.folder:
            from safetensors.torch import load_model

            load_model(self.model, str(self._file()))
        else:
            self.model.load_state_dict(self.weights)

    def prune(self) -> None:
        """Remove weights that no checkpoint refers to any more."""
        if self.folder:
            for file in self.folder.glob("best-*.safetensors"):
                if file != self._file():
                    file.unlink()

    def _file(self) -> Path:
        assert self.folder is not None
        return self.folder / f"best-{self.step or 0:08d}.safetensors"


def _save(accelerator: Any, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place and move it there, so that a kill at any moment leaves the last one whole."""
    part, done = folder / f"part-{step:08d}", folder / f"step-{step:08d}"
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
        shutil.rmtree(done, ignore_errors=True)
        part.rename(done)
        for old in folder.glob("step-*"):
            if old != done:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _check(train: DataLoader[Any], epochs: int | None, max_steps: int | None, settings: Settings) -> None:
    """One sentence for each combination of arguments that cannot be meant."""
    if (epochs is None) == (max_steps is None):
        raise RoadmapError("Give either epochs or max_steps, one of the two.")
    counts = {"epochs": epochs, "max_steps": max_steps, "accumulate": settings.accumulate, "save_every": settings.save_every}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise RoadmapError(f"{name} is {value}; it must be at least 1.")
    if len(train) == 0:
        raise RoadmapError("The training loader is empty: no batch can be made of it (too few examples for drop_last=True?).")
    if settings.best and settings.evaluate is None:
        raise RoadmapError(f"best={settings.best!r} needs evaluate=..., a function that returns that metric.")
    if settings.patience is not None and not settings.best:
        raise RoadmapError("patience needs best=..., the metric to be patient about.")
    if (settings.save_every or settings.resume) and settings.folder is None:
        raise RoadmapError("save_every and resume need folder=..., where the checkpoints are.")
    if not settings.resume and (found := latest_checkpoint(settings.folder)):
        raise RoadmapError(
            f"{settings.folder} holds {found.name} of an earlier run; continue it with resume=True, or choose another folder."
        )


def _stack(parts: list[torch.Tensor], fill: int) -> torch.Tensor:
    """Concatenate along the first dimension, padding the second to the longest."""
    if parts[0].ndim > 1 and len({part.shape[1] for part in parts}) > 1:
        longest = max(part.shape[1] for part in parts)
        padded = [part.new_full((part.shape[0], longest, *part.shape[2:]), fill) for part in parts]
        for target, part in zip(padded, parts):
            target[:, : part.shape[1]] = part
        parts = padded
    return torch.cat(parts)
