"""What algorithms see: `Batch` (tensors of one update), `Output` (what the policy's forward gave) and `Loss`.

All three are frozen; a stage that adds something returns a new object (`dataclasses.replace`). Two groups of two
completions, prompt "P0 P1", in a batch of B=4 rows and T=5:

    tokens  P0 P1 a  b  -      mask 0 0 1 1 0     group 0   score 1.0
            P0 P1 c  -  -           0 0 1 0 0           0         0.0
            Q0 d  e  f  g           0 1 1 1 1           1         0.0
            Q0 h  -  -  -           0 1 0 0 0           1         0.0

    tokens_total = 2 + 1 + 4 + 1 = 8, the one denominator, over all ranks and micro-batches of the update.

A batch stays in the host's memory, where rows are chosen and laid out; a micro-batch goes to the model's device once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, get_type_hints, runtime_checkable

from llmrl.later import torch

if TYPE_CHECKING:
    from torch import Tensor, device


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a field of a `Batch` is selected and joined; every tensor field carries one.

    `axis` total is [], one number for the whole update; row is [B]; token is [B, T], cut with the rows; own is [B, P],
    with a width of its own. `fill` pads rows that are widened. The numbers of a `key` mean only "same or not" within a
    batch, so batches that are joined get different ones.
    """

    axis: Literal["total", "row", "token", "own"]
    fill: float = 0
    key: bool = False

    def selected(self, tensor: Tensor, index: Tensor, width: int) -> Tensor:
        """The rows `index` [N] of the field, [N, width] at most for tokens."""
        if self.axis == "total":
            return tensor
        rows = tensor[index]
        return rows[:, :width] if self.axis == "token" else rows

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """The rows of several batches under each other; a total is that of the first."""
        if self.axis == "total":
            return tensors[0]
        if self.key:
            starts = [0]
            for tensor in tensors:
                starts.append(starts[-1] + (int(tensor.max()) + 1 if tensor.numel() else 0))
            tensors = [tensor + start for tensor, start in zip(tensors, starts)]
        if self.axis == "row":
            return torch.cat(list(tensors))
        width = max(tensor.shape[1] for tensor in tensors)
        return torch.cat(
            [torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=self.fill) for tensor in tensors]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """An image as the model's processor made it: arguments of the model's forward pass, by name, for this image alone."""

    hash: str
    tensors: Mapping[str, Tensor]


PicturesOfRows = tuple[tuple[Picture, ...], ...]  # of each row, in the order of their tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How the pictures of rows are selected and joined. They stay in the host's memory until a forward pass reads them."""

    def selected(self, pictures: PicturesOfRows, index: Tensor, width: int) -> PicturesOfRows:
        return tuple(pictures[row] for row in index.tolist())

    def joined(self, parts: Sequence[PicturesOfRows]) -> PicturesOfRows:
        return tuple(row for part in parts for row in part)


TOTAL, ROW, TOKEN = Layout(axis="total"), Layout(axis="row"), Layout(axis="token")
KEY, NO_STEP, TOKEN_IDS = Layout(axis="row", key=True), Layout(axis="token", fill=-1), Layout(axis="own", fill=-1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Logically [B, T]. Index t speaks of token t everywhere; padding is on the right and carries mask False.

    A row is one rollout, or one environment step of an episode: then `episode` tells which rows belong together, `turn`
    their order, `score` is the whole episode's on each of its rows and `rewards` the step's own.

    `values`, `ref_logprobs` and `old_logprobs` are there only if the algorithm asked (`needs`); `advantages` and
    `returns` are written by `Algorithm.credit` and by nobody else.
    """

    tokens: Annotated[Tensor, TOKEN]  # [B, T] int64
    length: Annotated[Tensor, ROW]  # [B] int64, tokens of the row without padding
    mask: Annotated[Tensor, TOKEN]  # [B, T] bool, True where the policy sampled and the row counts
    logprobs: Annotated[Tensor, TOKEN]  # [B, T] float32, the sampler's
    step: Annotated[Tensor, NO_STEP]  # [B, T] int64, environment step, -1 elsewhere
    rewards: Annotated[Tensor, TOKEN]  # [B, T] float32, each step's reward on its last sampled token
    group: Annotated[Tensor, KEY]  # [B] int64, rows of one prompt share a number
    score: Annotated[Tensor, ROW]  # [B] float32, the total reward of the row, or of its episode
    prompt_length: Annotated[Tensor, ROW]  # [B] int64, leading tokens that all rows of one prefix share
    tokens_total: Annotated[
        Tensor, TOTAL
    ]  # [] float32, sum of mask over all ranks and micro-batches: the one denominator
    sequences_total: Annotated[Tensor, TOTAL]  # [] float32, rows with any mask, over all ranks and micro-batches
    # [B] int64, rows with the same prompt tokens; None: the same as `group`
    prefix: Annotated[Tensor | None, KEY] = None
    # [B] bool, False where `logprobs` is unknown (gold rows); None: all True
    sampled: Annotated[Tensor | None, ROW] = None
    # [B] bool, True where the completion was given by the data; None: all False
    given: Annotated[Tensor | None, ROW] = None
    # [B] float32, the score of the greedy completion of the row's prompt, NaN without one
    baseline: Annotated[Tensor | None, ROW] = None
    # [B] int64, rows of one episode share a number; None: each row is one
    episode: Annotated[Tensor | None, KEY] = None
    turn: Annotated[Tensor | None, ROW] = None  # [B] int64, order of an episode's rows
    terminated: Annotated[Tensor | None, ROW] = None  # [B] bool, nothing follows this row
    truncated: Annotated[Tensor | None, ROW] = None  # [B] bool, the episode was cut after this row
    thought: Annotated[Tensor | None, TOKEN] = None  # [B, T] bool, True where the policy had not come to its action
    # [B, P] int64, padded with -1: what the policy would have seen after a truncated row
    final_tokens: Annotated[Tensor | None, TOKEN_IDS] = None
    final_values: Annotated[Tensor | None, ROW] = None  # [B] float32, the value of that state, 0 elsewhere
    outcome: Annotated[Tensor | None, ROW] = (
        None  # [B] int64, class of the row for a token classifier, -1 if it has none
    )
    values: Annotated[Tensor | None, TOKEN] = None  # [B, T]
    ref_logprobs: Annotated[Tensor | None, TOKEN] = None  # [B, T]
    old_logprobs: Annotated[Tensor | None, TOKEN] = None  # [B, T]
    token_scores: Annotated[Tensor | None, TOKEN] = None  # [B, T], an outcome critic's score of each token
    advantages: Annotated[Tensor | None, TOKEN] = None  # [B, T]
    returns: Annotated[Tensor | None, TOKEN] = None  # [B, T]
    value_unit: Annotated[Tensor | None, TOTAL] = None  # [] float32, what value errors are measured in; None is 1
    # [B, P] int64, padded with -1: tokens that only a separate value model reads
    privileged: Annotated[Tensor | None, TOKEN_IDS] = None
    pictures: Annotated[PicturesOfRows | None, Shown()] = None  # of each row's prompt; None: the model has no eyes
    final_pictures: Annotated[PicturesOfRows | None, Shown()] = None  # of `final_tokens`

    @property
    def rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def prefixes(self) -> Tensor:
        """[B] int64: rows with one number have the same prompt tokens, which a packed forward pass computes once."""
        return self.group if self.prefix is None else self.prefix

    def to(self, place: device | str) -> Batch:
        """The same batch on another device; to a GPU through pinned memory, so that nothing waits for the copy."""
        target = torch.device(place)
        return self._changed(lambda layout, x: moved(x, target) if isinstance(x, torch.Tensor) else x)

    def select(self, index: Tensor) -> Batch:
        """The rows `index` ([N] int64), cut to their longest; the totals keep counting the whole update.

        Raises ValueError for an empty index.
        """
        if index.numel() == 0:
            raise ValueError("select needs at least one row")
        width = int(self.length[index].max())
        return self._changed(lambda layout, x: layout.selected(x, index, width))

    def _changed(self, change: Callable[[Any, Any], Any]) -> Batch:
        held = {name: (layout, getattr(self, name)) for name, layout in layouts().items()}
        return replace(self, **{name: change(layout, x) for name, (layout, x) in held.items() if x is not None})


@cache
def layouts() -> dict[str, Layout | Shown]:
    """The layout of each field of a `Batch`."""
    hints = get_type_hints(Batch, localns={"Tensor": torch.Tensor}, include_extras=True)
    return {item.name: hints[item.name].__metadata__[0] for item in fields(Batch)}


def stacked(batches: Sequence[Batch]) -> Batch:
    """One batch of all rows, in order; groups of different batches stay different. Totals are those of the first.

    Raises ValueError if an optional field is in some of them only.
    """
    changes: dict[str, Any] = {}
    for name, layout in layouts().items():
        tensors = [getattr(batch, name) for batch in batches]
        there = [tensor for tensor in tensors if tensor is not None]
        if there and len(there) < len(tensors):
            raise ValueError(f"{name} is in {len(there)} of {len(tensors)} batches only")
        if there:
            changes[name] = layout.joined(there)
    return replace(batches[0], **changes)


def moved(tensor: Tensor, target: device) -> Tensor:
    """`tensor` on `target`, without waiting if that is a GPU."""
    if target.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(target, non_blocking=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """What the trained policy says of a batch, with gradient. Entries outside the mask are 0 and carry none."""

    logprobs: Tensor  # [B, T] float32
    entropy: Tensor | None = None  # [B, T], if the algorithm asked
    values: Tensor | None = None  # [B, T], if the algorithm asked


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loss:
    """`value` [] is this micro-batch's share of the whole loss: shares add up over micro-batches and ranks.

    `metrics` are also shares (already divided by a global total), so that they too simply add up.
    """

    value: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What an algorithm asks of the trainer, which reads nothing else to decide what to compute.

    A name that does not exist is a TypeError where the algorithm is built, not a silent nothing.

    >>> Needs(values=True).beyond_advantages
    True
    """

    values: bool = False  # a value model's estimates, in the batch and in the output
    ref_logprobs: bool = False  # log-probabilities of a reference model
    old_logprobs: bool = False  # log-probabilities of the policy before the first update of a rollout
    entropy: bool = False  # the policy's entropy in the output
    token_scores: bool = False  # an outcome critic's score of each token
    gold: bool = False  # rows are given completions (supervised learning): nothing is sampled
    references: bool = False  # a given completion of each prompt, beside those that are sampled
    greedy: bool = False  # the score of each prompt's greedy completion, which is never trained on
    siblings: bool = False  # completions of one prompt are compared: a group of one teaches nothing
    whole_groups: bool = False  # a group must not be cut into micro-batches
    whole_batch: bool = False  # credit looks across groups (whitening) and gets the rows of all ranks

    @property
    def beyond_advantages(self) -> bool:
        """Whether the loss has terms that a zero advantage does not switch off."""
        return self.values or self.ref_logprobs or self.entropy or self.whole_groups or self.gold

    @property
    def names(self) -> list[str]:
        """What is asked for, in words."""
        return [item.name.replace("_", " ") for item in fields(self) if getattr(self, item.name)]


class Algorithm(Protocol):
    """A method: a frozen dataclass whose fields are its hyper-parameters and its config schema."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def needs(self) -> Needs: ...

    def credit(self, batch: Batch) -> Batch:
        """Write advantages (and returns) for the whole batch; no gradient."""
        ...

    def loss(self, out: Output, batch: Batch) -> Loss:
        """The loss of one micro-batch, with gradient."""
        ...


class Controller(Protocol):
    """Sets hyper-parameters while training runs. It keeps what it learns in tensors, which a checkpoint holds."""

    def observe(self, view: Mapping[str, float]) -> Mapping[str, float]:
        """The knobs of the next step, by hyper-parameter of the algorithm or the loop, from this step's public metrics."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that `observe` depends on, by name."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        ...


@runtime_checkable
class DerivesMetrics(Protocol):
    """An algorithm with metrics that are not sums, such as an explained variance."""

    def derived_metrics(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """More metrics, from the summed up ones of a step."""
        ...


@runtime_checkable
class Warns(Protocol):
    """An algorithm that is not what its name says under some settings."""

    def warnings(self, *, updates: int) -> list[str]:
        """What a user should know before training with `updates` optimizer steps per rollout."""
        ...
