"""Chats, packing, answer windows and entity tags, on tokenizers built here: characters, bytes, and two templates."""

import random

from common.errors import RoadmapError
from common.text import IGNORE, align_labels, answer_windows, bio_to_spans, chat_features, pack, spans_to_bio

import pytest
import torch
from seqeval.scheme import IOB2, Entities
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import BertTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}[OPEN]{{ m['content'] }}<|im_end|>[CLOSE]{{ '\\n' }}"
    "{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = CHATML.replace("[OPEN]", "{% generation %}").replace("[CLOSE]", "{%- endgeneration %}")
PLAIN = CHATML.replace("[OPEN]", "").replace("[CLOSE]", "")
BEFORE_END = CHATML.replace("[OPEN]{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}").replace(
    "[CLOSE]", ""
)

CHAT = [
    {"role": "system", "content": "你是助手。"},
    {"role": "user", "content": "你好，assistant 是谁？"},
    {"role": "assistant", "content": "你好！我是 AI 助手。"},
    {"role": "user", "content": "再见"},
    {"role": "assistant", "content": "再见！😀"},
]
ANSWERS = "你好！我是 AI 助手。<|im_end|>再见！😀<|im_end|>"


def bytes_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with few merges, so that most Chinese characters take two or three tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(["你好 assistant user system 你好 再见"] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=template,
    )


def characters_tokenizer(template: str | None = None) -> BertTokenizer:
    """WordPiece over characters: drops white space, and has an unknown token that is special."""
    letters = sorted({*"你好是助手我谁再见北京在中国的首都哪里？。！，abcdefghijklmnopqrstuvwxyz"})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters if c.isascii())]
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def labelled(tokenizer, features) -> str:
    return tokenizer.decode([label for label in features["labels"] if label != IGNORE])


# --- chat -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [MARKED, PLAIN, BEFORE_END], ids=["marked", "plain", "before-end"])
def test_labels_are_the_answers_and_their_end_tokens(template):
    tokenizer = bytes_tokenizer(template)
    features = chat_features(tokenizer, CHAT, 1000)
    assert labelled(tokenizer, features) == ANSWERS
    assert features["input_ids"] == tokenizer.apply_chat_template(CHAT)["input_ids"]
    assert features["attention_mask"] == [1] * len(features["input_ids"])
    assert all(label in (IGNORE, token) for label, token in zip(features["labels"], features["input_ids"]))
    runs = sum(a == IGNORE != b for a, b in zip(features["labels"], features["labels"][1:]))
    assert runs == 2


def test_both_ways_agree_on_random_chats():
    rng = random.Random(0)
    marked, plain = bytes_tokenizer(MARKED), bytes_tokenizer(PLAIN)
    for _ in range(30):
        chat = []
        for _ in range(rng.randrange(1, 4)):
            for role in ("user", "assistant"):
                chat.append({"role": role, "content": "".join(rng.choices("你好a b\n<|é😀", k=rng.randrange(0, 8)))})
        one, other = chat_features(marked, chat, 1000), chat_features(plain, chat, 1000)
        assert one == other
        assert one["labels"].count(marked.eos_token_id) == len(chat) // 2


@pytest.mark.parametrize("template", [MARKED, PLAIN, BEFORE_END], ids=["marked", "plain", "before-end"])
def test_chat_on_a_tokenizer_without_white_space(template):
    tokenizer = characters_tokenizer(template)
    chat = [CHAT[1], {"role": "assistant", "content": "我是§助手"}, CHAT[3], {"role": "assistant", "content": "再见"}]
    labels = [label for label in chat_features(tokenizer, chat, 1000)["labels"] if label != IGNORE]
    expected = ["我", "是", "[UNK]", "助", "手", "<|im_end|>", "再", "见", "<|im_end|>"]
    assert tokenizer.convert_ids_to_tokens(labels) == expected


def test_template_without_an_end_token_gets_none():
    turns = "{% for m in messages %}{{ m['role'] + ':[GAP]' + m['content'] + '\n' }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}{{ 'assistant:[GAP]' }}{% endif %}"
    tokenizer = bytes_tokenizer(template.replace("[GAP]", "\n"))
    assert labelled(tokenizer, chat_features(tokenizer, CHAT[1:3], 1000)) == CHAT[2]["content"] + "\n"
    tokenizer = bytes_tokenizer(template.replace("[GAP]", " "))  # the space and the first bytes of the answer are one token
    assert labelled(tokenizer, chat_features(tokenizer, CHAT[1:3], 1000)) == " " + CHAT[2]["content"] + "\n"

    tokenizer = characters_tokenizer(template.replace("[GAP]", " "))
    tokenizer.eos_token = "[SEP]"
    chat = [CHAT[3], {"role": "assistant", "content": "再见再见§"}]
    whole = chat_features(tokenizer, chat, 1000)
    cut = chat_features(tokenizer, chat, len(whole["labels"]) - 1)
    assert tokenizer.convert_ids_to_tokens(whole["labels"][-2:]) == ["见", "[UNK]"]
    assert tokenizer.convert_ids_to_tokens(cut["labels"][-2:]) == ["再", "[SEP]"]  # closed by the end, not by the unknown


@pytest.mark.parametrize("template", [MARKED, PLAIN], ids=["marked", "plain"])
def test_every_cut_ends_with_an_end_token_or_is_refused(template):
    tokenizer = bytes_tokenizer(template)
    whole = chat_features(tokenizer, CHAT, 1000)
    ids, labels, eos = whole["input_ids"], whole["labels"], tokenizer.eos_token_id
    first = next(i for i, label in enumerate(labels) if label != IGNORE)
    for length in range(len(ids) + 3):
        if length < first + 2:
            with pytest.raises(RoadmapError, match=f"fits into {length} tokens"):
                chat_features(tokenizer, CHAT, length)
            continue
        cut = chat_features(tokenizer, CHAT, length)
        size = len(cut["input_ids"])
        assert size <= length and size == len(cut["labels"]) == len(cut["attention_mask"])
        if length >= len(ids):
            assert cut == whole
        else:
            assert cut["input_ids"][-1] == cut["labels"][-1] == eos and cut["labels"][-2] != IGNORE
            assert cut["input_ids"][:-1] == ids[: size - 1] and cut["labels"][:-1] == labels[: size - 1]


def test_chat_refuses():
    tokenizer = bytes_tokenizer(PLAIN)
    for messages, says in (
        ([], "assistant's answer"),
        (CHAT[:2], "assistant's answer"),
        (CHAT[2:], "user's turn first"),
        ([{"from": "human", "value": "你好"}], '"role"'),
    ):
        with pytest.raises(RoadmapError, match=says):
            chat_features(tokenizer, messages, 100)
    with pytest.raises(RoadmapError, match="no chat template"):
        chat_features(bytes_tokenizer(), CHAT, 100)
    forgetful = PLAIN.replace("{{ m['content'] }}", "{% if loop.last %}{{ m['content'] }}{% endif %}")
    with pytest.raises(RoadmapError, match=r"put \{% generation"):
        chat_features(bytes_tokenizer(forgetful), CHAT, 100)
    mute = "{% for m in messages %}{% if m['role'] == 'tool' %}{% generation %}x{% endgeneration %}{% endif %}y{% endfor %}"
    with pytest.raises(RoadmapError, match="writes no assistant's answer"):
        chat_features(bytes_tokenizer(mute), CHAT, 100)
    endless = bytes_tokenizer("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    endless.eos_token = None
    with pytest.raises(RoadmapError, match="no end token"):
        chat_features(endless, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c d e"}], 5)

    class Slow:
        is_fast = False

    for call in (lambda: chat_features(Slow(), CHAT, 9), lambda: answer_windows(Slow(), "a", "b", 0, "b", 9, 1)):
        with pytest.raises(RoadmapError, match="Slow gives no character offsets"):
            call()


# --- packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("boundaries", [False, True])
def test_packing_loses_only_the_remainder(seed, boundaries):
    rng = random.Random(seed)
    documents = [[rng.randrange(1, 50) for _ in range(rng.randrange(0, 12))] for _ in range(20)]
    length = rng.randrange(2, 15)
    packed = pack(documents, length, eos_id=0, boundaries=boundaries)
    stream = [token for document in documents if document for token in [*document, 0]]
    flat = [token for block in packed["input_ids"] for token in block]
    assert flat == stream[: len(stream) // length * length]
    assert {len(block) for column in packed.values() for block in column} == {length}
    if not boundaries:
        assert packed["labels"] == packed["input_ids"] and packed["labels"][0] is not packed["input_ids"][0]
        return
    for block, labels, positions, segments in zip(*packed.values()):
        position, segment = 0, 0
        for i, token in enumerate(block):
            assert (positions[i], segments[i]) == (position, segment)
            assert labels[i] == (token if position else IGNORE)
            position, segment = (0, segment + 1) if token == 0 else (position + 1, segment)


def test_packing_by_hand():
    packed = pack([[5, 6], [], [7, 8, 9, 0], [4]], 4, eos_id=0, boundaries=True)
    assert packed == {
        "input_ids": [[5, 6, 0, 7], [8, 9, 0, 4]],
        "labels": [[IGNORE, 6, 0, IGNORE], [IGNORE, 9, 0, IGNORE]],
        "position_ids": [[0, 1, 2, 0], [0, 1, 2, 0]],
        "segment_ids": [[0, 0, 0, 1], [0, 0, 0, 1]],
    }
    assert pack([[1]], 5, eos_id=0) == {"input_ids": [], "labels": []}
    with pytest.raises(RoadmapError, match="at least 2 tokens, one to read and one to predict, not 1"):
        pack([[1, 2]], 1, eos_id=0)


def test_packed_documents_do_not_see_each_other():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=20, num_key_value_heads=2, **size)).eval()
    documents = [[3, 4, 5], [6, 7], [8, 9, 10]]
    packed = pack(documents, 11, eos_id=0, boundaries=True)
    ids, positions = torch.tensor(packed["input_ids"]), torch.tensor(packed["position_ids"])
    with torch.no_grad():
        apart = torch.cat([model(input_ids=torch.tensor([[*document, 0]])).logits for document in documents], dim=1)
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        mixed = model(input_ids=ids).logits
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed, apart, atol=1e-3)


# --- answer windows ---------------------------------------------------------------------------------------------------

CONTEXT = "中国的首都是北京。北京在中国，😀 abc 是谁？" * 3


@pytest.mark.parametrize("build", [characters_tokenizer, bytes_tokenizer])
def test_windows_hold_the_whole_answer_or_point_to_zero(build):
    tokenizer, rng, seen = build(), random.Random(0), {True: 0, False: 0}
    whole_ids = tokenizer(CONTEXT, add_special_tokens=False)["input_ids"]
    for _ in range(60):
        a = rng.randrange(len(CONTEXT))
        text = CONTEXT[a : a + rng.randrange(1, 14)]
        if not text.strip():
            continue
        windows = answer_windows(tokenizer, "首都？", CONTEXT, a, text, max_length=40, stride=rng.randrange(0, 20))
        covered = set()
        for ids, offsets, start, end in zip(
            windows["input_ids"], windows["offset_mapping"], windows["start_positions"], windows["end_positions"]
        ):
            assert len(ids) == len(offsets) <= 40
            inside = [pair for pair in offsets if pair is not None]
            covered |= {character for pair in inside for character in range(*pair)}
            if start or end:
                seen[True] += 1
                assert CONTEXT[offsets[start][0] : offsets[end][1]].strip() == text.strip()
                if build is bytes_tokenizer:  # to the byte: nothing of the answer is outside the window
                    assert tokenizer.decode(ids[start : end + 1]).strip() == text.strip()
            else:
                seen[False] += 1
                # The answer is not wholly inside: some of its characters, or bytes of a border character, are missing.
                characters = {i for i in range(a, a + len(text)) if not CONTEXT[i].isspace()}
                present = {character for pair in inside for character in range(*pair)}
                cut = inside[0] == inside[-1] or ids[-1] != whole_ids[-1] or ids[-len(inside)] != whole_ids[0]
                assert not characters <= present or cut
        assert covered >= {i for i, character in enumerate(CONTEXT) if not character.isspace()}
    assert min(seen.values()) > 20


def test_windows_by_hand():
    tokenizer = characters_tokenizer()
    context, answer = "北京在中国。首都是北京。", "首都"
    windows = answer_windows(tokenizer, "哪里？", context, context.index(answer), answer, max_length=11, stride=1)
    # [CLS] 哪里？[SEP] + 5 characters + [SEP]: 北京在中国 | 国。首都是 | 是北京。
    assert [[context[a:b] for a, b in filter(None, row)] for row in windows["offset_mapping"]] == [
        list("北京在中国"),
        list("国。首都是"),
        list("是北京。"),
    ]
    assert windows["start_positions"] == [0, 7, 0] and windows["end_positions"] == [0, 8, 0]
    assert windows["offset_mapping"][1][7] == (6, 7) and windows["offset_mapping"][1][1] is None
    assert "overflow_to_sample_mapping" not in windows and set(windows) >= {"input_ids", "attention_mask"}

    halved = answer_windows(tokenizer, "哪里？", context, 3, "中国。首", max_length=11, stride=1)  # in no window whole
    assert halved["start_positions"] == halved["end_positions"] == [0, 0, 0]
    edge = answer_windows(tokenizer, "哪里？", context, 3, "中国", max_length=11, stride=1)  # up to the window's last token
    assert edge["start_positions"] == [8, 0, 0] and edge["end_positions"] == [9, 0, 0]
    unanswerable = answer_windows(tokenizer, "哪里？", context, 0, "", max_length=11, stride=1)
    assert unanswerable["start_positions"] == [0, 0, 0]


def test_a_window_that_ends_inside_a_character_does_not_hold_it():
    tokenizer = bytes_tokenizer()
    context = "a都"
    bytes_of_last = len(tokenizer("都", add_special_tokens=False)["input_ids"])
    assert bytes_of_last == 3
    room = len(tokenizer("q")["input_ids"]) + 3  # a, and two of the three bytes
    windows = answer_windows(tokenizer, "q", context, 0, "a都", max_length=room, stride=0)
    assert len(windows["input_ids"]) == 2 and windows["end_positions"] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("哪里？", "北京在中国", 1, "北京", 20, 2), "reads '京在' at character 1"),
        (("哪里？", "北京在中国", -2, "中国", 20, 2), "at character -2"),
        (("哪里？", "北京 在", 2, " ", 20, 2), "no token for the answer"),
        (("哪里？" * 9, "北京在中国", 0, "北京", 20, 2), "The question leaves -10 of 20 tokens"),
        (("哪里？", "北京在中国", 0, "北京", 11, 5), "leaves 5 of 11 tokens .* more than stride=5"),
        (("哪里？", "北京在中国", 0, "北京", 20, -1), "stride=-1"),
    ],
)
def test_windows_refuse(arguments, says):
    with pytest.raises(RoadmapError, match=says):
        answer_windows(characters_tokenizer(), *arguments)


# --- entity tags ------------------------------------------------------------------------------------------------------


def test_spans_equal_seqeval_strict():
    rng = random.Random(0)
    for _ in range(300):
        tags = rng.choices(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], k=rng.randrange(1, 10))
        expected = [(e.tag, e.start, e.end) for e in Entities([tags], IOB2).entities[0]]
        assert bio_to_spans(tags) == expected


def test_spans_by_hand():
    assert bio_to_spans(["I-PER", "B-PER", "I-PER", "I-LOC", "I-PER", "B-LOC", "B-LOC"]) == [
        ("PER", 1, 3),
        ("LOC", 5, 6),
        ("LOC", 6, 7),
    ]
    assert bio_to_spans([]) == []
    assert spans_to_bio([("LOC", 3, 4), ("PER", 0, 2)], 5) == ["B-PER", "I-PER", "O", "B-LOC", "O"]
    for tag in ("PER", "S-PER", "B-", "B"):
        with pytest.raises(RoadmapError, match=f"'{tag}' is not a BIO tag"):
            bio_to_spans([tag])


def test_spans_and_tags_undo_each_other():
    rng = random.Random(0)
    for _ in range(100):
        borders = sorted(rng.sample(range(12), 6))
        spans = [(rng.choice(["PER", "LOC"]), a, b) for a, b in zip(borders[::2], borders[1::2])]
        assert bio_to_spans(spans_to_bio(spans[::-1], 12)) == spans


@pytest.mark.parametrize(
    ("spans", "says"),
    [
        ([("PER", 0, 2), ("LOC", 1, 3)], "overlaps another"),
        ([("PER", 2, 2)], "empty or outside"),
        ([("PER", 3, 5)], "outside a text of length 4"),
        ([("PER", -1, 1)], "outside"),
    ],
)
def test_spans_refuse(spans, says):
    with pytest.raises(RoadmapError, match=says):
        spans_to_bio(spans, 4)


def test_alignment():
    word_ids = [None, 0, 1, 1, 1, 2, None]
    assert align_labels(word_ids, [0, 1, 2]) == [IGNORE, 0, 1, IGNORE, IGNORE, 2, IGNORE]
    assert align_labels(word_ids, [0, 1, 2], label_all=True) == [IGNORE, 0, 1, 1, 1, 2, IGNORE]
    assert align_labels(word_ids, [0, 1, 2], label_all=True, inside={1: 2}) == [IGNORE, 0, 1, 2, 2, 2, IGNORE]
    encoded = characters_tokenizer()(["abc", "北", "京"], is_split_into_words=True)
    assert align_labels(encoded.word_ids(), [5, 1, 2]) == [IGNORE, 5, IGNORE, IGNORE, 1, 2, IGNORE]
    with pytest.raises(RoadmapError, match="from 3 words, but there are 2 labels"):
        align_labels(word_ids, [0, 1])
    with pytest.raises(RoadmapError, match="only label_all=True"):
        align_labels(word_ids, [0, 1, 2], inside={1: 2})
