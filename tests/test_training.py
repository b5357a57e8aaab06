"""``fit``: equal to a loop written out, resumed without a trace after a kill, and clear about wrong arguments."""

import math
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

from common.errors import RoadmapError
from common.hardware import set_seed
from common.training import adamw, fit, latest_checkpoint, predict, training_arguments

import pytest
import torch
from torch.utils.data import DataLoader

from tests.tiny import Net, examples, loader, noisy, plain

KILLED = """
import os, signal, sys
import torch
from common.hardware import set_seed
from common.training import fit
from tests.tiny import Net, loader
kill_at, folder = int(sys.argv[1]), sys.argv[2]
set_seed(1)
model = Net()
def evaluate(model):
    evaluate.calls += 1
    if kill_at and evaluate.calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"size": float(sum(p.abs().sum() for p in model.parameters()))}
evaluate.calls = 0
history = fit(model, loader(), epochs=3, lr=1e-2, accumulate=2, seed=5, folder=folder, save_every=3,
              evaluate=evaluate, evaluate_every=2, best="-size", resume=True)
torch.save({"losses": history.losses, "evaluations": history.evaluations, "state": model.state_dict()}, folder + ".pt")
"""


def fresh(seed: int = 1, dropout: float = 0.2) -> Net:
    set_seed(seed)
    return Net(dropout)


def test_equals_a_loop_written_out():
    """Same order, same optimiser, no randomness: the losses of ten lines of PyTorch, to the last bit."""
    rows = [plain(examples()[i : i + 8]) for i in range(0, 64, 8)]
    model = fresh(dropout=0.0)
    optimizer = adamw(model, lr=1e-2)
    expected = []
    for _ in range(2):
        for batch in rows:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            expected.append(loss.item())
    history = fit(
        fresh(dropout=0.0), loader(shuffle=False, collate=plain), epochs=2, lr=1e-2, schedule="constant", warmup=0.0, seed=3
    )
    assert history.losses == expected


def test_learns_and_leaves_the_model_ready():
    model = fresh()
    history = fit(model, loader(256), epochs=8, lr=2e-2)
    assert not model.training
    assert sum(history.losses[-8:]) / 8 < 0.4 < sum(history.losses[:8]) / 8
    assert history.tokens == 256 * 6 * 8
    assert history.stopped == "done" and history.seconds > 0


def test_accumulation_equals_a_larger_batch():
    """Mean losses of equal batches: 2 x 8 accumulated is 1 x 16."""
    small, large = fresh(dropout=0.0), fresh(dropout=0.0)
    a = fit(small, loader(batch=8, shuffle=False, collate=plain), epochs=1, lr=1e-2, accumulate=2)
    b = fit(large, loader(batch=16, shuffle=False, collate=plain), epochs=1, lr=1e-2)
    assert len(a.losses) == len(b.losses) == 4
    torch.testing.assert_close(torch.tensor(a.losses), torch.tensor(b.losses))
    torch.testing.assert_close(small.state_dict(), large.state_dict())


def test_an_odd_number_of_batches_is_not_lost():
    history = fit(fresh(), loader(72), epochs=2, accumulate=2)  # 9 batches: 4 pairs and a single one, twice
    assert len(history.losses) == 10
    assert history.tokens == 72 * 6 * 2


def test_resume_after_kill_repeats_the_uninterrupted_run(tmp_path):
    """kill -9 in the middle, twice; the resumed run has the very losses, evaluations and weights of the other."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    }

    def run(kill_at: int, folder: str) -> int:
        command = [sys.executable, "-c", KILLED, str(kill_at), str(tmp_path / folder)]
        return subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode

    assert run(0, "whole") == 0
    assert run(3, "broken") == -signal.SIGKILL  # at step 6, after the checkpoint of step 3
    assert latest_checkpoint(tmp_path / "broken").name == "step-00000003"
    assert run(3, "broken") == -signal.SIGKILL  # resumed at 3, killed again at step 8, after the checkpoint of step 6
    assert run(0, "broken") == 0
    whole, broken = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "broken"))
    assert len(whole["losses"]) == 12
    assert broken["losses"] == whole["losses"]
    assert broken["evaluations"] == whole["evaluations"]
    assert all(torch.equal(broken["state"][name], tensor) for name, tensor in whole["state"].items())
    assert not list((tmp_path / "broken").glob("part-*")) and len(list((tmp_path / "broken").glob("best-*"))) == 1


def test_a_sampler_with_torchs_own_generator_is_resumed_in_the_same_order(tmp_path):
    """Grouped by length, as chats are; the stop comes in the second pass, whose order was drawn before it."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    rows = examples()
    sampler = LengthGroupedSampler(8, lengths=[i % 7 for i in range(len(rows))])
    grouped = DataLoader(rows, batch_size=8, sampler=sampler, collate_fn=plain)
    whole = fit(fresh(), grouped, epochs=3, lr=1e-2)

    def stop(model):
        raise KeyboardInterrupt

    options = {"epochs": 3, "lr": 1e-2, "folder": tmp_path, "save_every": 11}
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), grouped, **options, evaluate=stop, evaluate_every=12)
    torch.rand(3)  # another process has another state
    assert fit(fresh(seed=9), grouped, **options, resume=True).losses == whole.losses


def test_a_half_written_checkpoint_is_not_trusted(tmp_path):
    (tmp_path / "step-00000009").mkdir()  # no state.json: the kill came before it was whole
    (tmp_path / "part-00000012").mkdir()
    assert latest_checkpoint(tmp_path) is None
    history = fit(fresh(), loader(), max_steps=2, folder=tmp_path, resume=True)
    assert len(history.losses) == 2 and latest_checkpoint(tmp_path).name == "step-00000002"


def test_earlier_checkpoints_are_not_overwritten(tmp_path):
    fit(fresh(), loader(), max_steps=2, folder=tmp_path)
    with pytest.raises(RoadmapError, match="resume=True, or choose another folder"):
        fit(fresh(), loader(), max_steps=2, folder=tmp_path)


@pytest.mark.parametrize("in_file", [False, True])
def test_best_weights_come_back_and_patience_stops(tmp_path, in_file):
    """The metric rises, falls and falls: the model must hold the weights of the second evaluation."""
    model, kept, scores = fresh(), [], iter([0.5, 0.9, 0.7, 0.6, 0.95])

    def evaluate(m):
        assert not m.training and not torch.is_grad_enabled()
        kept.append(m.head.weight.detach().clone())
        return {"score": next(scores)}

    folder = tmp_path if in_file else None
    history = fit(model, loader(), epochs=5, lr=1e-2, evaluate=evaluate, best="score", patience=2, folder=folder)
    assert history.stopped == "no better evaluation"
    assert history.best["score"] == 0.9 and len(history.evaluations) == 4
    assert torch.equal(model.head.weight, kept[1]) and not torch.equal(kept[1], kept[3])


def test_lower_is_better_with_a_minus():
    losses = iter([0.5, 0.3, 0.4])
    history = fit(fresh(), loader(), epochs=3, evaluate=lambda m: {"loss": next(losses)}, best="-loss")
    assert history.best["loss"] == 0.3


def test_evaluation_every_few_steps_and_at_the_end():
    history = fit(fresh(), loader(), max_steps=7, evaluate=lambda m: {"x": 1.0}, evaluate_every=3)
    assert [record["step"] for record in history.evaluations] == [3, 6, 7]
    history = fit(fresh(), loader(), max_steps=5, evaluate=lambda m: {"x": 1.0})
    assert [record["step"] for record in history.evaluations] == [5]


def test_schedule_warms_up_and_falls():
    rates = [record["lr"] for record in fit(fresh(), loader(), max_steps=10, lr=1.0, warmup=0.2).steps]
    assert rates[0] == 0.0 and rates[2] == 1.0 and rates[-1] < 0.2
    assert all(a >= b for a, b in pairwise(rates[2:]))


def test_half_precision_runs():
    history = fit(fresh(), loader(), max_steps=3, precision="bf16")
    assert all(math.isfinite(loss) for loss in history.losses)
    assert len(fit(fresh(), loader(), max_steps=2).losses) == 2  # and full precision again in the same process


def test_frozen_parameters_stay_and_decay_spares_norms():
    model = fresh()
    model.embed.requires_grad_(False)
    before = model.embed.weight.clone()
    fit(model, loader(), max_steps=3, lr=1e-2)
    assert torch.equal(model.embed.weight, before)
    groups = {group["weight_decay"]: group["params"] for group in adamw(model, lr=1.0).param_groups}
    assert {p.ndim for p in groups[0.01]} == {2} and {p.ndim for p in groups[0.0]} == {1}
    with pytest.raises(RoadmapError, match="frozen"):
        adamw(model.requires_grad_(False), lr=1.0)


def test_predict_keeps_order_and_pads():
    model = fresh()
    model.eval()
    logits, labels = predict(model, loader(20, shuffle=False, collate=plain))
    assert logits.shape == (20, 2) and labels.tolist() == [row["labels"] for row in examples(20)]
    one, _ = predict(model, loader(20, batch=1, shuffle=False, collate=plain))
    torch.testing.assert_close(one, logits)
    unlabelled, none = predict(model, loader(4, shuffle=False, collate=lambda rows: {"input_ids": plain(rows)["input_ids"]}))
    assert none is None and unlabelled.shape == (4, 2)


def test_predict_pads_sequences_of_different_lengths():
    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(3))

        def forward(self, input_ids, labels):
            from types import SimpleNamespace

            return SimpleNamespace(logits=input_ids[..., None] * self.w)

    batches = [{"input_ids": torch.ones(2, n), "labels": torch.ones(2, n, dtype=torch.long)} for n in (3, 5)]
    logits, labels = predict(Tagger(), batches)
    assert logits.shape == (4, 5, 3) and logits[0, 3:].abs().sum() == 0
    assert labels[0].tolist() == [1, 1, 1, -100, -100]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "either epochs or max_steps"),
        ({"epochs": 1, "max_steps": 1}, "either epochs or max_steps"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 1, "accumulate": 0}, "accumulate is 0"),
        ({"epochs": 1, "best": "f1"}, "needs evaluate"),
        ({"epochs": 1, "patience": 2}, "needs best"),
        ({"epochs": 1, "save_every": 5}, "need folder"),
        ({"epochs": 1, "resume": True}, "need folder"),
        ({"epochs": 1, "best": "f1", "evaluate": lambda m: {"acc": 1.0}}, "not among the metrics"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments, says):
    with pytest.raises(RoadmapError, match=says):
        fit(fresh(), loader(), **arguments)


def test_no_data_no_loss_no_number():
    with pytest.raises(RoadmapError, match="loader is empty"):
        fit(fresh(), [], epochs=1)
    with pytest.raises(RoadmapError, match="'labels' missing"):
        fit(fresh(), loader(collate=lambda rows: {"input_ids": plain(rows)["input_ids"]}), epochs=1)
    with pytest.raises(RoadmapError, match="loss became nan"):
        broken = fresh()
        torch.nn.init.constant_(broken.head.weight, float("nan"))
        fit(broken, loader(), max_steps=1)


def test_collate_randomness_depends_on_the_place_alone():
    from common.training import _SeededCollate

    wrapped = _SeededCollate(noisy, seed=9)
    first = [wrapped(examples(8))["input_ids"] for _ in range(3)]
    wrapped.start(0, 2)
    assert torch.equal(wrapped(examples(8))["input_ids"], first[2])
    assert not torch.equal(first[0], first[1])


def test_training_arguments(tmp_path):
    arguments = training_arguments(tmp_path, num_train_epochs=1)
    assert arguments.num_train_epochs == 1 and arguments.learning_rate == 1e-3
    assert arguments.report_to == [] and arguments.seed == 42
    assert arguments.use_cpu is not torch.cuda.is_available()
    with pytest.raises(RoadmapError, match="evaluation_strategy"):
        training_arguments(tmp_path, evaluation_strategy="epoch")


def test_a_rehearsal_is_short(monkeypatch, tmp_path):
    """The limit holds for epochs and for steps, and the schedule ends with it."""
    monkeypatch.setenv("ROADMAP_MAX_STEPS", "3")
    for options in ({"epochs": 4}, {"max_steps": 50}):
        steps = fit(fresh(), loader(), **options, lr=1.0, warmup=0.0).steps
        assert len(steps) == 3 and steps[-1]["lr"] < 0.5
    assert len(fit(fresh(), loader(), max_steps=2).steps) == 2
    assert training_arguments(tmp_path, num_train_epochs=5).max_steps == 3
    assert training_arguments(tmp_path, max_steps=2).max_steps == 2


def test_several_optimisers_each_train_their_part():
    """Both move, both follow the schedule, and a resumed run has the state of both (the decoder's recipe tests that)."""
    model = fresh()
    before = {name: p.clone() for name, p in model.named_parameters()}
    parts = [list(model.embed.parameters()), [p for n, p in model.named_parameters() if "embed" not in n]]
    both = [torch.optim.SGD(parts[0], lr=1.0), torch.optim.AdamW(parts[1], lr=0.1)]
    fit(model, loader(), max_steps=4, optimizer=both)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(one.param_groups[0]["lr"] == 0.0 for one in both)
