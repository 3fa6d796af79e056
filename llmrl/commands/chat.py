"""`llmrl chat`: talk with a run's policy in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.console import Console

from llmrl.commands.arguments import AnyModel, Step

HELP = "/reset starts over, /system TEXT sets the system prompt, /temperature T the temperature, /quit ends"


def chat(
    model: AnyModel,
    system: Annotated[str | None, typer.Option(help="System prompt; default: the recipe's.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    step: Step = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Chat with a run's policy: several turns, answers as they are written. Ends with /quit or Ctrl-D."""
    from pathlib import Path

    from llmrl.eval.models import find_model
    from llmrl.policy.hub import fetch

    path = find_model(model, step=step).path  # a misspelt name is answered before torch is imported
    path = path if Path(path).is_dir() else str(fetch(path))
    import torch
    from transformers import AutoTokenizer

    from llmrl.commands.train import quiet_transformers
    from llmrl.hardware import best_precision
    from llmrl.policy.loading import open_causal_lm
    from llmrl.policy.model import model_length
    from llmrl.settings.load import load_recipe

    quiet_transformers()
    recipe = Path(model) / "recipe.yaml"
    if system is None and recipe.is_file():
        system = load_recipe(recipe).data.system
    loaded, notes = open_causal_lm(path, getattr(torch, best_precision().dtype))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    talk = Conversation(
        loaded.to(device).eval(), AutoTokenizer.from_pretrained(path, trust_remote_code=False),
        system=system, temperature=temperature, max_tokens=max_tokens, length=model_length(path),
    )  # fmt: skip
    console = Console(soft_wrap=True)
    for note in notes:
        console.print(note, markup=False, highlight=False)
    if not talk.chats:
        console.print("the tokenizer has no chat template: your text is continued, and turns are not remembered")
    console.print(f"{path}. {HELP}", markup=False, highlight=False)
    run(talk, lines(), console)


def lines() -> Iterator[str]:
    """What is typed, until Ctrl-D."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def run(talk: Conversation, typed: Iterable[str], console: Console) -> None:
    """Answer every line of `typed`."""
    for line in typed:
        word, _, rest = line.strip().partition(" ")
        if word == "/quit":
            return
        if word in ("/reset", "/system"):
            talk.system = rest or None if word == "/system" else talk.system
            talk.turns.clear()
        elif word == "/temperature" and rest.replace(".", "", 1).isdigit():
            talk.temperature = float(rest)
        elif word.startswith("/"):
            console.print(HELP, markup=False, highlight=False)
        elif word:
            for piece in talk.answer(line):
                console.print(piece, end="", markup=False, highlight=False)
            console.print()


@dataclass(slots=True, eq=False)
class Conversation:
    """What was said so far, and the model that answers. `model` and `tokenizer` are transformers'."""

    model: Any
    tokenizer: Any
    system: str | None = None
    temperature: float = 0.7
    max_tokens: int = 512
    length: int | None = None  # of the model's context, in tokens
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def chats(self) -> bool:
        """Whether there is a chat template; without one the text itself is continued."""
        return bool(self.tokenizer.chat_template)

    def answer(self, text: str) -> Iterator[str]:
        """The answer to `text`, piece by piece as it is generated; both join the conversation, if it is not full."""
        from threading import Thread

        from transformers import TextIteratorStreamer

        self.turns.append({"role": "user", "content": text})
        tokens = self._prompt(text).to(self.model.device)
        room = self.max_tokens if self.length is None else min(self.max_tokens, self.length - tokens.shape[1])
        if room < 1:
            self.turns.pop()
            yield f"(the conversation has {tokens.shape[1]} tokens and the model reads {self.length}; /reset starts over)"
            return
        stream = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        how: dict[str, Any] = {"do_sample": self.temperature > 0, "max_new_tokens": room, "streamer": stream}
        if self.temperature > 0:
            how["temperature"] = self.temperature
        work = Thread(target=self.model.generate, args=(tokens,), kwargs={"attention_mask": tokens > -1, **how})
        work.start()
        said = []
        for piece in stream:
            said.append(piece)
            yield piece
        work.join()
        self.turns.append({"role": "assistant", "content": "".join(said)})

    def _prompt(self, text: str) -> Any:
        if not self.chats:
            return self.tokenizer(text, return_tensors="pt")["input_ids"]
        start = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.tokenizer.apply_chat_template(
            [*start, *self.turns], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
