"""The outcome critic: a token classifier that says what will become of a program (CodeRL, arXiv:2207.01780, section 3.2).

A linear head gives every token of a program one logit per outcome class, from the state that has read the token; pooled
over the program they predict its outcome. The states are those of a causal LM of the critic's own, or the policy's, which
the critic never moves. Saved it is a plain Hugging Face folder (`AutoModelForTokenClassification`, safetensors), and the
same folder opens it for training, evaluation and sampling.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from llmrl.batch import Batch
from llmrl.errors import ConfigError
from llmrl.losses import pooled_logits
from llmrl.policy.critic import drop_output_layer
from llmrl.policy.forward import ForwardMode, forward_values
from llmrl.policy.model import Policy, check_tokenizer, load_policy
from llmrl.settings.model import ModelConfig, OutcomeCriticConfig, Pool

OUTCOMES = ("compile_error", "runtime_error", "failed_test", "passed_test")  # numbered as rewards number them
BINARY = ("not_passed", "passed")
PASSED = len(OUTCOMES) - 1  # the last class is that of a program that passes, in either list
HEAD_NAMES = ("score", "classifier")  # what transformers calls the head of a token classifier

States = Callable[[Batch], Tensor]  # hidden states [B, T, D] in which the masked tokens were chosen


class OutcomeHead(nn.Module):
    """hidden [..., D] -> logits [..., K], float32 (float64 for float64). It starts at zero: no outcome is likelier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        return nn.functional.linear(hidden, self.weight.to(hidden.dtype), self.bias.to(hidden.dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCritic:
    """The head and, unless it reads the policy's states, the model under it."""

    head: OutcomeHead
    pool: Pool = "max"
    model: Policy | None = None  # None: the policy's own hidden states
    mode: ForwardMode = "packed"  # of its own model
    sharded: Callable[[Batch], Tensor] | None = None  # its own model's logits, if ranks share its weights

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outcomes, by class; the last is that of a program that passes."""
        return OUTCOMES if self.head.bias.shape[0] == len(OUTCOMES) else BINARY

    def labels(self, outcome: Tensor) -> Tensor:
        """The class [B] of rows with these outcomes [B] in 0..3; what has none (-1) keeps -1."""
        return outcome if self.classes == OUTCOMES else torch.where(outcome < 0, -1, (outcome == PASSED).long())

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """What its optimizer moves; a shared backbone is the policy's."""
        own = [] if self.model is None else self.model.trainable()
        return own + [(f"outcome_head.{name}", parameter) for name, parameter in self.head.named_parameters()]

    def logits(self, batch: Batch, states: States | None = None) -> Tensor:
        """[B, T, K] with gradient: index t gets the logits of the state that has read token t. Arbitrary outside the mask.

        `states` gives the policy's states, for a critic without a model of its own.
        """
        seen = after_each_token(batch)
        if self.model is None:
            if states is None:
                raise ValueError("an outcome critic on the policy's states needs them")
            return self.head(states(seen))[:, 1:]
        if self.sharded is not None:
            return self.sharded(seen)[:, 1:]
        return forward_values(self.model.causal_lm, seen, mode=self.mode, value_head=self.head)[:, 1:]

    def join_gather(self, policy: Policy) -> None:
        """Take part in the gathering of a rank that saves."""
        (self.model or policy).join_gather()

    def save(self, folder: Path, policy: Policy) -> None:
        """Write a token classifier that transformers opens as it is; `policy` is what a shared critic reads."""
        from transformers import AutoModelForTokenClassification

        owner = self.model or policy
        config: Any = copy.deepcopy(owner.causal_lm.config)
        config.update({"classifier_dropout": 0.0, "outcome_pool": self.pool})
        config.id2label = dict(enumerate(self.classes))
        config.label2id = {name: number for number, name in enumerate(self.classes)}
        with torch.device("meta"):
            shell: Any = AutoModelForTokenClassification.from_config(config)
        wanted = set(shell.state_dict())
        state = {name: x.cpu().contiguous() for name, x in owner.weights() if name in wanted}
        named = {name.rpartition(".")[2]: name for name in wanted - set(state)}
        if set(named) != {"weight", "bias"}:
            raise ConfigError(
                f"{owner.source} cannot be written as a token classifier: {sorted(wanted - set(state))[:4]} have no value"
            )
        state |= {named[key]: x.detach().cpu().contiguous() for key, x in self.head.named_parameters()}
        folder.mkdir(parents=True, exist_ok=True)
        shell.save_pretrained(folder, state_dict=state)
        owner.tokenizer.save_pretrained(folder)


def after_each_token(batch: Batch) -> Batch:
    """`batch` one token longer, with every mask one place to the right: the state in which token t + 1 is chosen is the
    one that has read token t, whatever token t + 1 is.
    """
    return replace(
        batch,
        tokens=pad(batch.tokens, (0, 1)),
        mask=pad(batch.mask, (1, 0)),
        length=batch.length + 1,
    )


def load_outcome_critic(
    config: OutcomeCriticConfig, base: ModelConfig, policy: Policy, *, source: str, device: torch.device, seed: int
) -> OutcomeCritic:
    """The outcome critic that a recipe asks for, in the policy's precision; one of its own is loaded from `source`.

    A folder that `OutcomeCritic.save` wrote brings its head along. Raises ConfigError for a model with another tokenizer
    than the policy's, and for a folder whose classes or pooling are not those of `config`.
    """
    names = BINARY if config.binary else OUTCOMES
    if config.kind == "shared":
        return OutcomeCritic(head=OutcomeHead(policy.width, len(names)).to(device), pool=config.pool)
    own = load_policy(base.model_copy(update={"lora": config.lora}), source=source, device=device, seed=seed)
    check_tokenizer("outcome_critic.path", own, policy)
    drop_output_layer(own.causal_lm)
    head = OutcomeHead(own.width, len(names)).to(device)
    stored = stored_critic(Path(source))
    if stored is not None:
        if stored.classes != names or stored.pool != config.pool:
            raise ConfigError(
                f"{source} has the classes {', '.join(stored.classes)} and pool={stored.pool}, and the recipe asks for "
                f"{', '.join(names)} and pool={config.pool}; set outcome_critic.binary and outcome_critic.pool"
            )
        head.load_state_dict(stored.head)
    return OutcomeCritic(head=head, pool=config.pool, model=own)


def open_outcome_critic(source: str, *, dtype: str, device: torch.device) -> OutcomeCritic:
    """The critic in a folder that `OutcomeCritic.save` wrote, to be asked and not trained. ConfigError for another folder."""
    stored = stored_critic(Path(source))
    if stored is None:
        raise ConfigError(
            f"{source} is no outcome critic; name a folder such as runs/<name>/checkpoints/step-000050/outcome_critic"
        )
    model = load_policy(ModelConfig(path=source, dtype=dtype), source=source, device=device, seed=0)
    model.model.requires_grad_(False)
    head = OutcomeHead(model.width, len(stored.classes)).to(device).requires_grad_(False)
    head.load_state_dict(stored.head)
    return OutcomeCritic(head=head, pool=stored.pool, model=model, mode="plain")


@torch.no_grad()
def pass_probabilities(
    critic: OutcomeCritic, programs: Sequence[tuple[Sequence[int], Sequence[int]]], *, tokens_at_once: int = 4096
) -> list[tuple[list[float], float]]:
    """Of each (prompt tokens, program tokens): (that it passes, after each of its T tokens [T]; that it does on the whole).

    Programs of similar length are asked together. One without tokens gives ([], NaN).
    """
    found: list[tuple[list[float], float]] = [([], float("nan"))] * len(programs)
    order = sorted((n for n, (_, own) in enumerate(programs) if len(own)), key=lambda n: sum(map(len, programs[n])))
    while order:
        width = sum(map(len, programs[order[-1]]))
        chosen = [order.pop() for _ in range(min(len(order), max(1, tokens_at_once // width)))]
        batch = _batch([programs[n] for n in chosen], width)
        logits = critic.logits(batch)
        mask = batch.mask.to(logits.device)
        whole = pooled_logits(logits, mask, pool=critic.pool).softmax(-1)[:, -1].tolist()
        prefixes = logits.softmax(-1)[:, :, -1]
        for row, n in enumerate(chosen):
            found[n] = (prefixes[row][mask[row]].tolist(), whole[row])
    return found


def _batch(programs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int) -> Batch:
    """Rows of prompt and program, of at most `width` tokens, for a forward pass alone."""
    rows = len(programs)
    tokens, mask = torch.zeros(rows, width, dtype=torch.int64), torch.zeros(rows, width, dtype=torch.bool)
    for row, (prompt, own) in enumerate(programs):
        tokens[row, : len(prompt) + len(own)] = torch.tensor([*prompt, *own])
        mask[row, len(prompt) : len(prompt) + len(own)] = True
    blank = torch.zeros(rows, width)
    length = torch.tensor([len(prompt) + len(own) for prompt, own in programs])
    return Batch(
        tokens=tokens, length=length, mask=mask, logprobs=blank, step=mask.long() - 1, rewards=blank,
        group=torch.arange(rows), score=torch.zeros(rows), prompt_length=torch.tensor([len(p) for p, _ in programs]),
        tokens_total=torch.ones(()), sequences_total=torch.ones(()),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a critic's folder holds beside the model: the head in float32, its classes, and how it pools."""

    head: dict[str, Tensor]
    classes: tuple[str, ...]
    pool: Pool


def stored_critic(folder: Path) -> Stored | None:
    """The critic in `folder`; None if it is another model."""
    from safetensors import safe_open

    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    if "outcome_pool" not in config:
        return None
    head: dict[str, Tensor] = {}
    for part in sorted(folder.glob("*.safetensors")):
        with safe_open(part, framework="pt") as tensors:
            named = {name: name.rpartition(".") for name in tensors.keys()}  # noqa: SIM118 - it is no mapping
            head |= {key: tensors.get_tensor(x).float() for x, (owner, _, key) in named.items() if owner in HEAD_NAMES}
    labels = {int(number): str(name) for number, name in config["id2label"].items()}
    return Stored(head=head, classes=tuple(labels[number] for number in sorted(labels)), pool=config["outcome_pool"])


def quality(logits: Sequence[Sequence[float]], labels: Sequence[int], classes: Sequence[str]) -> dict[str, float]:
    """How good predictions are: pooled logits [N, K] against classes [N]. {} without any.

    accuracy, and accuracy/<class> of the programs of each class; majority, the accuracy of always saying the most
    frequent one; nll in nats; calibration_error, the mean gap between confidence and accuracy in ten bins of confidence
    (Guo et al. 2017, arXiv:1706.04599); confusion/<class>/<predicted class> as shares of all programs.

    >>> found = quality([[0.0, 2.0], [0.0, 2.0], [3.0, 0.0]], [1, 0, 0], ["no", "yes"])
    >>> round(found["accuracy"], 3), found["accuracy/no"], found["confusion/no/yes"] == 1 / 3
    (0.667, 0.5, True)
    """
    if not labels:
        return {}
    table, truth = torch.tensor(logits, dtype=torch.float64), torch.tensor(labels)
    chances = table.softmax(-1)
    confidence, said = chances.max(-1)
    right = said == truth
    counts = torch.zeros(len(classes), len(classes)).index_put_((truth, said), torch.ones(len(truth)), accumulate=True)
    bins = (confidence * 10).clamp(max=9).long()
    gaps = [(right[bins == b].double() - confidence[bins == b]).sum().abs() for b in bins.unique()]
    found = {
        "accuracy": right.double().mean(),
        "majority": counts.sum(1).max() / len(truth),
        "nll": -chances.gather(1, truth[:, None]).log().mean(),
        "calibration_error": torch.stack(gaps).sum() / len(truth),
    }
    for row, name in enumerate(classes):
        if counts[row].sum():
            found[f"accuracy/{name}"] = counts[row, row] / counts[row].sum()
        found |= {f"confusion/{name}/{other}": counts[row, at] / len(truth) for at, other in enumerate(classes)}
    return {name: float(value) for name, value in found.items()}
