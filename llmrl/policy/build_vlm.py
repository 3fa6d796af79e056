"""A small vision-language model from a text model: the text part as it is, a new vision tower and projector, no training.

The architecture is Idefics3 (Laurençon et al. 2024, arXiv:2408.12637), as in SmolVLM: a ViT reads patches, groups of
`scale` x `scale` of its outputs are laid side by side and projected to one token of the text part. The new weights depend
on the seed alone, so that the same text model and seed give the same folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGE, AROUND, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
ROWS = 16  # embedding rows are padded to a multiple of this

# Before a chat template that knows text only: contents that are lists of parts become text with image tokens.
PARTS = (
    "{%- macro flat(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}{%- set all = namespace(turns=[]) -%}{%- for m in messages -%}"
    "{%- set all.turns = all.turns + [{'role': m['role'], 'content': flat(m['content'])}] -%}"
    "{%- endfor -%}{%- set messages = all.turns -%}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eyes:
    """Sizes of a vision tower. An image is resized to `image` x `image` pixels and becomes (image / patch / scale)^2
    tokens.
    """

    image: int = 64
    patch: int = 8
    scale: int = 2
    width: int = 128
    layers: int = 4
    heads: int = 2

    @property
    def tokens(self) -> int:
        return (self.image // self.patch // self.scale) ** 2


def build_vlm(text: Path, target: Path, *, seed: int, eyes: Eyes | None = None) -> None:
    """Write the vision-language model around the text model in folder `text` to folder `target`, with its processor."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Idefics3ForConditionalGeneration

    eyes = eyes or Eyes()
    tokenizer = AutoTokenizer.from_pretrained(text, trust_remote_code=False)
    language: Any = AutoModelForCausalLM.from_pretrained(text, trust_remote_code=False)
    processor = _processor(tokenizer, eyes)
    rows = -(-len(processor.tokenizer) // ROWS) * ROWS
    language.resize_token_embeddings(max(rows, language.config.vocab_size), mean_resizing=False)
    known = len(AutoTokenizer.from_pretrained(text, trust_remote_code=False))
    with torch.no_grad():  # a new token begins as the average word
        for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
            layer.weight[known:] = layer.weight[:known].float().mean(0).to(layer.weight.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Idefics3ForConditionalGeneration(_config(language.config, processor, eyes))
    model.model.text_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.to(language.dtype)
    model.generation_config = language.generation_config
    model.save_pretrained(target)
    processor.save_pretrained(target)


def _processor(tokenizer: Any, eyes: Eyes) -> Any:
    from transformers import Idefics3ImageProcessorPil, Idefics3Processor

    template = tokenizer.chat_template
    if template:
        tokenizer.chat_template = PARTS + template
    tokenizer.add_tokens([AROUND, IMAGE, GLOBAL], special_tokens=True)
    size = {"longest_edge": eyes.image}
    images = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    return Idefics3Processor(images, tokenizer, image_seq_len=eyes.tokens, chat_template=tokenizer.chat_template)


def _config(text: Any, processor: Any, eyes: Eyes) -> Any:
    from transformers import Idefics3Config

    return Idefics3Config(
        text_config={name: value for name, value in text.to_dict().items() if name != "_name_or_path"},
        vision_config={
            "image_size": eyes.image,
            "patch_size": eyes.patch,
            "hidden_size": eyes.width,
            "intermediate_size": 4 * eyes.width,
            "num_hidden_layers": eyes.layers,
            "num_attention_heads": eyes.heads,
        },
        scale_factor=eyes.scale,
        image_token_id=processor.image_token_id,
        tie_word_embeddings=bool(text.tie_word_embeddings),
        pad_token_id=text.pad_token_id,
    )
