"""The matching lesson's program: label convention, masks, leaks, queue, threshold, saving, and that every flag does something."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from common import ASSETS, RoadmapError, checkpoint, set_seed
from common.packages import sha256
from common.paths import ROOT

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, ModernBertModel

from tests.tiny import small_encoder

FOLDER = ROOT / "02-NLP_tasks" / "15-text_matching"
sys.path.insert(0, str(FOLDER))

from matching import cost, data, losses, metrics, models, training  # noqa: E402
from matching.index import Index  # noqa: E402
from matching.models import ARCHITECTURES, POOLINGS, Spec  # noqa: E402


def script(name: str):
    """A script as a module of its own name: other lessons have a train.py too."""
    spec = importlib.util.spec_from_file_location(f"text_matching_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train_py, infer_py, index_py = (script(name) for name in ("train", "infer", "index"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A random encoder of two small layers, saved with the real tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    set_seed(1)
    small_encoder(2, attention_dropout=0.0, embedding_dropout=0.0, mlp_dropout=0.0).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint("bert")).save_pretrained(folder)
    return str(folder)


NUMBERS = "零一二三四五六七八九十百千万亿东南西北上下左右前后"
THINGS = ["文件", "窗口", "书签", "密码", "邮件"]


def made_pairs(n=25):
    rows = []
    for i in range(n):
        for thing in THINGS[:2]:
            first = f"打开{NUMBERS[i]}号{thing}"
            rows.append({"sentence1": first, "sentence2": f"请把{NUMBERS[i]}号的{thing}打开", "label": 1})
            rows.append({"sentence1": first, "sentence2": f"请把{NUMBERS[i]}号的{thing}关上并删除它", "label": 0})
    return rows


@pytest.fixture(scope="module")
def pairs_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    lines = [f"{r['sentence1']},{r['sentence2']},{r['label']},{r['sentence2'][::-1]},{1 - r['label']}" for r in made_pairs()]
    path.write_text("\n".join(["sentence1,sentence2,label,backwards,opposite", *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def splits(pairs_csv):
    return data.load_pairs(str(pairs_csv))


def made(arch, encoder, **settings):
    dropout = {"dropout": 0.1} if arch == "simcse" and "dropout" not in settings else {}
    spec = Spec(arch, **settings | dropout)
    set_seed(0)
    matcher, tokenizer = models.build(spec, encoder)
    return matcher, data.Batcher(tokenizer, spec, 0.32 if arch == "esimcse" else 0.0)


# ------------------------------------------------------------------------------------------------ losses

LOSSES = {
    "cosine-mse": losses.cosine_mse,
    "contrastive": losses.contrastive,
    "cosent": losses.cosent,
}


@pytest.mark.parametrize("name", LOSSES)
def test_labels_pull_matches_together_and_push_others_apart(name):
    """The gradient goes down the loss: below zero means that the cosine grows."""
    cosine = torch.tensor([0.6, 0.7, 0.5, 0.9], requires_grad=True)
    LOSSES[name](cosine, torch.tensor([1, 1, 0, 0])).backward()
    assert (cosine.grad[:2] < 0).all() and (cosine.grad[2:] >= 0).all() and cosine.grad[3] > 0.0


def test_the_trap_of_label_zero():
    """torch's cosine loss knows 1 and -1; a 0 is neither, so it teaches nothing. Ours takes 0."""
    u, v = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8)
    torch.nn.CosineEmbeddingLoss()(u, v, torch.zeros(4)).backward()
    assert u.grad.abs().max() == 0
    u.grad = None
    losses.cosine_mse(torch.cosine_similarity(u, v), torch.zeros(4)).backward()
    assert u.grad.abs().min(1).values.max() > 0


def test_losses_by_hand():
    cosine, labels = torch.tensor([0.8, 0.6]), torch.tensor([1, 0])
    assert losses.cosine_mse(cosine, labels).item() == pytest.approx((0.2**2 + 0.6**2) / 2)
    assert losses.contrastive(cosine, labels, 0.5).item() == pytest.approx((0.2**2 + 0.1**2) / 4)
    assert losses.contrastive(torch.tensor([0.4]), torch.tensor([0]), 0.5).item() == 0, "far enough apart"
    assert losses.cosent(cosine, labels, 0.1).item() == pytest.approx(np.log(1 + np.exp((0.6 - 0.8) / 0.1)))
    matrix = torch.tensor([[0.8, 0.6, 0.9]])
    expected = -np.log(np.exp(8) / np.exp([8, 6, 9]).sum())
    assert losses.info_nce(matrix, torch.tensor([0]), None, 0.1).item() == pytest.approx(expected, rel=1e-5)
    ignore = torch.tensor([[False, False, True]])
    expected = -np.log(np.exp(8) / np.exp([8, 6]).sum())
    assert losses.info_nce(matrix, torch.tensor([0]), ignore, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_cosent_counts_only_pairs_in_the_wrong_order_of_labels():
    same = losses.cosent(torch.tensor([0.1, 0.9]), torch.tensor([1, 1]))
    assert same.item() == 0


def test_infonce_uses_hard_negatives_and_spares_other_matches(encoder):
    matcher, _ = made("dssm", encoder, temperature=1.0)
    z = torch.eye(5)
    left, right, labels = torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3]), torch.tensor([1, 1, 0])
    loss = matcher._info_nce(z, left, right, labels)
    assert loss.item() == pytest.approx(np.log(2)), "each match against the negative, not against the other match"
    alone = matcher._info_nce(z, left[2:], right[2:], labels[2:])
    assert alone.item() == 0, "a batch without a match"
    itself = matcher._info_nce(z, torch.tensor([0, 2]), torch.tensor([1, 0]), torch.tensor([1, 1]))
    assert itself.item() == pytest.approx(np.log(2) / 2), "a text is no candidate for itself"


# ------------------------------------------------------------------------------------------------ masks, batches, views


@pytest.mark.parametrize("how", POOLINGS)
def test_pooling_respects_the_mask(how):
    hidden, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = {"mean": hidden[0, :3].mean(0), "max": hidden[0, :3].amax(0), "cls": hidden[0, 0]}[how]
    assert torch.allclose(models.pool(hidden, mask, how)[0], expected)
    hidden[0, 3:] = 1e4
    assert torch.allclose(models.pool(hidden, mask, how)[0], expected), "padding counts"


@pytest.mark.parametrize("how", POOLINGS)
def test_a_text_has_the_same_vector_alone_and_padded(encoder, how):
    matcher, batcher = made("dssm", encoder, pooling=how)
    texts = ["打开书签", "请输入您的主密码，以便查看保存在这台电脑上的登录信息"] * 10
    alone = metrics.encode(matcher, batcher, texts[:1])
    with torch.inference_mode():
        together = matcher.eval().vectors(**batcher.texts(texts))
    assert torch.allclose(alone[0], together[0], atol=1e-5) and torch.allclose(together[0], together[18], atol=1e-5)


def test_parts_of_like_length_change_nothing(encoder, monkeypatch):
    matcher, batcher = made("dssm", encoder)
    batch = batcher.texts([text for row in made_pairs(10) for text in (row["sentence1"], row["sentence2"] * 2)])
    with torch.inference_mode():
        parted = matcher.eval().embed(**batch)
        monkeypatch.setattr(models, "PARTS", 1)
        whole = matcher.embed(**batch)
    assert torch.allclose(parted, whole, atol=1e-5)


def test_batches_hold_each_text_once_and_keep_negatives_with_their_query(encoder):
    _, batcher = made("dssm", encoder)
    items = data.queries(made_pairs(3))
    assert [[row["label"] for row in item] for item in items] == [[1, 0]] * 6
    batch = batcher(items)
    texts = [batcher.tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids in batch["input_ids"]]
    assert len(set(texts)) == len(texts) == 18
    found = [(texts[i], texts[j], y) for i, j, y in zip(batch["left"], batch["right"], batch["labels"].tolist())]
    assert found == [(row["sentence1"], row["sentence2"], row["label"]) for item in items for row in item]
    many = data.queries([{"sentence1": "甲", "sentence2": str(i), "label": int(i < 3)} for i in range(10)])
    assert [len(item) for item in many] == [4, 4, 2] and sum(many[0][i]["label"] for i in range(4)) == 2


def test_token_types_reach_an_encoder_that_has_them(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"甲乙丙丁"]
    config = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path)
    matcher, batcher = made("pointwise", str(tmp_path), dropout=0.0)
    batch = batcher.joined([{"sentence1": "甲乙", "sentence2": "丙", "label": 1}])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    other = matcher(**batch | {"token_type_ids": batch["token_type_ids"] * 0}).logits
    assert not torch.allclose(matcher(**batch).logits, other)


def test_simcse_sees_two_views_only_with_dropout(encoder):
    matcher, batcher = made("simcse", encoder, dropout=0.2)
    config = matcher.encoder.config
    assert (config.attention_dropout, config.embedding_dropout, config.mlp_dropout) == (0.2, 0.2, 0.2)
    batch = batcher(["打开书签", "关闭窗口"])
    assert torch.equal(batch["input_ids"][:2], batch["input_ids"][2:])
    set_seed(0)
    first, second = matcher.train().vectors(**batch).chunk(2)
    assert (first - second).abs().max() > 1e-3
    first, second = matcher.eval().vectors(**batch).chunk(2)
    assert torch.allclose(first, second, atol=1e-6)
    with pytest.raises(RoadmapError, match="needs dropout above 0"):
        models.build(Spec("simcse"), encoder)


def test_dropout_that_cannot_be_set_is_an_error(encoder, monkeypatch):
    monkeypatch.setattr(models, "DROPOUTS", ("no_such_dropout",))
    with pytest.raises(RoadmapError, match="its dropout cannot be set"):
        models.build(Spec("dssm", dropout=0.1), encoder)


def test_repetition_keeps_order_ends_and_length():
    import random

    random.seed(0)
    ids, counts = [2, 11, 12, 13, 14, 15, 16, 17, 18, 3], Counter()
    for _ in range(300):
        longer = data.repeat_tokens(ids, 0.5, max_length=13)
        assert [token for i, token in enumerate(longer) if i == 0 or token != longer[i - 1]] == ids
        assert longer.count(2) == longer.count(3) == 1
        counts[len(longer) - len(ids)] += 1
    assert set(counts) == {0, 1, 2, 3}, "from none to max_length - 10"
    assert data.repeat_tokens(ids, 0.5, max_length=10) == ids
    assert data.repeat_tokens([2, 3], 0.5, max_length=10) == [2, 3]


def test_esimcse_repeats_on_one_side_only(encoder):
    _, batcher = made("esimcse", encoder)
    set_seed(0)
    texts = [row["sentence2"] for row in made_pairs(10)]
    batch = batcher(texts)
    lengths = batch["attention_mask"].sum(1)
    plain = torch.tensor([len(batcher.tokenizer(text)["input_ids"]) for text in texts])
    assert torch.equal(lengths[: len(texts)], plain)
    assert (lengths[len(texts) :] >= plain).all() and (lengths[len(texts) :] > plain).any()


def test_esimcse_queue_holds_earlier_sentences_newest_first(encoder):
    matcher, batcher = made("esimcse", encoder, queue=5, momentum=0.9, dropout=0.3)
    matcher.train()
    assert not any(p.requires_grad for p in matcher.follower.parameters())
    sizes, before = [], [p.clone() for p in matcher.follower.parameters()]
    with torch.no_grad():
        for p in matcher.encoder.parameters():
            p.add_(0.01)
    for texts in (["打开书签", "关闭窗口"], ["保存密码", "删除邮件"], ["读取文件", "新建文件"]):
        output = matcher(**batcher(texts))
        sizes.append(output.logits.shape[1])
        newest = matcher.queue[:2].clone()
    assert sizes == [2, 4, 6], "own views, and what was there before this batch: never the batch itself"
    assert int(matcher.filled) == 5
    plain = batcher.texts(["读取文件", "新建文件"])
    with torch.no_grad():
        hidden = matcher.follower.eval()(**plain).last_hidden_state
    expected = torch.nn.functional.normalize(models.pool(hidden, plain["attention_mask"], "mean"), dim=-1)
    assert torch.allclose(newest, expected, atol=1e-5), "the follower's vectors, without dropout"
    moved = (next(matcher.follower.parameters()) - before[0]).mean().item()
    assert moved == pytest.approx(0.01 * (1 - 0.9**3), rel=1e-3)
    matcher.eval()(**batcher(["打开书签", "关闭窗口"]))
    assert torch.equal(matcher.queue[:2], newest), "evaluation leaves the queue alone"


# ------------------------------------------------------------------------------------------------ metrics


def test_best_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 8, 12) / 8.0  # with ties
        labels = rng.integers(0, 2, 12)
        labels[0] = 1
        found = metrics.f1((scores >= metrics.best_threshold(scores, labels)).astype(int), labels)
        brute = max(metrics.f1((scores >= limit).astype(int), labels) for limit in np.unique(scores))
        assert found == pytest.approx(brute)


def test_alignment_and_uniformity_by_hand():
    u, v = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert metrics.alignment(u, u) == 0 and metrics.alignment(u, v) == pytest.approx(2)
    assert metrics.uniformity(torch.cat([u, u])) == pytest.approx(0)
    assert metrics.uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-8)


def test_spearman_is_auc_in_other_words():
    """With two labels in equal number and no equal scores: rho = sqrt(3) / 2 * (2 AUC - 1), nearly."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    found = metrics.decisions(rng.normal(size=400) + labels, labels, 0.5)
    assert found["spearman"] == pytest.approx(np.sqrt(3) / 2 * (2 * found["auc"] - 1), rel=1e-3)


def test_pointwise_search_reorders_the_first_candidates_only(encoder):
    matcher, batcher = made("pointwise", encoder)
    rows = [row for row in made_pairs() if row["label"]]
    bag = metrics.Tfidf([row["sentence2"] for row in rows])
    before, after = bag.search(rows), metrics.search(matcher, batcher, rows, bag)
    assert len(rows) > metrics.RERANKED and before["recall@1"] == 1.0
    assert after["mrr"] < 1.0, "a random model spoils the order it is given"


# ------------------------------------------------------------------------------------------------ training


class Guarded(dict):
    """Splits whose test split may not be looked at."""

    def __getitem__(self, key):
        assert key != "test", "the test split was read during training"
        return super().__getitem__(key)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_train_save_load_gives_the_same_scores(arch, encoder, splits, tmp_path):
    spec = Spec(arch, dropout=0.1 if arch == "simcse" else None)
    trained = training.train(spec, Guarded(splits), encoder, epochs=1, batch_size=8)
    rows, labels = splits["validation"], [row["label"] for row in splits["validation"]]
    scores = metrics.pair_scores(trained.matcher, trained.batcher, rows)
    assert trained.spec.threshold == metrics.best_threshold(scores, labels), "chosen on the validation split"
    trained.save(tmp_path / "saved")
    matcher, tokenizer = models.load(tmp_path / "saved")
    again = metrics.pair_scores(matcher, data.Batcher(tokenizer, matcher.spec), rows)
    assert np.array_equal(scores, again) and matcher.spec == trained.spec
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} <= {".json", ".safetensors"}, "no pickles"
    assert not any("follower" in key for key in load_file(tmp_path / "saved" / "model.safetensors"))
    assert np.isfinite(list(trained.test(splits).values())).all()


def test_supervised_training_learns(encoder, splits):
    """The rule (opened or deleted) is easy; a wrong label convention or a frozen encoder would stay at chance."""
    for arch, loss in (("dssm", "infonce"), ("dssm", "cosine-mse"), ("dssm", "contrastive"), ("dssm", "cosent"), ("sbert", "")):
        spec = Spec(arch, loss=loss or "infonce")
        trained = training.train(spec, splits, encoder, epochs=6, batch_size=8, lr=3e-3)
        assert trained.validation["auc"] > 0.9, (arch, loss, trained.validation)


# ------------------------------------------------------------------------------------------------ one's own file


def test_own_file_has_no_text_in_two_splits(splits):
    homes: dict[str, set[str]] = {}
    for split, rows in splits.items():
        for row in rows:
            for column in ("sentence1", "sentence2"):
                homes.setdefault(row[column], set()).add(split)
    assert max(map(len, homes.values())) == 1 and sum(map(len, splits.values())) == len(made_pairs())


def test_a_few_categories_against_many_reviews_are_split_by_review(tmp_path, capsys):
    path = tmp_path / "reviews.csv"
    rows = [
        f"{thing},第{i}条评论说的是{NUMBERS[i % 20]}件事,{int(i % 5 == j)}" for i in range(60) for j, thing in enumerate(THINGS)
    ]
    path.write_text("kind,review,fits\n" + "\n".join(rows), encoding="utf-8")
    found = data.load_pairs(str(path), "kind", "review", "fits")
    assert "texts of sentence2 are in one split each" in capsys.readouterr().out
    reviews = [{row["sentence2"] for row in rows} for rows in found.values()]
    assert not reviews[0] & reviews[1] and not reviews[0] & reviews[2] and not reviews[1] & reviews[2]


def wrong_files(folder):
    good = folder / "good.csv"
    good.write_text("sentence1,sentence2,label\n" + "".join(f"甲{i},乙{i},{i % 2}\n" for i in range(40)), encoding="utf-8")
    yield [str(folder / "none.csv")], "There is no file"
    yield (
        [str(good), "--text2", "answer"],
        "has no column 'answer'; it has: sentence1, sentence2, label. Name the right one with --text2",
    )
    for name, text, encoding, says in (
        ("empty.csv", "", "utf-8", "could not be read: it is empty"),
        ("head.csv", "sentence1,sentence2,label\n", "utf-8", "it holds no rows"),
        ("blank.csv", "sentence1,sentence2,label\n ,,1\n", "utf-8", "has no pair of two texts"),
        (
            "big5.csv",
            "sentence1,sentence2,label\n評論寫得詳細,還沒讀過這樣認真的,1\n",
            "big5",
            "is neither UTF-8, UTF-16 nor GB18030",
        ),
        ("label.csv", "sentence1,sentence2,label\n甲,乙,好\n", "utf-8", "has the label '好'; a label is 1 or 0"),
        ("one.csv", "sentence1,sentence2,label\n" + "甲,乙,1\n丙,丁,1\n", "utf-8", "it needs both 0 and 1"),
    ):
        (folder / name).write_text(text, encoding=encoding)
        yield [str(folder / name)], says
    (folder / "words.docx").write_text("x")
    yield [str(folder / "words.docx")], "not a kind of file"


def test_what_can_be_wrong_with_a_file_is_one_sentence(tmp_path, capsys, encoder):
    for arguments, says in wrong_files(tmp_path):
        assert train_py.main(["--model", encoder, "--train", *arguments]) == 1
        _, err = capsys.readouterr()
        assert says in err and err.count("\n") == 1, (arguments, err)


def test_from_the_shell_there_is_no_traceback(tmp_path):
    (tmp_path / "damaged.csv").write_bytes("sentence1,sentence2,label\n一句很长的话,另一句很长的话,1\n".encode() + b"\xff")
    command = [sys.executable, str(FOLDER / "train.py"), "--train", "damaged.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "is not UTF-8" in done.stderr and "Traceback" not in done.stderr


def test_other_errors_of_users(tmp_path, capsys, encoder, pairs_csv):
    own = ["--model", encoder, "--train", str(pairs_csv)]
    (tmp_path / "empty.txt").write_text("\n")
    cases = [
        ([*own, "--model", str(tmp_path / "nowhere")], "There is no model"),
        ([*own, "--arch", "simcse", "--dropout", "0"], "needs dropout above 0"),
        ([*own, "--arch", "simcse", "--sentences", str(tmp_path / "none.txt")], "cannot be read"),
        ([*own, "--arch", "simcse", "--sentences", str(tmp_path / "empty.txt")], "is empty"),
        ([*own, "--limit", "1"], "1 training items; at least 2"),
        (["--arch", "all", "--output", str(tmp_path)], "with --arch all leave it out"),
    ]
    for arguments, says in cases:
        assert train_py.main(arguments) == 1
        assert says in capsys.readouterr().err
    for wrong in (["--arch", "siamese"], ["--epochs", "-1"], ["--dropout", "2"], ["--unknown"]):
        with pytest.raises(SystemExit) as stopped:
            train_py.main(wrong)
        assert stopped.value.code == 2


# ------------------------------------------------------------------------------------------------ every flag

# flag -> the run to start from, and the flag's value; the two runs must not leave the same matcher
CHANGES = {
    "arch": ([], ["sbert"]),
    "loss": ([], ["cosent"]),
    "model": ([], ["OTHER"]),
    "init": ([], ["random"]),
    "pooling": ([], ["max"]),
    "train": ([], ["HALF"]),
    "text1": ([], ["backwards"]),
    "text2": ([], ["backwards"]),
    "label": ([], ["opposite"]),
    "sentences": (["--arch", "simcse"], ["MORE"]),
    "limit": ([], ["20"]),
    "max_length": ([], ["6"]),
    "epochs": ([], ["2"]),
    "batch_size": ([], ["16"]),
    "lr": ([], ["0.002"]),
    "weight_decay": ([], ["0.5"]),
    "warmup": ([], ["0.5"]),
    "dropout": ([], ["0.3"]),
    "margin": (["--loss", "contrastive"], ["0.9"]),
    "temperature": ([], ["0.5"]),
    "duplicate_rate": (["--arch", "esimcse"], ["0.9"]),
    "queue": (["--arch", "esimcse"], ["3"]),
    "momentum": (["--arch", "esimcse"], ["0"]),
    "precision": ([], ["bf16"]),
    "seed": ([], ["1"]),
}
OTHERWISE = {"help", "test", "seeds", "report", "output"}  # what they do is tested below


def test_every_flag_is_tested():
    assert {action.dest for action in train_py.parser()._actions} == set(CHANGES) | OTHERWISE
    assert not set(CHANGES) & OTHERWISE


@pytest.fixture(scope="module")
def run(tmp_path_factory, encoder, pairs_csv):
    """Run train.py with flags, once for each set of flags; returns the weights it has saved."""
    folder, done = tmp_path_factory.mktemp("runs"), {}
    other, half, more = folder / "other", folder / "half.csv", folder / "more.txt"
    config = ModernBertModel.from_pretrained(encoder).config
    set_seed(2)
    ModernBertModel(config).save_pretrained(other)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(other)
    lines = pairs_csv.read_text(encoding="utf-8").splitlines()
    half.write_text("\n".join(lines[: len(lines) // 2 + 1]), encoding="utf-8")
    more.write_text("\n".join(f"另外的第{i}句话" for i in range(20)), encoding="utf-8")
    names = {"OTHER": str(other), "HALF": str(half), "MORE": str(more)}

    def go(flags):
        flags = tuple(names.get(flag, flag) for flag in flags)
        if flags not in done:
            base = {"--model": encoder, "--train": str(pairs_csv), "--epochs": "1", "--batch-size": "8", "--lr": "0.001"}
            start = [part for item in base.items() for part in item]
            target = folder / f"run-{len(done)}"
            assert train_py.main([*start, "--output", str(target), *flags]) == 0
            weights = load_file(target / "model.safetensors")
            done[flags] = (json.loads((target / "matcher.json").read_text())["threshold"], weights)
        return done[flags]

    return go


@pytest.mark.parametrize("name", CHANGES)
def test_every_flag_has_an_effect(name, run):
    start, value = CHANGES[name]
    (before, old), (after, new) = run(start), run([*start, f"--{name.replace('_', '-')}", *value])
    same = before == after and all(torch.equal(old[key], new[key]) for key in old)
    assert not same, f"--{name} {value[0]} left the very same matcher"


def test_the_same_flags_give_the_same_matcher(run, encoder, pairs_csv, tmp_path):
    _, weights = run([])
    start = ["--model", encoder, "--train", str(pairs_csv), "--epochs", "1", "--batch-size", "8", "--lr", "0.001"]
    assert train_py.main([*start, "--output", str(tmp_path)]) == 0
    again = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(weights[key], again[key]) for key in weights)


@pytest.mark.parametrize(
    "flags",
    [
        ["--arch", "sbert", "--loss", "cosent"],
        ["--margin", "0.3"],
        ["--arch", "pointwise", "--temperature", "0.1"],
        ["--arch", "simcse", "--queue", "10"],
        ["--arch", "dssm", "--momentum", "0.9"],
        ["--arch", "simcse", "--duplicate-rate", "0.2"],
        ["--sentences", "some.txt"],
        ["--text1", "question"],
    ],
)
def test_a_flag_without_an_effect_is_refused(flags, capsys):
    assert train_py.main(flags) == 1
    assert "has no effect here; it belongs to" in capsys.readouterr().err


def test_report_and_seeds_and_test(tmp_path, capsys, encoder, pairs_csv):
    path = tmp_path / "results.json"
    own = ["--model", encoder, "--train", str(pairs_csv), "--epochs", "1", "--batch-size", "8"]
    assert train_py.main([*own, "--seeds", "2", "--report", str(path)]) == 0
    assert train_py.main([*own, "--arch", "sbert", "--report", str(path)]) == 0
    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report["rows"]) == ["all positive", "TF-IDF", "dssm, infonce", "sbert"]
    assert len(report["rows"]["dssm, infonce"]["auc"]) == 2 and len(report["rows"]["sbert"]["auc"]) == 1
    assert report["rows"]["all positive"]["f1"] == [pytest.approx(2 / 3, abs=1e-5)]
    assert len(report["model_sha256"]) == 64 and report["versions"]["torch"] and report["data"] == "pairs.csv"
    capsys.readouterr()
    for flags, lines in (([], 0), (["--test"], 1)):
        assert train_py.main([*own, *flags, "--output", str(tmp_path / "out")]) == 0
        assert capsys.readouterr().out.count("\n  test ") == lines


def test_all_rows_of_the_table_can_be_made():
    options = train_py.parser().parse_args(["--arch", "all"])
    rows = {name: train_py.settle(train_py._with(options, row)) for name, row in train_py.TABLE.items()}
    assert {row.arch for row in rows.values()} == set(ARCHITECTURES)
    assert {row.loss for row in rows.values() if row.arch == "dssm"} == set(models.LOSSES)


# ------------------------------------------------------------------------------------------------ index and infer


@pytest.fixture(scope="module")
def saved(tmp_path_factory, encoder, splits):
    folder = tmp_path_factory.mktemp("saved")
    for arch in ("dssm", "sbert", "pointwise"):
        training.train(Spec(arch), splits, encoder, epochs=1, batch_size=16).save(folder / arch)
    return folder


TEXTS = [f"请把{number}号的{thing}打开" for number in NUMBERS for thing in THINGS]


@pytest.mark.parametrize(("arch", "kind"), [("dssm", "matrix"), ("dssm", "faiss"), ("sbert", "matrix")])
def test_index_saved_and_loaded_is_equal(arch, kind, saved, tmp_path):
    index = Index.build(saved / arch, TEXTS, kind)
    index.save(tmp_path / "index")
    again = Index.load(tmp_path / "index")
    assert torch.equal(index.vectors, again.vectors) and index.texts == again.texts
    queries = ["打开三号文件", "打开左号密码"]
    for one, two in zip(index.search(queries, 7), again.search(queries, 7)):
        assert np.array_equal(one, two)
    scores, places = again.search(queries, 7)
    pairs = [{"sentence1": query, "sentence2": text} for query in queries for text in TEXTS]
    brute = metrics.pair_scores(index.matcher, index.batcher, pairs).reshape(2, -1)
    assert np.allclose(scores, -np.sort(-brute, axis=1)[:, :7], atol=1e-5)
    assert np.allclose(np.take_along_axis(brute, places, 1), scores, atol=1e-5)


def test_faiss_and_matrix_agree(saved):
    (a, i), (b, j) = (Index.build(saved / "dssm", TEXTS, kind).search(["打开五号窗口"], 5) for kind in ("matrix", "faiss"))
    assert np.allclose(a, b, atol=1e-5) and set(i[0]) == set(j[0])


def test_index_refuses_what_cannot_work(saved, tmp_path):
    with pytest.raises(RoadmapError, match="no vectors to keep"):
        Index.build(saved / "pointwise", TEXTS)
    with pytest.raises(RoadmapError, match="not the score of sbert"):
        Index.build(saved / "sbert", TEXTS, "faiss")
    with pytest.raises(RoadmapError, match="holds no index"):
        Index.load(tmp_path)
    with pytest.raises(RoadmapError, match="no candidate"):
        Index.build(saved / "dssm", [])
    Index.build(saved / "dssm", TEXTS[:3]).save(tmp_path / "index")
    with pytest.raises(RoadmapError, match="is not the one that made this index"):
        Index.load(tmp_path / "index", saved / "sbert")
    with pytest.raises(RoadmapError, match="say where it is with --model"):
        Index.load(tmp_path / "index", tmp_path)
    scores, _ = Index.load(tmp_path / "index").search(["甲"], 10)
    assert scores.shape == (1, 3), "no more than there are"


def test_index_on_the_command_line(saved, tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS), encoding="utf-8")
    for kind in ("matrix", "faiss"):
        target = str(tmp_path / kind)
        assert index_py.main(["build", str(saved / "dssm"), str(texts), target, "--kind", kind]) == 0
        assert (tmp_path / kind / f"vectors.{'faiss' if kind == 'faiss' else 'safetensors'}").exists()
    capsys.readouterr()
    outputs = []
    base = ["search", target, "打开三号文件"]
    for more in ([], ["-k", "2"], ["--rerank", str(saved / "pointwise")], ["--model", str(saved / "dssm")]):
        assert index_py.main([*base, *more]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0].count("\n") == 6 and outputs[1].count("\n") == 3
    assert outputs[2] != outputs[0] == outputs[3]
    candidates = [{line.split(maxsplit=1)[1] for line in out.splitlines()[1:]} for out in (outputs[0], outputs[2])]
    assert candidates[0] == candidates[1], "the same five in another order"
    assert index_py.main([*base, "-k", "0"]) == 1 and "at least one candidate" in capsys.readouterr().err
    assert index_py.main(["search", str(tmp_path), "x"]) == 1 and "holds no index" in capsys.readouterr().err


def test_infer(saved, tmp_path, capsys, pairs_csv):
    model = str(saved / "dssm")
    threshold = json.loads((saved / "dssm" / "matcher.json").read_text())["threshold"]
    assert infer_py.main([model, "打开三号文件", "请把三号的文件打开"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is (found["score"] >= threshold) and found["sentence1"] == "打开三号文件"
    for limit, verdict in (("-1", True), ("1.01", False)):
        assert infer_py.main([model, "打开", "打开", "--threshold", limit]) == 0
        assert json.loads(capsys.readouterr().out)["same"] is verdict
    out = tmp_path / "scored.jsonl"
    assert infer_py.main([model, "--file", str(pairs_csv), "--text1", "backwards", "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(made_pairs()) and lines[0]["sentence1"] == made_pairs()[0]["sentence2"][::-1]
    assert infer_py.main([model, "--file", str(pairs_csv), "--text2", "answer"]) == 1
    assert "has no column 'answer'" in capsys.readouterr().err
    assert infer_py.main([str(tmp_path), "a", "b"]) == 1 and "holds no matcher" in capsys.readouterr().err
    for wrong in ([model], [model, "one"], [model, "a", "b", "--file", str(pairs_csv)]):
        with pytest.raises(SystemExit) as stopped:
            infer_py.main(wrong)
        assert stopped.value.code == 2
    (matcher, tokenizer), spec = models.load(model), json.loads((saved / "dssm" / "matcher.json").read_text())
    models.save(matcher, tokenizer, tmp_path / "bare", Spec(**spec | {"threshold": None}))
    assert infer_py.main([str(tmp_path / "bare"), "a", "b"]) == 1 and "has no threshold" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ cost


def test_crossover():
    rows = [{"candidates": n, "slow": n, "fast": 10.0} for n in (1.0, 4.0, 100.0)]
    assert cost.crossover(rows, "slow", "fast") == pytest.approx(10, rel=1e-3)
    assert cost.crossover(rows, "fast", "slow") == 1 and cost.crossover(rows[:2], "slow", "fast") is None


def test_cost_grows_with_pairs_and_hardly_with_an_index(saved):
    sides = [models.load(saved / arch) for arch in ("pointwise", "dssm")]
    sides = [(matcher, data.Batcher(tokenizer, matcher.spec)) for matcher, tokenizer in sides]
    rows = cost.per_query(*sides, "打开三号文件", TEXTS, (1, 300))
    assert rows[1]["pointwise"] > 5 * rows[0]["pointwise"] and rows[1]["bi-encoder, index"] < rows[1]["pointwise"] / 5


def test_table_of_the_lesson_is_complete():
    path = ROOT / "assets" / "results" / "text_matching.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    assert set(report["rows"]) == {"all positive", "TF-IDF", *train_py.TABLE}
    trained = {name for name, row in train_py.TABLE.items() if row.get("epochs") != 0 or row.get("init")}
    assert all(len(report["rows"][name]["auc"]) == 3 for name in trained), "three seeds"
    assert Path(report["model"]).name == "tiny-bert-zh"


def test_the_stored_table_was_made_from_the_shipped_checkpoint():
    """A checkpoint that is trained anew makes the table of the lesson a claim about another model."""
    stored = json.loads((ASSETS / "results" / "text_matching.json").read_text(encoding="utf-8"))
    assert stored["model_sha256"] == sha256(Path(checkpoint("bert")) / "model.safetensors")
