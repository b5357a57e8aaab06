"""Small random models with the class, tokenizer kind, special tokens, number format and file kind of the real ones.

Widths are small but divisible by 64, so that 4-bit kernels accept them; depths are those of the real models, because
lessons count layers. Where a file's content was read is noted at each builder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data import load_data

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)

ENGLISH = ["How many red cubes are there? Give a very brief answer.", "A dog runs on the grass .", "Yes. No. Red. Blue."] * 20
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
OTHERS = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|vision_start|>", "<|vision_end|>"]


def build(root: Path) -> None:
    """Write every model below a folder."""
    torch.manual_seed(0)
    texts = [row["text"] for row in load_data("corpus")["train"].select(range(8_000)).to_list()]
    bert_family(root, texts)
    bpe = qwen_tokenizer(texts)
    qwen_family(root, bpe)
    mt5(root / "google/mt5-small", texts)
    clip(root / "openai/clip-vit-base-patch32")
    llava(root / "llava-hf/llava-interleave-qwen-0.5b-hf", bpe)


def dump(path: Path, content: Any) -> None:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def save_as_bin(folder: Path, model: Any) -> None:
    """The older file kind, which these repositories hold; the configuration names no number format, as it was then."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "pytorch_model.bin")
    config = {key: value for key, value in model.config.to_dict().items() if key not in ("dtype", "transformers_version")}
    dump(folder / "config.json", config | {"architectures": [type(model).__name__]})


# ------------------------------------------------------------------------------------------------ BERT


def bert_family(root: Path, texts: Sequence[str]) -> None:
    """macbert (masked LM) and two fine-tuned models of the UER group: their configurations on the Hub.

    WordPiece with ``token_type_ids``; the tokenizers' settings do not name a ``model_max_length``.
    """
    characters = sorted({c for text in texts for c in text.lower() if not c.isspace() and not c.isascii()})
    ascii_ = [chr(i) for i in range(33, 127) if not chr(i).isupper()]
    special = ["[PAD]", *(f"[unused{i}]" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*special, *ascii_, *characters, *(f"##{c}" for c in ascii_ if c.isalnum()), "the", "news", "##ing"])
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    kinds = ["address", "book", "company", "game", "government", "movie", "name", "organization", "position", "scene"]
    tags = ["O", *(f"{p}-{kind}" for p in "BI" for kind in kinds), *(f"S-{kind}" for kind in kinds), "[PAD]"]
    stars = ["negative (stars 1, 2 and 3)", "positive (stars 4 and 5)"]
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 12, "num_attention_heads": 4}
    made = {
        "hfl/chinese-macbert-base": (BertForMaskedLM, None),
        "uer/roberta-base-finetuned-jd-binary-chinese": (BertForSequenceClassification, stars),
        "uer/roberta-base-finetuned-cluener2020-chinese": (BertForTokenClassification, tags),
    }
    for name, (cls, labels) in made.items():
        named: dict[str, Any] = {}
        if labels:
            named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        config = BertConfig(vocab_size=len(vocabulary), pad_token_id=0, **shape, **named)
        save_as_bin(root / name, cls(config))
        tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)
        tokenizer.save_pretrained(root / name)
        settings = json.loads((root / name / "tokenizer_config.json").read_text())
        settings.pop("model_max_length", None)
        dump(root / name / "tokenizer_config.json", settings)


# ------------------------------------------------------------------------------------------------ Qwen


def template(system: str) -> str:
    """ChatML with a system prompt where the conversation has none, and without marks around the answers (Qwen2.5)."""
    return (
        "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\n" + system + "<|im_end|>\\n' -}}{%- endif -%}"
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )


def qwen_tokenizer(texts: Sequence[str], extra: Sequence[str] = ()) -> Tokenizer:
    """Byte-level BPE that splits as Qwen's does, with its special tokens at the end of the vocabulary."""
    bpe = Tokenizer(tokenizer_models.BPE())
    bpe.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [*texts[:4_000], *ENGLISH], trainers.BpeTrainer(vocab_size=4_000, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*CHATML, *OTHERS)])
    return bpe


def save_qwen_tokenizer(folder: Path, bpe: Tokenizer, eos: str, chat: str | None, pad: str = "<|endoftext|>") -> None:
    """``tokenizer.json`` and settings as in Qwen2.5's repositories."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 131_072,
        "eos_token": eos,
        "pad_token": pad,
        "bos_token": None,
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
    }
    dump(folder / "tokenizer_config.json", settings | ({"chat_template": chat} if chat else {}))


def qwen_config(bpe: Tokenizer, eos: int, **shape: int) -> Qwen2Config:
    """24 layers, grouped-query attention, tied embeddings, more rows than tokens, a context of 32,768."""
    widths = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2} | shape
    return Qwen2Config(
        vocab_size=-(-bpe.get_vocab_size() // 64) * 64 + 64,
        num_hidden_layers=24,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=bpe.token_to_id("<|endoftext|>"),
        eos_token_id=eos,
        **widths,
    )


def qwen_family(root: Path, bpe: Tokenizer) -> None:
    """Qwen2.5-0.5B and its Instruct model, bfloat16: their configurations and generation configurations on the Hub."""
    end, turn = bpe.token_to_id("<|endoftext|>"), bpe.token_to_id("<|im_end|>")
    base, chat = root / "Qwen/Qwen2.5-0.5B", root / "Qwen/Qwen2.5-0.5B-Instruct"
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
    for folder, eos, system, generation in (
        (base, end, "You are a helpful assistant.", {"eos_token_id": end, "do_sample": False, "max_new_tokens": 2_048}),
        (
            chat,
            turn,
            "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
            {"eos_token_id": [turn, end], "pad_token_id": end, **sampling},
        ),
    ):
        Qwen2ForCausalLM(qwen_config(bpe, eos)).to(torch.bfloat16).save_pretrained(folder)
        save_qwen_tokenizer(folder, bpe, bpe.id_to_token(eos), template(system))
        dump(folder / "generation_config.json", {"bos_token_id": end, **generation})


# ------------------------------------------------------------------------------------------------ mT5, CLIP, LLaVA


def mt5(folder: Path, texts: Sequence[str]) -> None:
    """google/mt5-small: untied output, gated GELU, and only ``spiece.model`` for a tokenizer (its file list on the Hub)."""
    import io

    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.replace("\n", " ")[:2_000] for text in (*texts[:5_000], *ENGLISH)]),
        model_writer=written,
        vocab_size=5_000,
        model_type="unigram",
        character_coverage=0.9995,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        minloglevel=2,
    )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(written.getvalue())
    for i in range(99, -1, -1):  # the sentinels are user-defined pieces of the model itself
        piece = proto.pieces.add()
        piece.piece, piece.score, piece.type = f"▁<extra_id_{i}>", 0.0, 4
    config = MT5Config(
        vocab_size=-(-len(proto.pieces) // 64) * 64,
        d_model=64,
        d_ff=128,
        d_kv=16,
        num_heads=4,
        num_layers=8,
        num_decoder_layers=8,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    save_as_bin(folder, MT5ForConditionalGeneration(config))
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    dump(folder / "special_tokens_map.json", special)
    dump(folder / "tokenizer_config.json", special | {"extra_ids": 0, "tokenizer_class": "T5Tokenizer"})
    dump(folder / "generation_config.json", {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0})


def clip(folder: Path) -> None:
    """openai/clip-vit-base-patch32: lower-case byte-level BPE with ends of words, 77 positions, 224 pixels, patches of 32."""
    bpe = Tokenizer(tokenizer_models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(words, "removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    names = load_data("image_text")["train"]["caption_en"][:]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [*names, *ENGLISH],
        trainers.BpeTrainer(
            vocab_size=2_000,
            initial_alphabet=alphabet,
            end_of_word_suffix="</w>",
            special_tokens=["<|startoftext|>", "<|endoftext|>"],  # of the vocabulary itself, because the second is also "unknown"
            show_progress=False,
        ),
    )
    start, end = (bpe.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    bpe.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)]
    )
    config = CLIPConfig(
        text_config={
            "vocab_size": -(-bpe.get_vocab_size() // 64) * 64,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 12,
            "num_attention_heads": 4,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 12, "num_attention_heads": 4},
        projection_dim=64,
    )
    save_as_bin(folder, CLIPModel(config))
    bpe.save(str(folder / "tokenizer.json"))
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    dump(
        folder / "tokenizer_config.json",
        special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True},
    )
    pixels = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    steps = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224, "crop_size": 224}
    dump(folder / "preprocessor_config.json", {"feature_extractor_type": "CLIPFeatureExtractor", **steps, **pixels})


def llava(folder: Path, bpe: Tokenizer) -> None:
    """llava-interleave-qwen-0.5b-hf, float16: SigLIP's patches, all of them, and a template for the processor alone."""
    own = Tokenizer.from_str(bpe.to_str())
    own.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<image>", "<pad>")])
    save_qwen_tokenizer(folder, own, "<|im_end|>", None, pad="<pad>")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    dump(
        folder / "tokenizer_config.json",
        settings | {"extra_special_tokens": {"image_token": "<image>"}, "image_token": "<image>"},
    )
    side, turn = 384, own.token_to_id("<|im_end|>")  # 27 x 27 = 729 patches, as many as in the real model
    text = qwen_config(own, turn)
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=26,
        num_attention_heads=4,
        image_size=side,
        patch_size=14,
        vision_use_head=False,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=own.token_to_id("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(side // 14) ** 2,
        tie_word_embeddings=True,
    )
    LlavaForConditionalGeneration(config).to(torch.float16).save_pretrained(folder)
    pad = own.token_to_id("<pad>")
    dump(folder / "generation_config.json", {"eos_token_id": turn, "pad_token_id": pad})
    chat = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + part['text'] }}{% endfor %}"
        "{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    dump(folder / "chat_template.json", {"chat_template": chat})
    shape = {"patch_size": 14, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}
    dump(folder / "processor_config.json", {"processor_class": "LlavaProcessor", "image_token": "<image>", **shape})
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 3}
    steps = {"do_normalize": True, "do_rescale": True, "do_resize": True, "size": {"height": side, "width": side}}
    dump(folder / "preprocessor_config.json", {"image_processor_type": "SiglipImageProcessor", **steps, **pixels})
