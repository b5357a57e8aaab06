"""Train with DeepSpeed ZeRO: a run for each configuration, all in one launch (starting processes is the slow part).

    python ds_config.py --stage 3 > zero3.json
    torchrun --standalone --nproc_per_node 2 train_deepspeed.py OUT --config zero3.json

Each run writes OUT/NAME.safetensors, the weights of all ranks put together, and OUT/NAME.json: the mean loss of each
update, its seconds, the bytes that rank 0 holds, and the scores of the first texts, by which a reloaded model is checked.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import RoadmapError
from common.distributed import print0, rank, start, world_size

import deepspeed
import ds_config  # before deepspeed, which it tells what device there is
import torch
import torch.distributed as dist
import zero
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--config", type=Path, nargs="+", default=[], help="configurations to train with, one after another")
    parser.add_argument("--accelerate", type=Path, nargs="+", default=[], help="configurations to train with through accelerate")
    parser.add_argument("--updates", type=int, default=zero.UPDATES, help="optimiser steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the new head")
    options = parser.parse_args()
    configs = {path: ds_config.read(path) for path in [*options.config, *options.accelerate]}
    if not configs:
        raise RoadmapError("There is nothing to train; give --config FILE, made by: python ds_config.py --stage 3 > FILE")
    for path in configs:
        if (made := options.out / f"{path.stem}.safetensors").exists():
            raise RoadmapError(f"{made} is there already; give another OUT.")
    device = start()
    if device.type == "cpu":  # DeepSpeed's own all-reduce would be compiled at the first start: a minute, and g++ is needed
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    options.out.mkdir(parents=True, exist_ok=True)
    for path, config in configs.items():
        model = zero.fresh(options.seed).to(device)
        engine, learn = (through_accelerate if path in options.accelerate else directly)(model, config)
        found = train(engine, learn, config, options.updates, device)
        weights = together(engine)
        engine.destroy()
        print0(f"{path.stem:<18} loss {found['losses'][0]:.4f} to {found['losses'][-1]:.4f}, {found['seconds']:.2f} s an update")
        if rank() == 0:
            (options.out / f"{path.stem}.json").write_text(json.dumps(found), encoding="utf-8")
            save_file(weights, options.out / f"{path.stem}.safetensors")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # now and then a thread of DeepSpeed aborts an orderly exit, when everything has been written


def directly(model: torch.nn.Module, config: dict) -> tuple[deepspeed.DeepSpeedEngine, Callable[[torch.Tensor], None]]:
    """The engine around a model, and what to do with each loss."""
    engine = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[0]

    def learn(loss: torch.Tensor) -> None:
        engine.backward(loss)
        engine.step()  # does nothing until all batches of an update are there

    return engine, learn


def through_accelerate(model: torch.nn.Module, config: dict) -> tuple[deepspeed.DeepSpeedEngine, Callable[[torch.Tensor], None]]:
    """The same in accelerate's words. On a CPU it needs ACCELERATE_USE_CPU=false, or it would not think of DeepSpeed."""
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, DummyOptim, InitProcessGroupKwargs

    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
        gradient_accumulation_steps=config["gradient_accumulation_steps"],
        kwargs_handlers=[InitProcessGroupKwargs(backend=dist.get_backend())],  # or it believes to be alone on a CPU
    )
    engine, optimizer = accelerator.prepare(model, DummyOptim(model.parameters()))

    def learn(loss: torch.Tensor) -> None:
        with accelerator.accumulate(engine):
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()

    return engine, learn


def train(engine: deepspeed.DeepSpeedEngine, learn: Callable, config: dict, updates: int, device: torch.device) -> dict:
    """Go through the texts in order, as zero.py does, so that losses can be compared one by one."""
    size, parts = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    losses, began = [], time.perf_counter()
    for i in range(updates * parts):
        update, part = divmod(i, parts)
        first = ((update * world_size() + rank()) * parts + part) * size
        loss = engine(**zero.texts(range(first, first + size), device)).loss
        learn(loss)
        losses.append(loss.detach())
    seconds = (time.perf_counter() - began) / updates
    mean = torch.stack(losses).view(updates, parts).mean(1)
    dist.all_reduce(mean)
    with torch.no_grad():
        logits = engine(**zero.texts(range(8), device)).logits
    found = {"losses": (mean / world_size()).tolist(), "seconds": seconds, "logits": logits.tolist()}
    return found | held(engine) | {"no_sync": refusal(engine)}


def held(engine: deepspeed.DeepSpeedEngine) -> dict[str, int]:
    """Bytes on this rank: parameters (in stage 3 the slices), Adam's moments, and DeepSpeed's own copy of the slice."""
    state = engine.optimizer.optimizer.state
    return {
        "parameters": sum(getattr(p, "ds_tensor", p).nbytes for p in engine.module.parameters()),
        "optimizer": sum(v.nbytes for values in state.values() for v in values.values() if torch.is_tensor(v) and v.ndim),
        "copy": sum(p.nbytes for p in state),
    }


def together(engine: deepspeed.DeepSpeedEngine) -> dict[str, torch.Tensor]:
    """On rank 0 all weights by name, gathered one parameter at a time, so that no device holds the whole model for it."""
    whole = {}
    for name, p in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([p]):
            if rank() == 0:
                whole[name] = p.detach().float().cpu().clone()
    return whole


def refusal(engine: deepspeed.DeepSpeedEngine) -> str:
    """What the engine says when asked to accumulate without talking; nothing if it can."""
    try:
        with engine.no_sync():
            return ""
    except AssertionError as error:
        return str(error)


if __name__ == "__main__":
    try:
        main()
    except RoadmapError as error:
        sys.exit(f"error: {error}")
