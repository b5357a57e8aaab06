"""Pictures as model inputs, and a picture model built of two others: what the lessons on CLIP and LLaVA share.

:mod:`common.recipes.clip` and :mod:`common.recipes.llava` train the shipped checkpoints with the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.hardware import set_seed
from common.text import chat_features
from common.training import evaluating

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample, interpolate, max_pool2d

IMAGE = "<image>"
LONGEST = 160  # tokens of a conversation, patches included
_CONTENT = """{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}{{- '<image>' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}
{%- endif -%}"""
TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['role'] == 'assistant' -%}
{% generation %}CONTENT{{- '<|im_end|>' -}}{% endgeneration %}{{- '\n' -}}
{%- else -%}
CONTENT{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}""".replace("CONTENT", _CONTENT)


def as_tensor(images: list[Any]) -> torch.Tensor:
    """Pictures as ``(pictures, 3, height, width)`` between 0 (black) and 1 (white)."""
    return torch.stack([torch.from_numpy(np.array(image.convert("RGB"))) for image in images]).permute(0, 3, 1, 2) / 255


def outlines(pictures: torch.Tensor) -> torch.Tensor:
    """Where colours change within a pixel: ``(pictures, 1, height, width)``, 0 to 1."""
    contrast = max_pool2d(pictures, 3, 1, 1) + max_pool2d(-pictures, 3, 1, 1)
    return ((contrast.amax(1, keepdim=True) - 0.15) * 5).clamp(0, 1)


def vary(pictures: torch.Tensor, edges: torch.Tensor, small: float = 0.25, blur: int = 1) -> torch.Tensor:
    """Other drawings of the same thing: other outlines, colours, size, place, tilt, and slightly out of shape.

    Args:
        pictures: ``(pictures, 3, height, width)``, 0 to 1 on white.
        edges: Their :func:`outlines`.
        small: Share of them that is drawn small.
        blur: Pixels that become one before they are drawn.

    Returns:
        The same shape and range.
    """
    ink = _drawn_again(1 - pictures, edges)
    if blur > 1:
        ink = interpolate(ink, (ink.shape[2] // blur, ink.shape[3] // blur), mode="area")
    return 1 - _moved(ink, list(pictures.shape), small)


def _some(low: float, high: float, count: int, *shape: int) -> torch.Tensor:
    """Random numbers between two bounds, ``(count, *shape)``."""
    return low + (high - low) * torch.rand(count, *shape)


def _drawn_again(ink: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Other colours, some exchanged, some nearly white, and an outline that is thin, thick or absent."""
    count = len(ink)
    exchanged = ink.gather(1, torch.rand(count, 3).argsort(1)[:, :, None, None].expand_as(ink))
    ink = torch.where(torch.rand(count, 1, 1, 1) < 0.3, exchanged, ink)
    grey = ink.mean(1, keepdim=True)
    ink = ((grey + (ink - grey) * _some(0.2, 1.5, count, 1, 1, 1)) * _some(0.6, 1.3, count, 3, 1, 1)).clamp(0, 1)
    ink = torch.where(torch.rand(count, 1, 1, 1) < 0.2, ink * _some(0, 0.5, count, 1, 1, 1), ink)
    outline = torch.where(torch.rand(count, 1, 1, 1) < 0.5, max_pool2d(edges, 3, 1, 1), edges)
    return torch.maximum(ink, outline * _some(0, 1, count, 1, 1, 1).round() * _some(0.6, 1, count, 1, 1, 1))


def _moved(ink: torch.Tensor, shape: list[int], small: float) -> torch.Tensor:
    """Other size, place, tilt and proportions, and slightly bent; of the given shape."""
    count = len(ink)
    size = torch.where(torch.rand(count) < small, _some(0.4, 0.7, count), _some(0.8, 1.1, count))
    tilt, stretch, room = 0.12 * torch.randn(count), torch.exp(0.12 * torch.randn(count)), (1 - size).clamp(min=0.06)
    x, y = _some(-1, 1, count) * room, _some(-1, 1, count) * room
    wide, high = 1 / (size * stretch), stretch / size
    rows = [wide * tilt.cos(), -wide * tilt.sin(), -wide * x, high * tilt.sin(), high * tilt.cos(), -high * y]
    grid = affine_grid(torch.stack(rows, 1).view(count, 2, 3), shape, align_corners=False)
    bend = interpolate(0.045 * torch.randn(count, 2, 4, 4), shape[2:], mode="bicubic", align_corners=False)
    return grid_sample(ink, grid + bend.permute(0, 2, 3, 1), align_corners=False)


def embed(model: Any, processor: Any, *, images: Any = None, text: Any = None, batch: int = 256) -> torch.Tensor:
    """Unit vectors of pictures or of texts on the CPU, ``(how many, width)``."""
    items = list(images if images is not None else text)
    parts = []
    with evaluating(model):
        for start in range(0, len(items), batch):
            some = items[start : start + batch]
            if images is not None:
                found = model.get_image_features(**processor(images=some, return_tensors="pt").to(model.device))
            else:
                found = model.get_text_features(
                    **processor(text=some, padding=True, truncation=True, return_tensors="pt").to(model.device)
                )
            parts.append(torch.nn.functional.normalize(found.pooler_output, dim=-1).cpu())
    return torch.cat(parts)


def build_llava(clip: str | Path, chat: str | Path, *, seed: int = 42) -> tuple[Any, Any]:
    """A vision tower and a language model joined by a projector with random weights, and the processor that fits.

    Args:
        clip: A CLIP checkpoint; its vision tower is taken.
        chat: A causal language model's, with a chat template.
        seed: Of the projector and of the row for ``<image>``.

    Returns:
        The model in float32, in evaluation mode, and its processor, which pads on the right.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoProcessor,
        AutoTokenizer,
        CLIPVisionModel,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    set_seed(seed)
    vision: Any = CLIPVisionModel.from_pretrained(clip, dtype=torch.float32)
    language: Any = AutoModelForCausalLM.from_pretrained(chat, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(chat)
    tokenizer.add_tokens(IMAGE, special_tokens=True)
    tokenizer.padding_side = "right"
    tokenizer.chat_template = TEMPLATE  # the language model's, which now also takes content in parts, picture and text
    table = language.get_input_embeddings().weight
    language.resize_token_embeddings(max(len(tokenizer), len(table)), mean_resizing=False)
    side = vision.config.image_size // vision.config.patch_size
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=side**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    if not language.config.tie_word_embeddings:
        model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config = language.generation_config  # where the end tokens are noted
    processor = LlavaProcessor(
        image_processor=AutoProcessor.from_pretrained(clip).image_processor,
        tokenizer=tokenizer,
        patch_size=vision.config.patch_size,
        num_additional_image_tokens=1,  # the class token, which the strategy drops again
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
    )
    return model.eval(), processor


def features(processor: Any, messages: Sequence[dict[str, str]], patches: int) -> dict[str, list[int]]:
    """Token ids with ``<image>`` repeated for every patch, and labels on the answers and their end tokens only."""
    first = {**messages[0], "content": messages[0]["content"].replace(IMAGE, IMAGE * patches)}
    return chat_features(processor.tokenizer, [first, *messages[1:]], LONGEST, control=(IMAGE,))


def patches_of(model: Any) -> int:
    """How many vectors a picture becomes."""
    vision = model.config.vision_config
    return (vision.image_size // vision.patch_size) ** 2
