"""Reward-model scorer: a Hugging Face sequence classifier reads the conversation and its one logit is the reward.

torch and transformers are imported when the first batch is scored. Run it in process (it may use a GPU); it is batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmrl.types import Score, Trajectory

_loaded: dict[tuple[str, str], tuple[Any, Any]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModel:
    """The classifier's logit (or its sigmoid), for `prompt + completion` in the model's own chat template if it has
    one.

    model: local folder or hub id of a sequence classifier with one label. max_tokens: longer texts are cut on the left
    and flagged "cut". scale: "logit" or "sigmoid".
    """

    model: str
    max_tokens: int = 2048
    batch_size: int = 16
    scale: Literal["logit", "sigmoid"] = "logit"
    device: str = "cpu"
    extra: dict[str, Any] = field(default_factory=dict)

    def _load(self) -> tuple[Any, Any]:
        key = (self.model, self.device)
        if key not in _loaded:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
            network = AutoModelForSequenceClassification.from_pretrained(
                self.model, trust_remote_code=False, **self.extra
            )
            if network.config.num_labels != 1:
                raise ValueError(f"{self.model} has {network.config.num_labels} labels; a reward model has one")
            if tokenizer.pad_token_id is None:
                tokenizer.pad_token = tokenizer.eos_token
            network.config.pad_token_id = tokenizer.pad_token_id
            tokenizer.truncation_side = "left"
            _loaded[key] = (tokenizer, network.to(self.device).eval())
        return _loaded[key]

    def _text(self, trajectory: Trajectory, tokenizer: Any) -> str:
        messages = [dict(m) for m in trajectory.prompt.messages]
        if messages and tokenizer.chat_template:
            messages.append({"role": "assistant", "content": trajectory.text})
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        return trajectory.prompt.text + trajectory.text

    def __call__(self, trajectory: Trajectory) -> Score:
        return self.score_batch([trajectory])[0]

    def score_batch(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """One forward a `batch_size` rows, in order. Raises what loading raises, and ValueError for several labels."""
        import torch

        tokenizer, network = self._load()
        scores: list[Score] = []
        for start in range(0, len(trajectories), self.batch_size):
            texts = [self._text(t, tokenizer) for t in trajectories[start : start + self.batch_size]]
            lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
            batch = tokenizer(
                texts,
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                add_special_tokens=False,
            )
            with torch.inference_mode():
                logits = network(**{k: v.to(self.device) for k, v in batch.items()}).logits[:, 0].float()
            values = torch.sigmoid(logits) if self.scale == "sigmoid" else logits
            for value, length in zip(values.tolist(), lengths):
                scores.append(Score(value=value, flags=("cut",) if length > self.max_tokens else ()))
        return scores

    def validate(self) -> None:
        """Raises ValueError if scoring the same text twice, alone and in a padded batch, gives different values."""
        from llmrl.rewards.validation import trajectory_of

        short, long = trajectory_of("Yes."), trajectory_of("A much longer answer, with many more words in it.")
        alone, padded = self(short).value, self.score_batch([short, long])[0].value
        if alone is None or padded is None or abs(alone - padded) > 1e-2 * max(1.0, abs(alone)):
            raise ValueError(f"{self.model} gives {alone} alone and {padded} in a padded batch")
