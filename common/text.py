"""Text to model inputs: chats with label masks, packed blocks, answer windows, entity tags.

The labels decide what is learnt, and most silent faults of fine-tuning sit here: an end token that was cut off, an
answer labelled where it is not, a padding piece that counts. Every function refuses or marks such a case, and says how.
All offsets are in characters; all ends are exclusive, except ``end_positions``, which models take inclusive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from common.errors import RoadmapError

IGNORE = -100  # the label that torch's cross-entropy skips
_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


def _require_offsets(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise RoadmapError(f"{type(tokenizer).__name__} gives no character offsets; load the fast tokenizer of this model.")


# --- chat -------------------------------------------------------------------------------------------------------------


_BLANKS = r"\s*"  # what some special tokens take in before or after them
_NEXT = {"start": "user", "user": "assistant", "assistant": "user or tool", "tool": "assistant or tool"}
_HIDDEN = 0xF0000  # private characters, which no text has: each stands for a special token that a person wrote


def check_conversation(messages: Sequence[Mapping[str, Any]]) -> None:
    """See that messages can be written by a chat template: text, and roles in turn.

    After an optional ``system`` message, ``user`` and ``assistant`` take turns; ``tool`` may follow an assistant's call.

    Args:
        messages: Dictionaries with ``role`` and ``content``. Only an assistant that calls tools may have no content.

    Raises:
        RoadmapError: A key is missing, content is not text, or a role comes out of turn.
    """
    before = "start"
    for number, message in enumerate(messages, 1):
        if "role" not in message or "content" not in message:
            raise RoadmapError('Every message needs the keys "role" (system, user or assistant) and "content".')
        role, content = message["role"], message["content"]
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise RoadmapError(f"The content of message {number} ({role}) is {str(content)[:30]!r}, not text; write text there.")
        if role == "system" and number == 1:
            continue
        if role not in _NEXT[before].split(" or "):
            after = f"after {before}" if before != "start" else "at the start"
            raise RoadmapError(
                f"Message {number} has the role {str(role)[:30]!r} {after}, where {_NEXT[before]} is expected; "
                "join turns of one speaker, or leave the conversation out."
            )
        before = role


class _Typed:
    """Special tokens that people wrote into their messages: text, not control.

    While the template is rendered, a private character stands for each of them, so that the tokens of the template can be
    told from those in the messages. Then each stretch between the template's tokens is tokenised as plain text.

    Args:
        tokenizer: A fast tokenizer.
        messages: Dictionaries with ``content``.
        control: Special tokens that do mean control in messages too, such as an image's place.
    """

    def __init__(self, tokenizer: Any, messages: Sequence[Mapping[str, Any]], control: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.special = {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}
        said = "".join(message.get("content") or "" for message in messages)
        found = sorted((t for t in self.special if t in said and t not in control), key=len, reverse=True)
        free = (character for code in range(_HIDDEN, _HIDDEN + 0xFFFE) if (character := chr(code)) not in said)
        self.names = dict(zip(free, found))
        self.messages = [self._hide(message) for message in messages] if self.names else list(messages)

    def _hide(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        for character, token in self.names.items():
            content = content.replace(token, character) if content else content
        return {**message, "content": content}

    def reveal(self, text: str) -> str:
        """The text as it was written."""
        for character, token in self.names.items():
            text = text.replace(character, token)
        return text

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of what the template wrote, and the characters of each token in the revealed text."""
        if not self.names:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return list(encoded["input_ids"]), list(encoded["offset_mapping"])
        longest_first = sorted(self.special.values(), key=lambda token: -len(token.content))
        pattern = "|".join(_BLANKS * t.lstrip + re.escape(t.content) + _BLANKS * t.rstrip for t in longest_first)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for part in re.split(f"({pattern})", text):
            shown = self.reveal(part)
            if part.strip() in self.special:
                ids.append(self.tokenizer.convert_tokens_to_ids(part.strip()))
                offsets.append((start, start + len(part)))
            elif part:
                options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
                encoded = self.tokenizer(shown, return_offsets_mapping=True, **options)
                ids += encoded["input_ids"]
                offsets += [(start + a, start + b) for a, b in encoded["offset_mapping"]]
            start += len(shown)
        return ids, offsets


def chat_prompt(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[int]]:
    """A conversation as the template writes it, up to where the assistant answers, and its token ids.

    A special token in a message, such as ``<|im_end|>``, is text: it never becomes a control token.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        messages: Dictionaries with ``role`` and ``content``, as :func:`check_conversation` accepts them.

    Raises:
        RoadmapError: As :func:`check_conversation`; or the tokenizer is slow.
    """
    _require_offsets(tokenizer)
    check_conversation(messages)
    typed = _Typed(tokenizer, messages)
    text = tokenizer.apply_chat_template(typed.messages, tokenize=False, add_generation_prompt=True)
    return typed.reveal(text), typed.encode(text)[0]


def _chat_spans(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as the template writes it, and the character span of every assistant answer in it."""
    template = tokenizer.get_chat_template()
    if _GENERATION.search(template):
        # apply_chat_template(return_assistant_tokens_mask=True) reads the same spans, but its mask keeps one token of a
        # final character that takes several, and runs to the end of the text if no token covers a span's last character.
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            [[{key: value for key, value in message.items() if value is not None} for message in messages]],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
        (text,), (spans,) = rendered
        return text, [(start, end) for start, end in spans]

    text, found = tokenizer.apply_chat_template(messages, tokenize=False), []
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(messages[:turn], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
            if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
                raise RoadmapError(
                    "This chat template writes earlier turns differently once more follow, so the answers cannot be found; "
                    "put {% generation %} and {% endgeneration %} around the answer in the template."
                )
            found.append((len(before), len(after)))
    return text, found


def chat_features(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], max_length: int, control: Sequence[str] = ()
) -> dict[str, list[int]]:
    """Token ids of a conversation, with labels on the assistant's answers and their end tokens only.

    The answers are what the template marks with ``{% generation %}``; without markers, what the conversation up to an
    answer adds to the conversation before it (with the generation prompt). The special token that ends an answer is
    always labelled, text after it (ChatML's line break) never: the model must learn to stop, and nothing after that.
    A template that writes no end token gets none. A special token in a message's content is text, not control.

    A conversation longer than ``max_length`` is cut. If the cut falls inside an answer, its last kept token becomes the
    end token, because a model that never sees one does not stop; the question after the last kept answer is dropped.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        messages: Dictionaries with ``role`` and ``content``; the assistant must answer at least once, not first.
        max_length: The most tokens to keep.
        control: Special tokens that stay control tokens in messages too, such as ``<image>``.

    Returns:
        ``input_ids``, ``attention_mask`` (all 1), ``labels`` (-100 outside answers): lists of one length, at most
        ``max_length``. The labels are not shifted; models of transformers do that.

    Raises:
        RoadmapError: If the tokenizer is slow or has no chat template, or the answers cannot be found in the template's text.
            Also for roles out of turn, content that is not text, no answer, no room for any answer, or a cut without an
            end token.
    """
    _require_offsets(tokenizer)
    if not tokenizer.chat_template:
        raise RoadmapError("This tokenizer has no chat template; set tokenizer.chat_template or load an instruct model's.")
    roles = [message.get("role") for message in messages]
    if all(roles) and ("assistant" not in roles or roles[0] == "assistant"):
        raise RoadmapError("A training conversation needs a user's turn first and at least one assistant's answer.")
    check_conversation(messages)

    typed = _Typed(tokenizer, messages, control)
    text, spans = _chat_spans(tokenizer, typed.messages)
    ids, offsets = typed.encode(text)
    spans = [(len(typed.reveal(text[:start])), len(typed.reveal(text[:end]))) for start, end in spans] if typed.names else spans
    text = typed.reveal(text)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    special -= {tokenizer.unk_token_id}  # an unknown character ends nothing
    end_id = tokenizer.eos_token_id
    labels = [IGNORE] * len(ids)
    for start, end in spans:
        answer = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        last = next((i for i in reversed(answer) if text[slice(*offsets[i])].strip()), None)  # before a final line break
        if last is not None and ids[last] not in special and ids[last + 1 : last + 2] and ids[last + 1] in special:
            last += 1  # the markers close before the end token
            answer.append(last)
        if last is not None and ids[last] in special:
            end_id, answer = ids[last], [i for i in answer if i <= last]
        for i in answer:
            labels[i] = ids[i]
    if set(labels) <= {IGNORE}:
        raise RoadmapError("The chat template writes no assistant's answer for this conversation, so nothing can be learnt.")

    if len(ids) > max_length >= 2:  # an answer is at least one token and its end
        cut_inside = labels[max_length] != IGNORE and labels[max_length - 1] != IGNORE
        ids, labels = ids[:max_length], labels[:max_length]
        if cut_inside:
            if end_id is None:
                raise RoadmapError("An answer must be cut, but there is no end token to close it with; set tokenizer.eos_token.")
            alone = labels[-2] == IGNORE  # an end token with nothing before it would teach silence
            ids[-1], labels[-1] = end_id, IGNORE if alone else end_id
        kept = max((i + 1 for i, label in enumerate(labels) if label != IGNORE), default=0)
        ids, labels = ids[:kept], labels[:kept]
    if not ids or len(ids) > max_length:
        raise RoadmapError(f"No answer fits into {max_length} tokens; raise max_length or leave this conversation out.")
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


# --- packing ----------------------------------------------------------------------------------------------------------


def pack(examples: Sequence[Sequence[int]], length: int, eos_id: int, boundaries: bool = False) -> dict[str, list[list[int]]]:
    """Join tokenised documents, each closed by one end token, and cut the stream into equal blocks.

    Nothing is padded. Only the last ``total % length`` tokens are lost, where ``total`` counts the end tokens added; with
    ``Dataset.map(batched=True)`` that happens once per batch, so choose a large ``batch_size``.

    Args:
        examples: Token ids of each document; an end token already there is not doubled, empty documents are skipped.
        length: Tokens per block.
        eos_id: The end token.
        boundaries: Keep documents from seeing each other: adds ``position_ids``, which restart at 0 with every document
            and block, and ``segment_ids``, which count documents within a block from 0; the first token of a document gets
            no label, because nothing precedes it. Models of transformers build the block-diagonal mask from
            ``position_ids`` only if they get no ``attention_mask`` and ``use_cache=False``; otherwise documents leak silently.

    Returns:
        ``input_ids`` and ``labels`` (and the two above), each (blocks, length). Labels are not shifted.

    Raises:
        RoadmapError: If length < 2, which leaves nothing to predict.
    """
    if length < 2:
        raise RoadmapError(f"A block needs at least 2 tokens, one to read and one to predict, not {length}.")
    stream: list[int] = []
    document: list[int] = []
    for number, example in enumerate(examples):
        closed = [*example] if not len(example) or example[-1] == eos_id else [*example, eos_id]
        stream += closed
        document += [number] * len(closed)

    starts = range(0, len(stream) - length + 1, length)
    blocks = [stream[start : start + length] for start in starts]
    if not boundaries:
        return {"input_ids": blocks, "labels": [list(block) for block in blocks]}

    packed: dict[str, list[list[int]]] = {"input_ids": blocks, "labels": [], "position_ids": [], "segment_ids": []}
    for start, block in zip(starts, blocks):
        owner, positions, segments = document[start : start + length], [0], [0]
        for previous, current in pairwise(owner):
            positions.append(positions[-1] + 1 if current == previous else 0)
            segments.append(segments[-1] + (current != previous))
        packed["position_ids"].append(positions)
        packed["segment_ids"].append(segments)
        packed["labels"].append([token if position else IGNORE for token, position in zip(block, positions)])
    return packed


def pack_blocks(tokenizer: Any, texts: Sequence[str], length: int, end: int, start: int | None = None) -> list[list[int]]:
    """Texts tokenised without special tokens and packed by :func:`pack`, as in pre-training.

    Args:
        tokenizer: Of the model.
        texts: Documents.
        length: Tokens per block.
        end: The token that closes a document.
        start: A token that every block begins with, such as an encoder's ``[CLS]``, which its inputs will begin with too.

    Returns:
        Blocks of ``length`` token ids.
    """
    head = [] if start is None else [start]
    ids: list[list[int]] = []
    for i in range(0, len(texts), 1_000):
        ids += tokenizer(list(texts[i : i + 1_000]), add_special_tokens=False, verbose=False)["input_ids"]
    return [head + block for block in pack(ids, length - len(head), end)["input_ids"]]


# --- answer windows ---------------------------------------------------------------------------------------------------


def answer_windows(
    tokenizer: Any, question: str, context: str, answer_start: int, answer_text: str, max_length: int, stride: int
) -> dict[str, list[Any]]:
    """Question and context as overlapping windows, each labelled with the answer if all of the answer is in it.

    A window without the answer, or with a part of it, gets start and end 0: the CLS token of an encoder, "not here".
    Never its last token: that would teach that answers sit where the text was cut.

    Args:
        tokenizer: A fast tokenizer.
        question: Kept whole in every window.
        context: Cut into windows.
        answer_start: Where the answer begins in the context, in characters.
        answer_text: The answer; ``""`` for a question without one.
        max_length: Tokens per window, question and special tokens included; windows are not padded.
        stride: How many context tokens neighbouring windows share.

    Returns:
        For each window: what the tokenizer returns (``input_ids``, ``attention_mask``, ...), ``start_positions`` and
        ``end_positions`` (tokens, both inclusive), and ``offset_mapping``: (start, end) characters in the context, None
        for tokens outside it.

    Raises:
        RoadmapError: If the context does not hold the answer at that place, or no token covers it; if the question leaves no
            more than ``stride`` tokens of room; if the tokenizer is slow.
    """
    _require_offsets(tokenizer)
    answer_end = answer_start + len(answer_text)
    if answer_text and (answer_start < 0 or context[answer_start:answer_end] != answer_text):
        raise RoadmapError(
            f"The context reads {context[max(answer_start, 0) : answer_end]!r} at character {answer_start}, "
            f"not the answer {answer_text!r}; answer_start counts characters from 0."
        )
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    room = max_length - len(asked) - tokenizer.num_special_tokens_to_add(pair=True)
    if stride < 0 or room <= stride:
        raise RoadmapError(
            f"The question leaves {room} of {max_length} tokens for the context, which must be more than stride={stride}; "
            "raise max_length, or lower stride."
        )

    def covering(offsets: Sequence[tuple[int, int]], sequence: Sequence[int | None]) -> list[int]:
        """The context tokens that share a character with the answer."""
        return [i for i, (a, b) in enumerate(offsets) if sequence[i] == 1 and a < answer_end and b > answer_start]

    whole = tokenizer(question, context, return_offsets_mapping=True, verbose=False)
    needed = len(covering(whole["offset_mapping"], whole.sequence_ids(0))) if answer_text else 0
    if answer_text and not needed:
        raise RoadmapError(f"The tokenizer has no token for the answer {answer_text!r}.")

    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows: dict[str, list[Any]] = {k: list(v) for k, v in encoded.items() if k != "overflow_to_sample_mapping"}
    windows |= {"start_positions": [], "end_positions": []}
    for number, offsets in enumerate(encoded["offset_mapping"]):
        sequence = encoded.sequence_ids(number)
        # Counting tokens is stricter than comparing characters: a window may end inside a character of several bytes.
        found = covering(offsets, sequence) if answer_text else []
        start, end = (found[0], found[-1]) if found and len(found) == needed else (0, 0)
        windows["start_positions"].append(start)
        windows["end_positions"].append(end)
        windows["offset_mapping"][number] = [tuple(pair) if sequence[i] == 1 else None for i, pair in enumerate(offsets)]
    return windows


# --- entity tags ------------------------------------------------------------------------------------------------------


def bio_to_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entities as (type, start, end) with an exclusive end, read strictly: ``I-`` without its ``B-`` begins nothing.

    So ``O I-PER`` holds no entity, and in ``B-PER I-LOC`` the person ends before ``I-LOC``. The same reading as seqeval's
    strict mode with IOB2.

    Raises:
        RoadmapError: If a tag is not O, B-type or I-type.
    """
    spans: list[tuple[str, int, int]] = []
    open_type = None
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not kind):
            raise RoadmapError(f"{tag!r} is not a BIO tag; a tag is O, B-type or I-type, such as B-PER.")
        if prefix == "I" and kind == open_type:
            spans[-1] = (kind, spans[-1][1], i + 1)
        elif prefix == "B":
            spans.append((kind, i, i + 1))
            open_type = kind
        else:
            open_type = None
    return spans


def spans_to_bio(spans: Sequence[tuple[str, int, int]], n: int) -> list[str]:
    """The tags of ``n`` tokens or characters; :func:`bio_to_spans` undoes it.

    Args:
        spans: (type, start, end) with an exclusive end, in any order.
        n: How many tags.

    Raises:
        RoadmapError: If a span is empty or leaves the text, or two spans share a place, which BIO cannot write.
    """
    tags = ["O"] * n
    for kind, start, end in spans:
        if not 0 <= start < end <= n:
            raise RoadmapError(f"The span {(kind, start, end)} is empty or outside a text of length {n}.")
        if any(tag != "O" for tag in tags[start:end]):
            raise RoadmapError(f"The span {(kind, start, end)} overlaps another; BIO tags can write only one of them.")
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tags


def align_labels(
    word_ids: Sequence[int | None],
    labels: Sequence[int],
    label_all: bool = False,
    inside: Mapping[int, int] | None = None,
) -> list[int]:
    """Labels of words as labels of tokens: -100 on special tokens, and on every piece of a word but its first.

    Args:
        word_ids: The word of each token, None for special tokens: ``encoding.word_ids()``.
        labels: One label per word.
        label_all: Label the later pieces too, with the label of their word.
        inside: With ``label_all``, the label that a later piece takes in place of its word's, such as
            ``{B_PER: I_PER}``: without it a split word begins an entity with every piece.

    Raises:
        RoadmapError: If a token belongs to a word without a label, or ``inside`` is given without ``label_all``.
    """
    if inside is not None and not label_all:
        raise RoadmapError("inside= names the labels of later pieces, which only label_all=True labels.")
    words = [word for word in word_ids if word is not None]
    if words and max(words) >= len(labels):
        raise RoadmapError(f"The tokens come from {max(words) + 1} words, but there are {len(labels)} labels.")
    aligned = []
    for previous, word in zip([None, *word_ids], word_ids):
        if word is None or (word == previous and not label_all):
            aligned.append(IGNORE)
        else:
            label = labels[word]
            aligned.append((inside or {}).get(label, label) if word == previous else label)
    return aligned
