"""TRL's `environment_factory` object, unchanged: its public methods are tools, `reset` starts it, `get_reward` scores it.

    env: {name: trl, args: {factory: mymodule:WordGame}, turns: 8}

The policy calls tools as <tool_call>{"name": ..., "arguments": {...}}</tool_call> (the form of Qwen and Hermes), whose
schemas a system message lists; an answer without a call ends the episode. As in TRL, `reset` gets the data row's columns and
what it returns is added to the last user message, a tool that raises answers {"error": ...}, and the reward is `get_reward`'s
or that of a reward function, which sees the object as `environments`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmrl.envs.protocol import Turn
from llmrl.importing import load
from llmrl.types import Completion, Media, Message, Observation, Prompt

CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
TOLD = (
    'You may call tools, listed below by their JSON schemas: write <tool_call>{"name": ..., "arguments": {...}}'
    "</tool_call>. An answer without a call is your last.\n"
)


@dataclass(slots=True, kw_only=True)
class TRLEnvironment:
    """The object that `factory` (an import path) makes, called with `args`.

    `reward` is the import path of a TRL reward function, for objects without `get_reward`; a right answer counts as
    solved from `success` on.
    """

    prompt: Prompt
    seed: int = 0
    factory: str
    args: dict[str, Any] = field(default_factory=dict)
    reward: str = ""
    success: float = 1.0
    target: Any = field(init=False)
    said: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.target = load(self.factory, key="env.args.factory")(**self.args)
        if not callable(getattr(self.target, "reset", None)):
            raise ValueError(f"env.args.factory={self.factory}: what it makes has no method reset")
        if not self.reward and not hasattr(self.target, "get_reward"):
            raise ValueError(
                f"env.args.factory={self.factory}: no get_reward; name a TRL reward function with env.args.reward"
            )

    def tools(self) -> dict[str, Callable[..., Any]]:
        """The public methods, by name, as TRL finds them: on the class, without `reset` and `get_reward`."""
        names = [name for name, _ in inspect.getmembers(type(self.target), predicate=inspect.isfunction)]
        hidden = ("reset", "get_reward")
        return {name: getattr(self.target, name) for name in names if name not in hidden and not name.startswith("_")}

    def start(self) -> Observation:
        """The row's conversation with the tools in its system message and what `reset` returned in its last message."""
        from transformers.utils import get_json_schema

        messages: list[Message] = [dict(message) for message in self.prompt.messages]
        messages = messages or [{"role": "user", "content": self.prompt.text}]
        seen = self.target.reset(**{**self.prompt.columns, "prompt": messages})
        told = TOLD + "\n".join(json.dumps(get_json_schema(tool)) for tool in self.tools().values())
        if messages[0]["role"] == "system":
            messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{told}"}
        else:
            messages.insert(0, {"role": "system", "content": told})
        content, media = parts_of(seen)
        if content:
            before = messages[-1]["content"]
            if isinstance(before, str) and not isinstance(content, str):
                before = [{"type": "text", "text": before}]
            messages[-1] = {**messages[-1], "content": before + content}
        self.said = messages
        return Observation(messages=tuple(messages), media=media)

    def act(self, completion: Completion) -> Turn:
        """The tools' answers, or the end with its reward."""
        calls = CALL.findall(completion.text)
        self.said.append({"role": "assistant", "content": completion.text})
        if not calls:
            reward = self._reward()
            return Turn(reward=reward, info={"success": reward >= self.success, "tools": len(self.said) // 2 - 1})
        found = [self._called(call) for call in calls]
        messages = tuple({"role": "tool", "name": name, "content": parts_of(result)[0]} for name, result in found)
        self.said += messages
        failed = any(isinstance(result, dict) and set(result) == {"error"} for _, result in found)
        media = tuple(item for _, result in found for item in parts_of(result)[1])
        flags = ("failed_tool",) if failed else ()
        return Turn(next=Observation(messages=messages, media=media), flags=flags, info={"success": False})

    def _called(self, text: str) -> tuple[str, Any]:
        """(the tool's name, what it answered)."""
        try:
            call = json.loads(text)
            name, arguments = call["name"], call.get("arguments", {})
            tool = self.tools()[name]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "unknown", {"error": f"no call of a tool: {text.strip()[:200]}; there are {', '.join(self.tools())}"}
        try:
            return name, _waited(tool(**arguments))
        except Exception as error:  # noqa: BLE001  # the policy is told, as in TRL
            return name, {"error": str(error)}

    def _reward(self) -> float:
        if not self.reward:
            return float(_waited(self.target.get_reward()))
        asked = len(self.said) - sum(message["role"] in ("assistant", "tool") for message in self.said)
        columns = {name: [value] for name, value in self.prompt.columns.items()}
        function = load(self.reward, key="env.args.reward")
        found = function(
            **{
                **columns,
                "prompts": [self.said[:asked]],
                "completions": [self.said[asked:]],
                "environments": [self.target],
            }
        )
        return float(_waited(found)[0])


def parts_of(result: Any) -> tuple[Any, tuple[Media, ...]]:
    """(content of a message, its pictures) for what a tool or `reset` returned: a text, or a list of content parts."""
    if not isinstance(result, list):
        return "" if result is None else str(result), ()
    media = tuple(Media.image(part["image"]) for part in result if part.get("type") == "image")
    return [{"type": "image"} if part.get("type") == "image" else dict(part) for part in result], media


def _waited(found: Any) -> Any:
    return asyncio.run(found) if inspect.iscoroutine(found) else found
