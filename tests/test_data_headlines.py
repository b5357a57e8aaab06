"""Headlines: real pairs, the right way round, and no article on two sides of any division."""

from common.data import SPLITS, HeldOut, headlines, load_data, normalise
from common.data.headlines import DATELINE, LEAST, LONGEST, SHORTEST
from common.metrics import rouge

import pytest


@pytest.fixture(scope="module")
def data():
    return load_data("headlines")


def texts(rows):
    return [document + summary for document, summary in zip(rows["document"], rows["summary"])]


def test_sizes_and_lengths(data):
    assert list(data) == list(SPLITS) and data["train"].column_names == ["document", "summary"]
    assert len(data["train"]) > 850 and min(len(data["validation"]), len(data["test"])) > 90
    for rows in data.values():
        assert all(SHORTEST <= len(summary) <= LONGEST for summary in rows["summary"])
        assert all(len(document) >= LEAST and document == document.strip() for document in rows["document"])
        assert not any(DATELINE.match(document) for document in rows["document"])
        assert len(set(map(normalise, texts(rows)))) == len(rows)


def test_a_headline_belongs_to_its_article(data):
    """It shares far more with its own article than with the next one; so pairs are not shifted."""
    rows = data["train"][:200]
    own = rouge([d[:40] for d in rows["document"]], rows["summary"])["rougeL"]
    other = rouge([d[:40] for d in rows["document"][1:]], rows["summary"][:-1])["rougeL"]
    assert own > 0.2 and own > 3 * other


def test_no_article_is_on_two_sides(data):
    """The same measure as everywhere: no run of 39 characters of a held-out article in training text."""
    held_out = [text for split in SPLITS[1:] for text in texts(data[split])]
    hidden = HeldOut(held_out)
    assert not any(hidden.touches(text) for text in texts(data["train"]))
    runs = {text[i : i + 39] for text in map(normalise, held_out) for i in range(len(text) - 38)}
    suspects = [normalise(text) for text in load_data("corpus")["train"]["text"] if hidden.touches(text)]  # a run of 39 touches
    assert not any(text[i : i + 39] in runs for text in suspects for i in range(len(text) - 38))


def test_ner_and_headlines_do_not_share_sentences_across_splits(data):
    sentences = {split: ["".join(tokens) for tokens in rows["tokens"]] for split, rows in load_data("ner").items()}
    taught = HeldOut(text for text in sentences["train"] if len(text) >= 20)
    assert not any(taught.touches(document) for split in SPLITS[1:] for document in data[split]["document"])
    held = HeldOut(text for split in SPLITS[1:] for text in sentences[split] if len(text) >= 20)
    assert not any(held.touches(text) for text in texts(data["train"]))


@pytest.mark.parametrize(
    ("text", "dateline"),
    [
        ("新华社北京1月13日电（记者于海生）国务院副总理今天", "新华社北京1月13日电（记者于海生）"),
        ("本报北京1月6日讯记者艾笑报道：三种疫苗研制成功", "本报北京1月6日讯记者艾笑报道："),
        ("据新华社上海1月8日电上海税务", "据新华社上海1月8日电"),
        ("上海税务稽查队伍，1997年共查结", None),
    ],
)
def test_datelines(text, dateline):
    found = DATELINE.match(text)
    assert (found and found.group()) == dateline


def test_only_articles_with_one_headline_are_taken(monkeypatch):
    """Made-up pages: a good article, one with two headlines, one without a dateline, one that is too short."""

    def words(text):
        return [(text, "n")]

    body = "新华社北京1月2日电今天" + "天气很好" * 20 + "。"
    pages = [
        ("北京今天天气很好", ["北京今天天气很好"], words(body)),
        ("北京今天天气很好", [], words("明天也好。")),
        ("上海的第一个标题", ["上海的第一个标题", "上海的第二个标题"], words(body)),
        ("南京没有电头新闻", ["南京没有电头新闻"], words(body.removeprefix("新华社北京1月2日电"))),
        ("广州一条短的新闻", ["（照片）", "广州一条短的新闻"], words("本报讯太短。")),
        ("广州一条长的新闻", ["（照片）", "广州一条长的新闻"], words(body)),
    ]
    monkeypatch.setattr(headlines, "newspaper", lambda: iter(pages))
    text = "今天" + "天气很好" * 20 + "。"
    assert list(headlines._articles()) == [("北京今天天气很好", text + "明天也好。"), ("广州一条长的新闻", text)]


def test_full_scale_gives_the_same_columns(monkeypatch):
    from datasets import Dataset, DatasetDict

    monkeypatch.setenv("ROADMAP_SCALE", "full")
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        rows = Dataset.from_dict({"summary": ["题"] * 5, "text": ["文" * 9] * 5})
        return DatasetDict(train=rows, validation=rows, test=rows)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    data = load_data("headlines")
    assert asked == [(("hugcyp/LCSTS", None), {"revision": "refs/convert/parquet"})]
    assert sorted(data["train"].column_names) == ["document", "summary"] and data["test"][0]["document"] == "文" * 9
