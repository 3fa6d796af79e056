"""Rows -> `Prompt`s: the ONE place where templates, chat templates and the tokenizer meet a problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmrl.data.pictures import PictureReader
from llmrl.data.rows import PROMPT_NAMES, Row, image_parts, words
from llmrl.errors import DataError
from llmrl.settings.data import DataConfig, template_parts
from llmrl.types import Message, Prompt, content


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptReport:
    """What became of the rows. `too_long` are the ids of dropped rows; lengths are in tokens."""

    rows: int
    kept: int
    too_long: tuple[str, ...]
    longest: int
    mean_tokens: float


def to_prompts(
    rows: Sequence[Row], tokenizer: Any, config: DataConfig, *, reader: PictureReader | None = None
) -> tuple[list[Prompt], PromptReport]:
    """Apply the template and the chat template, tokenise, and drop what is longer than `config.max_prompt_tokens`.

    `tokenizer` is a transformers tokenizer, `reader` that of a model that sees. Images come where a row's messages have
    places for them, else before the first user turn. A chat prompt's special tokens come from its template alone, a plain
    prompt's from the tokenizer, so no BOS is doubled. `Prompt.columns` holds the row's columns, except for
    the prompt's own and the id. Raises DataError: no rows or none short enough, no chat template where one is needed,
    an unknown template field, images for a model that reads text only.
    """
    if not rows:
        raise DataError("there are no rows to make prompts of")
    shown = next((row for row in rows if row.images), None)
    if shown is not None and reader is None:
        raise DataError(
            f"{shown.origin} shows images and the model reads text only; take a vision-language model, or drop the column"
        )
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if config.chat is True and not has_template:
        raise DataError("data.chat is true but the tokenizer has no chat template; set data.chat to false or auto")
    chat = has_template if config.chat == "auto" else config.chat
    if config.system is not None and not chat:
        raise DataError("data.system needs a chat template and the tokenizer has none")
    messages = [_messages(row, config) for row in rows]
    if chat:
        texts = [_chat_text(tokenizer, turns) for turns in messages]
    else:
        texts = [_plain_text(row, turns, reader) for row, turns in zip(rows, messages, strict=True)]
    encoded = tokenizer(texts, add_special_tokens=not chat)["input_ids"]
    prompts, too_long, longest, total = [], [], 0, 0
    for row, turns, text, tokens in zip(rows, messages, texts, encoded, strict=True):
        if reader is not None:
            try:
                tokens = reader.expand(tokens, row.images)
            except DataError as error:
                raise DataError(f"{row.origin}: {error}") from error
        longest = max(longest, len(tokens))
        if len(tokens) > config.max_prompt_tokens:
            too_long.append(row.id)
            continue
        total += len(tokens)
        prompts.append(
            Prompt(
                id=row.id,
                tokens=tuple(tokens),
                text=text,
                answer=row.answer,
                messages=turns if chat else (),
                columns=_other_columns(row, config),
                media=row.images,
                source=row.source,
            )
        )
    if not prompts:
        raise DataError(
            f"all {len(rows)} prompts are longer than max_prompt_tokens={config.max_prompt_tokens} "
            f"(the longest has {longest}); raise data.max_prompt_tokens"
        )
    mean = total / len(prompts)
    return prompts, PromptReport(
        rows=len(rows), kept=len(prompts), too_long=tuple(too_long), longest=longest, mean_tokens=mean
    )


def _messages(row: Row, config: DataConfig) -> tuple[Message, ...]:
    """The row as chat messages: its own, or its text as one user turn, after an optional system message."""
    if isinstance(row.prompt, str):
        text = _filled(row, config.template)
        turns: tuple[Message, ...] = ({"role": "user", "content": content(text, len(row.images))},)
    elif config.template is not None:
        raise DataError(f"{row.origin}: data.template cannot be applied to a prompt that is a list of chat messages")
    else:
        turns = _with_images(row.prompt, len(row.images))
    if config.system is None:
        return turns
    if turns[0]["role"] == "system":
        raise DataError(f"{row.origin}: the prompt has a system message of its own; remove data.system")
    return ({"role": "system", "content": config.system}, *turns)


def _with_images(turns: tuple[Message, ...], images: int) -> tuple[Message, ...]:
    """The turns with places for images before the first user's text, if they have none."""
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), 0)
    if image_parts(turns) or not images:
        return turns
    turn = {"role": turns[first]["role"], "content": content(words(turns[first]["content"]), images)}
    return (*turns[:first], turn, *turns[first + 1 :])


def _filled(row: Row, template: str | None) -> str:
    assert isinstance(row.prompt, str)
    if template is None:
        return row.prompt
    values = {**row.columns, "prompt": row.prompt, "answer": row.answer, "id": row.id}
    pieces = []
    for literal, name in template_parts(template):
        pieces.append(literal)
        if name is None:
            continue
        if values.get(name) is None:
            state = "is empty" if name in values else "does not exist"
            raise DataError(f"{row.origin}: column {name!r} of data.template {state}; there are {', '.join(values)}")
        pieces.append(str(values[name]))
    return "".join(pieces)


def privileged_tokens(
    tokenizer: Any, template: str, prompts: Sequence[Prompt], *, limit: int
) -> Callable[[Prompt], tuple[int, ...]]:
    """A function from a prompt to the tokens of `template`, filled with its answer and columns, as plain text lines.

    For a value model alone: prompts do not carry these tokens, so no engine and no policy can see them. All of `prompts`
    are tried at once. Raises DataError for an unknown field and for a text of more than `limit` tokens.
    """

    def tokens(prompt: Prompt) -> tuple[int, ...]:
        values = {**prompt.columns, "answer": prompt.answer, "id": prompt.id}
        text = "".join(
            literal + (str(_value(values, name, prompt.id)) if name is not None else "")
            for literal, name in template_parts(template)
        )
        found = tuple(tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"])
        if len(found) > limit:
            raise DataError(
                f"{prompt.id}: critic.privileged makes {len(found)} tokens, more than critic.max_privileged_tokens={limit}; "
                "raise it, or drop such rows"
            )
        return found

    for prompt in prompts:
        tokens(prompt)
    return tokens


def _value(values: Mapping[str, Any], name: str, where: str) -> Any:
    if values.get(name) is None:
        raise DataError(f"{where}: column {name!r} of critic.privileged is not there; there are {', '.join(values)}")
    return values[name]


def _chat_text(tokenizer: Any, turns: tuple[Message, ...]) -> str:
    """A prompt that ends in an assistant's turn is continued, any other is answered."""
    from jinja2 import TemplateError

    unfinished = turns[-1]["role"] == "assistant"
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tokenize=False,
            add_generation_prompt=not unfinished,
            continue_final_message=unfinished,
        )
    except TemplateError as error:
        roles = ", ".join(str(turn["role"]) for turn in turns)
        raise DataError(
            f"the tokenizer's chat template refuses a conversation of the roles {roles}: {error}; a template without "
            "system messages wants data.system in data.template instead"
        ) from error
    return text


def _plain_text(row: Row, turns: tuple[Message, ...], reader: PictureReader | None) -> str:
    if not isinstance(row.prompt, str):
        raise DataError(f"{row.origin}: the prompt is a list of chat messages and no chat template is applied")
    before = reader.placeholder * len(row.images) if reader is not None else ""
    return before + words(turns[0]["content"])


def _other_columns(row: Row, config: DataConfig) -> dict[str, Any]:
    prompt_column = config.columns.get("prompt") or next(name for name in PROMPT_NAMES if name in row.columns)
    skipped = {prompt_column, config.columns.get("id", "id")}
    return {name: value for name, value in row.columns.items() if name not in skipped}
