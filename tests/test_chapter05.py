"""Chapter 05: what would hurt - a wrong mean, a sample counted twice, a resumed run that differs, a flag without effect."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import ModuleType

from common import RoadmapError, checkpoint
from common.distributed import launch

import pytest
import torch
from transformers import AutoTokenizer, ModernBertConfig, ModernBertForSequenceClassification

CHAPTER = Path(__file__).resolve().parent.parent / "05-Distribution_Training"
DDP, ZERO = CHAPTER / "03-ddp", CHAPTER / "07-zero"


def load(folder: Path, name: str) -> ModuleType:
    """A script of a lesson, imported as its neighbours import it."""
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


# ---------------------------------------------------------------------------------------------------------- two ranks

TWO_RANKS = """
import sys
sys.path[:0] = sys.argv[1:3]
from common import RoadmapError
from common.distributed import rank, start
import torch, torch.distributed as dist
import by_hand, ddp, zero
from tests.tiny import Net, examples, plain

start()
dist.barrier()
def close(a, b): return torch.allclose(a, b, atol=1e-6)
def row(model): return torch.cat([p.detach().flatten() for p in model.parameters()])
def net(seed): torch.manual_seed(seed); return Net(dropout=0.0)
rows = [plain(examples(64)[i : i + 4]) for i in range(0, 64, 4)]  # 16 batches; each rank takes every second
mine = rows[rank() :: 2]
one = net(0)
optimizer = torch.optim.SGD(one.parameters(), lr=by_hand.LR)
for pair in zip(rows[::2], rows[1::2]):
    sum(one(**batch).loss / 2 for batch in pair).backward()
    optimizer.step(), optimizer.zero_grad()

# every way of averaging gives the weights of one process, whatever the ranks began with
ways = {"after": by_hand.AfterBackward, "torch": by_hand.Torch}
for name, make in {**ways, "buckets": lambda m, c: by_hand.Buckets(m, c, megabytes=2e-4)}.items():
    model = net(rank())
    method = make(model, by_hand.Clock())
    sent = by_hand.train(method, [[batch] for batch in mine])
    assert close(row(model), row(one)), name
    assert sent["bytes"] == 4 * sum(p.numel() for p in model.parameters()), name
    assert name != "buckets" or sent["messages"] == len(method.buckets) > 2
pairs = [mine[i : i + 2] for i in range(0, 8, 2)]
results = [by_hand.train(by_hand.Buckets(m := net(0), by_hand.Clock()), pairs) | {"row": row(m)} for _ in range(2)]
loud = by_hand.train(by_hand.Torch(other := net(0), by_hand.Clock()), pairs, quiet=False)
assert close(results[0]["row"], row(other)) and loud["messages"] == 2 * results[0]["messages"]

# a parameter without part in the loss: an error, and no waiting
model = net(0)
model.unused = torch.nn.Parameter(torch.ones(3))
try:
    by_hand.train(by_hand.Buckets(model, by_hand.Clock()), [[mine[0]]])
except RuntimeError as error:
    assert "no part in the loss" in str(error)
else:
    raise SystemExit("an unused parameter went unnoticed")

# 101 rows on two ranks, and 1 row: one rank has nothing
class Echo(torch.nn.Linear):
    def forward(self, number): return type("Out", (), {"logits": torch.nn.functional.one_hot(number % 7, 7)})
for n in (101, 1):
    answers = ddp.predict(Echo(1, 1), list(range(n)), lambda numbers: {"number": torch.tensor(numbers)}, 8)
    assert torch.equal(answers, torch.arange(n) % 7)

# ZeRO on blocks that cannot be halved evenly: padding, bytes, result
class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(5, 5), torch.nn.Linear(5, 5, bias=False), torch.nn.Linear(5, 3)])
    def forward(self, x):
        for layer in self.layers: x = torch.tanh(layer(x))
        return type("Out", (), {"loss": x.square().mean()})
def odd(seed): torch.manual_seed(seed); return Odd()
torch.manual_seed(0)
data = torch.randn(4, 8, 5)
one = odd(0)
optimizer = torch.optim.AdamW(one.parameters(), lr=1e-2)
for x in data:
    one(x).loss.backward()
    optimizer.step(), optimizer.zero_grad()
numbers = 30 + 26 + 18  # 25 is padded
for stage in range(4):
    trained = zero.Zero(odd(rank()), stage, 1e-2)
    found = zero.train(trained, [{"x": x[rank() * 4 : rank() * 4 + 4]} for x in data])
    assert close(trained.weights(), row(one)), stage
    parts = {"parameters": (4, stage == 3), "gradients": (4, stage >= 2), "optimizer": (8, stage >= 1)}
    for kind, (size, cut) in parts.items():
        real = 73 if kind == "gradients" and stage < 2 else numbers  # whole gradients are not padded
        assert found[kind] == size * real / (2 if cut else 1), (stage, kind, found)
    assert found["sent"] == 4 * numbers / 2 * (3 if stage == 3 else 2)
tied = odd(0)
tied.layers[1].weight = tied.layers[0].weight
try:
    zero.Zero(tied, 3, 1e-2)
except RoadmapError as error:
    assert "exactly one block" in str(error)
else:
    raise SystemExit("tied weights went unnoticed")
zero.UPDATES = 1
sys.argv = ["zero.py", sys.argv[3], "--stages", "2"]
zero.main()
"""


def test_two_ranks_equal_one_process(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS, encoding="utf-8")
    done = launch(script, DDP, ZERO, tmp_path / "zero", timeout=200, echo=False)
    assert "stage 2:" in done.output[0] and "stage" not in done.output[1]
    assert list(json.loads((tmp_path / "zero" / "rank-1.json").read_text())) == ["2"]


# ---------------------------------------------------------------------------------------------------------- ddp.py


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one narrow layer with dropout, which a resumed run must repeat."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("bert"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = ModernBertConfig(vocab_size=len(tokenizer), pad_token_id=0, mlp_dropout=0.2, embedding_dropout=0.2, **sizes)
    model = ModernBertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


BASE = {"train-samples": 24, "eval-samples": 11, "length": 16, "batch-size": 4, "epochs": 2}


def run(small: Path, out: Path, *switches: str, **changes: object) -> dict:
    flags = {"model": small, "out": out, **BASE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return load(DDP, "ddp").main([*words, *switches])


@pytest.fixture(scope="module")
def plain_run(small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run(small, tmp_path_factory.mktemp("plain") / "run")


def test_the_plain_run(plain_run: dict):
    assert len(plain_run["losses"]) == 12 and len(plain_run["predictions"]) == 11 and plain_run["first"] == 0


CHANGES = {
    "train_samples": (16, lambda log: len(log["losses"]) == 8),
    "eval_samples": (7, lambda log: len(log["predictions"]) == 7),
    "batch_size": (8, lambda log: len(log["losses"]) == 6),
    "accumulate": (2, lambda log: len(log["losses"]) == 6),
    "epochs": (1, lambda log: len(log["losses"]) == 6),
    "length": (8, None),
    "lr": (1e-2, None),
    "seed": (1, None),
    "precision": ("bf16", None),
}


@pytest.mark.parametrize("flag", CHANGES)
def test_every_flag_has_an_effect(flag: str, small: Path, tmp_path: Path, plain_run: dict):
    value, holds = CHANGES[flag]
    log = run(small, tmp_path / "run", **{flag: value})
    assert holds(log) if holds else log["losses"] != plain_run["losses"]


def test_the_sampler_is_told_each_epoch(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sampler, told = load(DDP, "ddp").DistributedSampler, []
    tell = sampler.set_epoch
    monkeypatch.setattr(sampler, "set_epoch", lambda self, epoch: [told.append(epoch), tell(self, epoch)])
    run(small, tmp_path / "run", epochs=3)
    assert told == [0, 1, 2]


def test_data_split_model_and_out(small: Path, tmp_path: Path):
    rows = [f"第{i}个，{word}极了,{label}" for i in range(20) for label, word in enumerate(("坏", "一般", "好"))]
    (tmp_path / "own.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    log = run(small, tmp_path / "run", "--split", "test", data=tmp_path / "own.csv", epochs=1, eval_samples=99)
    assert len(log["predictions"]) == 6  # a tenth
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["hidden_size"] == 16 and len(config["id2label"]) == 3
    assert json.loads((tmp_path / "run" / "log.json").read_text()) == log


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(accumulate: int, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed in the second epoch, between two checkpoints; with dropout, an optimiser that remembers, a warm-up."""

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    whole = run(small, tmp_path / "whole", accumulate=accumulate)
    monkeypatch.setattr(load(DDP, "ddp").os, "kill", kill)
    total = len(whole["losses"])
    with pytest.raises(Killed):
        run(small, tmp_path / "cut", accumulate=accumulate, save_every=total // 3, crash_at=total - 1)
    again = run(small, tmp_path / "cut", "--resume", accumulate=accumulate, save_every=total // 3)
    assert again["first"] == total // 3 * 2
    assert again["losses"] == whole["losses"] and again["predictions"] == whole["predictions"]
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_what_ddp_refuses(small: Path, tmp_path: Path):
    run(small, tmp_path / "run", epochs=1, save_every=2)
    for left in ("checkpoint.pt", "log.json"):  # an unfinished run, and a finished one without checkpoints
        with pytest.raises(RoadmapError, match="holds an earlier run; continue it with --resume"):
            run(small, tmp_path / "run")
        (tmp_path / "run" / left).rename(tmp_path / left)
    (tmp_path / "checkpoint.pt").rename(tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(RoadmapError, match="The run to resume had batch-size 4, not 8"):
        run(small, tmp_path / "run", "--resume", epochs=1, batch_size=8)
    with pytest.raises(RoadmapError, match="no .*checkpoint.pt to resume from"):
        run(small, tmp_path / "absent", "--resume")
    with pytest.raises(RoadmapError, match="2 texts do not fill one update of 4; lower --batch-size"):
        run(small, tmp_path / "few", train_samples=2)


# ---------------------------------------------------------------------------------------------------------- DeepSpeed

configs = load(ZERO, "ds_config")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_template_is_what_deepspeed_understands(stage: int):
    from deepspeed.runtime.config import DeepSpeedConfig

    offload = {"offload_optimizer": "cpu"} if stage else {}
    made = configs.make(stage=stage, batch_size=3, accumulate=2, clip=0.5, lr=0.01, **offload)
    assert "$" not in json.dumps(made)
    read = DeepSpeedConfig(made)
    assert read.zero_config.stage == stage and read.gradient_accumulation_steps == 2 and read.gradient_clipping == 0.5
    assert read.train_micro_batch_size_per_gpu == 3 and read.optimizer_params["lr"] == 0.01
    assert bool(read.zero_config.offload_optimizer) == bool(offload) and not read.zero_config.offload_param


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"gradient_acumulation_steps": 4},
            "The top level .* has no key 'gradient_acumulation_steps'; did you mean 'gradient_acc",
        ),
        (
            {"zero_optimization": {"stage": 2, "overlapcomm": 1}},
            "zero_optimization .* 'overlapcomm'; did you mean 'overlap_comm'",
        ),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"devize": "cpu"}}}, "'devize'; did you mean 'device'"),
        ({"optimizer": {"type": "AdamW", "params": {"torch_adam": True, "learning": 1}}}, "optimizer.params .* 'learning'"),
        ({"bf16": {"enable": True}}, "bf16 .* did you mean 'enabled'"),
        ({"zero_optimization": {"stage": 4}}, "no ZeRO stage 4"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param needs stage 3"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer needs stage"),
        ({"fp16": {"enabled": True}}, "fp16 does not exist on a CPU"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "torch_adam.*needs g.."),
    ],
)
def test_a_wrong_configuration_is_one_sentence(change: dict, sentence: str):
    with pytest.raises(RoadmapError, match=sentence) as caught:
        configs.validate(configs.make() | change)
    assert "\n" not in str(caught.value)


def test_values_without_a_place_and_the_command_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(RoadmapError, match="The template has no key 'learning_rate'"):
        configs.make(learning_rate=1)
    configs.main("--stage 3 --offload all --batch-size 2 --accumulate 5 --lr 0.5 --clip 0.25".split())
    made = json.loads(capsys.readouterr().out)
    assert made == configs.make(
        stage=3, offload_optimizer="cpu", offload_param="cpu", batch_size=2, accumulate=5, lr=0.5, clip=0.25
    )
    configs.main(["--offload", "optimizer"])
    assert "offload_param" not in json.loads(capsys.readouterr().out)["zero_optimization"]


def test_what_train_deepspeed_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before a process group is made: no configuration, none there, none that is JSON, results in the way."""
    script = load(ZERO, "train_deepspeed")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "zero2.json").write_text(json.dumps(configs.make()), encoding="utf-8")
    (tmp_path / "zero2.safetensors").touch()
    for words, sentence in {
        "": "nothing to train; give --config",
        "--config absent.json": "no configuration .*absent.json",
        "--config broken.json": "broken.json is not JSON: .*line 1",
        "--accelerate zero2.json": "zero2.safetensors is there already; give another OUT",
    }.items():
        flags = [str(tmp_path / word) if word.endswith(".json") else word for word in words.split()]
        monkeypatch.setattr(sys, "argv", ["train_deepspeed.py", str(tmp_path), *flags])
        with pytest.raises(RoadmapError, match=sentence):
            script.main()


def test_train_deepspeed(tmp_path: Path):
    """Its flags have effects, its losses are those of a plain loop, what it saves is the model, and nothing is compiled."""
    from safetensors.torch import load_file

    zero = load(ZERO, "zero")
    config = tmp_path / "zero3.json"
    config.write_text(json.dumps(configs.make(stage=3, batch_size=4, lr=zero.LR)), encoding="utf-8")
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "compiled")}
    flags = ("--config", config, "--updates", 2, "--seed", 3)
    launch(ZERO / "train_deepspeed.py", tmp_path, *flags, processes=1, timeout=200, env=environment, echo=False)
    found = json.loads((tmp_path / "zero3.json").read_text())
    model, losses = zero.fresh(3), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=zero.LR)
    for first in (0, 4):
        loss = model(**zero.texts(range(first, first + 4))).loss
        loss.backward()
        optimizer.step(), optimizer.zero_grad()
        losses.append(loss.item())
    assert len(found["losses"]) == 2 and all(math.isclose(a, b, abs_tol=1e-5) for a, b in zip(found["losses"], losses))
    saved = load_file(tmp_path / "zero3.safetensors")
    assert all(torch.allclose(saved[name], p, atol=2e-3) for name, p in model.named_parameters())
    assert not list(tmp_path.glob("compiled/**/*.so"))
