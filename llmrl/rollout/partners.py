"""The other engines of a run: frozen models that environments ask by the names of the recipe's `engines`.

    {model: folder}            another model, loaded here
    {model: base}              the policy's own weights with its LoRA adapter switched off: no second copy
    {urls: [http://...]}       OpenAI-compatible servers

The same question is asked once: siblings that share one get one answer, and a greedy answer is remembered for the whole
run, in `partners/<name>-<rank>.jsonl` of the run folder, so that a resumed run hears what it heard before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from llmrl.data.conversation import Renderer
from llmrl.envs.protocol import Ask
from llmrl.errors import ConfigError
from llmrl.hardware import dtype_here
from llmrl.policy.model import Policy, load_tokenizer
from llmrl.rollout.build import build_engine
from llmrl.rollout.engine import EngineSettings
from llmrl.rollout.native import NativeEngine
from llmrl.rollout.process import ProcessEngine
from llmrl.rollout.servers import endpoints
from llmrl.seeding import key
from llmrl.settings.env import PartnerConfig
from llmrl.settings.recipe import Recipe
from llmrl.types import Completion, Request, Sampling, StatusKind


class Answering(Protocol):
    """The part of an engine that partners need."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...

    def close(self) -> None: ...


class Partner:
    """An engine with frozen weights, its own tokenizer's `renderer`, and a memory of its greedy answers (in `file`).

    `max_length` bounds question plus answer, in tokens.
    """

    def __init__(self, engine: Answering, renderer: Renderer, *, max_length: int, file: Path | None = None) -> None:
        self._engine, self._renderer, self._max_length, self._file = engine, renderer, max_length, file
        self._known: dict[str, str | None] = {}
        if file is not None and file.is_file():
            for line in _whole_lines(file):
                self._known |= json.loads(line)

    def answers(self, asks: Sequence[tuple[Ask, int]]) -> list[tuple[str, ...] | None]:
        """The texts that answer each question, drawn with the seed beside it; None if the engine failed. Equal requests
        are made once.
        """
        requests = [self._requests(ask, seed) for ask, seed in asks]
        names = [[name_of(request) for request in own] for own in requests]
        missing = {
            name: request
            for own, said in zip(requests, names, strict=True)
            for request, name in zip(own, said, strict=True)
            if name not in self._known
        }
        completions = self._engine.generate(list(missing.values())) if missing else []
        new = {
            name: None if completion.status.kind is StatusKind.ERROR else completion.text
            for name, completion in zip(missing, completions, strict=True)
        }
        everything = self._known | new
        self._remember({name: text for name, text in new.items() if not missing[name].sampling.temperature})
        return [_all_of([everything[name] for name in own]) for own in names]

    def close(self) -> None:
        self._engine.close()

    def _requests(self, ask: Ask, seed: int) -> list[Request]:
        """One request a sample; the draws of the second and later ones are keyed anew."""
        tokens, _ = self._renderer.first(ask.messages)
        room = max(1, min(ask.max_tokens, self._max_length - len(tokens)))
        how = Sampling(max_tokens=room, temperature=ask.temperature)
        seeds = [seed if number == 0 else key(seed, number) for number in range(ask.samples)]
        return [Request(tokens=tokens, sampling=replace(how, seed=own)) for own in seeds]

    def _remember(self, texts: dict[str, str | None]) -> None:
        texts = {name: text for name, text in texts.items() if text is not None}
        self._known |= texts
        if self._file is not None and texts:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(texts) + "\n")


def _whole_lines(file: Path) -> list[bytes]:
    """The lines of `file`; one that a kill has torn is cut off, and its batch is asked again, whole."""
    stored = file.read_bytes()
    end = stored.rfind(b"\n") + 1
    if end < len(stored):
        os.truncate(file, end)
    return stored[:end].splitlines()


def _all_of(texts: Sequence[str | None]) -> tuple[str, ...] | None:
    known = tuple(text for text in texts if text is not None)
    return known if len(known) == len(texts) else None


def name_of(request: Request) -> str:
    """A short name that equal questions share; the seed is no part of a greedy one."""
    how = request.sampling
    drawn = (how.temperature, how.top_p, how.top_k, how.min_p, how.seed) if how.temperature else ()
    text = repr((request.prefix, how.max_tokens, how.stop, drawn))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class WithoutAdapter:
    """The policy's own weights with its adapter off while they answer."""

    def __init__(self, engine: Answering, model: Any) -> None:
        self._engine, self._model = engine, model

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        with self._model.disable_adapter():
            return self._engine.generate(requests)

    def close(self) -> None:
        self._engine.close()


def open_partners(recipe: Recipe, folders: Mapping[str, str], policy: Policy, *, rank: int) -> dict[str, Partner]:
    """The recipe's `engines`, started; `folders` are those of the models that are loaded here.

    Raises ConfigError for `base` without an adapter, EngineError for a server that does not answer.
    """
    chat = None if recipe.data.chat == "auto" else recipe.data.chat
    found = {}
    with ExitStack() as started:
        for name, config in recipe.engines.items():
            tokenizer = policy.tokenizer
            if config.tokenizer or name in folders:
                tokenizer = load_tokenizer(config.tokenizer or folders[name])
            engine = _engine(recipe, name, config, folders, policy, tokenizer)
            started.callback(engine.close)
            found[name] = Partner(
                engine, Renderer(tokenizer, chat=chat), max_length=recipe.model.max_length,
                file=recipe.run_dir / "partners" / f"{name}-{rank}.jsonl",
            )  # fmt: skip
        started.pop_all()
    return found


def _engine(
    recipe: Recipe, name: str, config: PartnerConfig, folders: Mapping[str, str], policy: Policy, tokenizer: Any
) -> Answering:
    if config.urls:
        return endpoints(config.urls, tokenizer=tokenizer, model=config.model or None, concurrency=config.max_sequences)
    settings = EngineSettings(
        kind=config.engine, model=folders.get(name, policy.source), dtype=dtype_here(recipe.model.dtype),
        max_length=recipe.model.max_length, max_sequences=config.max_sequences,
    )  # fmt: skip
    if name in folders:
        if config.engine == "vllm":
            return ProcessEngine(settings, log=recipe.run_dir / f"engine-{name}.log")
        return build_engine(settings)
    why = (
        "there is no model.lora" if not policy.lora
        else "its weights are sharded" if policy.unshard is not None
        else f"it trains meanwhile (rollout.max_staleness={recipe.rollout.max_staleness})" if recipe.rollout.max_staleness
        else ""
    )  # fmt: skip
    if why:
        raise ConfigError(
            f"engines.{name}.model=base is the policy with its adapter off, and {why}; name a folder, such as "
            f"{policy.source}"
        )
    own = NativeEngine(replace(settings, kind="native"), model=policy.causal_lm, tokenizer=policy.tokenizer)
    return WithoutAdapter(own, policy.model)
