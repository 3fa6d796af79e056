"""Each record's gradient norm in each group, and the clipped sum, from one backward pass and without N gradients.

For a linear layer with inputs a [N, T, n] and output gradients b [N, T, m], record i's weight gradient is
sum_t b_it a_it^T. Its squared norm is sum_{t,t'} <a_it, a_it'> <b_it, b_it'> (the ghost norm: Goodfellow 2015; Li et al.
2022, arXiv:2110.05679), and the clipped sum is one matrix product of a and of b scaled by each record's factor (the
book-keeping of Bu et al. 2023, arXiv:2210.00038). Embeddings, tied ones too, have such forms; other layers (norms) are
small, and their gradients are formed record by record with torch.func. All of it is exact.

A record may be several rows of a batch, the rows of one user: those with one number in `group`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.errors import ConfigError
from llmrl.privacy.clipping import clip_factors


@dataclass(frozen=True, slots=True, eq=False)
class Outer:
    """The weight's gradient of record i is sum_t right[i, t] left[i, t]^T: [m, n]."""

    left: Tensor  # [N, T, n]
    right: Tensor  # [N, T, m]

    def dense(self) -> Tensor:
        return torch.einsum("itm,itn->imn", self.right, self.left)

    def summed(self, factors: Tensor) -> Tensor:
        left, right, scale = self.left, self.right, factors[:, None, None]
        left, right = (left, right * scale) if right.shape[2] <= left.shape[2] else (left * scale, right)
        return right.flatten(0, 1).T @ left.flatten(0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """An embedding's: row ids[i, t] of the gradient gets grad[i, t]."""

    ids: Tensor  # [N, T]
    grad: Tensor  # [N, T, n]
    rows: int

    def dense(self) -> Tensor:
        found = self.grad.new_zeros(self.ids.shape[0], self.rows, self.grad.shape[2])
        return found.scatter_add_(1, self.ids[..., None].expand_as(self.grad), self.grad)

    def summed(self, factors: Tensor) -> Tensor:
        scaled = (self.grad * factors[:, None, None]).flatten(0, 1)
        return self.grad.new_zeros(self.rows, self.grad.shape[2]).index_add_(0, self.ids.flatten(), scaled)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """The gradient itself, record by record."""

    grad: Tensor  # [N, *shape]

    def dense(self) -> Tensor:
        return self.grad

    def summed(self, factors: Tensor) -> Tensor:
        return torch.tensordot(factors, self.grad, 1)


Part = Outer | Lookup | Dense


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Which rows of a batch are one record."""

    of_row: Tensor  # [rows] the record of each row
    rows: Tensor | None  # [N, r] the rows of each record, -1 where it has fewer; None: row i is record i

    @classmethod
    def of(cls, group: Tensor) -> Records:
        """Rows with one number are one record."""
        _, record, counts = group.unique(return_inverse=True, return_counts=True)
        if len(counts) == len(group):
            return cls(torch.arange(len(group), device=group.device), None)
        order = record.argsort(stable=True)
        place = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[record[order]]
        rows = torch.full((len(counts), int(counts.max())), -1, device=group.device)
        rows[record[order], place] = order
        return cls(record, rows)

    def joined(self, x: Tensor) -> Tensor:
        """[rows, T, ...] -> [N, r * T, ...], zeros for rows that a record does not have."""
        if self.rows is None:
            return x
        return torch.cat([x, x.new_zeros(1, *x.shape[1:])])[self.rows].flatten(1, 2)

    def summed(self, x: Tensor) -> Tensor:
        """[rows, ...] -> [N, ...], the sum over each record's rows."""
        if self.rows is None:
            return x
        return x.new_zeros(len(self.rows), *x.shape[1:]).index_add_(0, self.of_row, x)


class RecordGradients:
    """Hooks on the modules of `named`, the trained parameters. `groups` holds the names of each group.

    Raises ConfigError for a parameter that no hooked module owns.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Sequence[str]]) -> None:
        self.groups = [tuple(group) for group in groups]
        self._parameters = dict(model.named_parameters())
        owners = _owners(model, {name for group in groups for name in group})
        self._calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # module, its input, its output
        self._records = Records.of(torch.arange(1))
        self._handles = [module.register_forward_hook(self._keep) for module in owners]
        self._owners = owners

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def discard(self) -> None:
        """Forget forward passes that will have no backward pass."""
        self._calls.clear()

    def clipped(
        self, loss: Tensor, thresholds: Sequence[float] | None, group: Tensor, *, automatic: bool = False
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Clipped gradient sums by parameter, and the norms [N, G] of N records, of the last forward pass's `loss`.

        `loss` is a sum of terms, one a row, each a function of its own row only; rows with one number in `group` [rows]
        are one record. `thresholds` is one number a group of parameters, or None to clip nothing. Raises ConfigError if a
        layer did not see these rows apart.
        """
        self._records = Records.of(group.to(loss.device))
        parts = self._parts(loss, len(group))
        norms = torch.stack([self._norms(names, parts) for names in self.groups], 1)
        sums: dict[str, Tensor] = {}
        for number, names in enumerate(self.groups):
            column = norms[:, number]
            factors = (
                torch.ones_like(column)
                if thresholds is None
                else clip_factors(column, thresholds[number], automatic=automatic)
            )
            for name in names:
                sums[name] = _summed(parts[name], factors, self._parameters[name])
        return sums, norms

    def _parts(self, loss: Tensor, rows: int) -> dict[str, list[Part]]:
        calls = [call for call in self._calls if call[2].requires_grad]
        self._calls = []
        outputs = [output for _, _, output in calls]
        if not outputs:
            raise ConfigError("no trained layer took part in the forward pass: nothing to train privately")
        grads = torch.autograd.grad(loss.sum(), outputs, allow_unused=True)
        parts: dict[str, list[Part]] = {name: [] for group in self.groups for name in group}
        for (module, inputs, _), grad in zip(calls, grads, strict=True):
            if grad is None:
                continue
            if len(inputs) != rows or len(grad) != rows:  # how many were drawn stays inside
                raise ConfigError(
                    f"{type(module).__name__} does not keep records apart: it saw another number of rows than the batch "
                    "has; freeze it, or use model.forward=plain"
                )
            for name, part in self._of(module, inputs, grad):
                parts[name].append(part)
        return parts

    def _of(self, module: nn.Module, inputs: Tensor, grad: Tensor) -> list[tuple[str, Part]]:
        names = self._owners[module]
        right, weight = self._by_record(grad.float()), names.get("weight")
        if isinstance(module, nn.Embedding) and weight:
            return [(weight, Lookup(self._by_record(inputs), right, module.num_embeddings))]
        if isinstance(module, nn.Linear) or _is_conv1d(module):
            left = self._by_record(inputs.float())
            turned = not isinstance(module, nn.Linear)
            found: list[tuple[str, Part]] = (
                [(weight, Outer(right, left) if turned else Outer(left, right))] if weight else []
            )
            return [*found, (names["bias"], Dense(right.sum(1)))] if "bias" in names else found
        rows = _row_by_row(module, tuple(names), inputs, grad.float())
        return [(names[own], Dense(self._records.summed(x))) for own, x in rows.items()]

    def _by_record(self, x: Tensor) -> Tensor:
        """[rows, T, ...] -> [N, r * T, ...] for r rows a record; a layer's other leading dimensions count as T."""
        flat = x.reshape(x.shape[0], -1, x.shape[-1]) if x.dim() > 2 or x.is_floating_point() else x
        return self._records.joined(flat)

    def _norms(self, group: Sequence[str], parts: Mapping[str, list[Part]]) -> Tensor:
        squares = [_squared(parts[name]) for name in group if parts[name]]
        if not squares:
            raise ConfigError(f"{group[0]} took no part in the loss; freeze it or leave it out of the private groups")
        return torch.stack(squares).sum(0).clamp(min=0).sqrt()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.is_grad_enabled() and isinstance(output, Tensor) and output.requires_grad:
            self._calls.append((module, args[0].detach(), output))


def _owners(model: nn.Module, wanted: set[str]) -> dict[nn.Module, dict[str, str]]:
    """Which modules use the wanted parameters, under which own name; a tied weight has several owners."""
    by_identity = {id(parameter): name for name, parameter in model.named_parameters() if name in wanted}
    owners: dict[nn.Module, dict[str, str]] = {}
    for module in model.modules():
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) in by_identity:
                owners.setdefault(module, {})[own] = by_identity[id(parameter)]
    missing = wanted - {name for own in owners.values() for name in own.values()}
    if missing:
        raise ConfigError(f"the model has no trained parameter {sorted(missing)[0]}")
    for module, names in owners.items():
        if any(True for _ in module.children()):
            raise ConfigError(
                f"{next(iter(names.values()))} belongs to a {type(module).__name__} with layers inside, whose gradients "
                "cannot be told apart by record; freeze it"
            )
    return owners


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's linear layer, whose weight is [n, m]."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _row_by_row(module: nn.Module, own: Sequence[str], inputs: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """[rows, *shape] of each parameter: the gradient of <module(input_i), grad_i>."""
    parameters = dict(module.named_parameters(recurse=False))
    trained = {name: parameters[name].detach() for name in own}
    fixed = {name: x.detach() for name, x in parameters.items() if name not in trained}

    def product(weights: dict[str, Tensor], x: Tensor, g: Tensor) -> Tensor:
        out = torch.func.functional_call(module, {**fixed, **weights}, (x[None],))
        return (out[0].float() * g).sum()

    derivative: Callable[..., dict[str, Tensor]] = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))
    return {name: x.float() for name, x in derivative(trained, inputs, grad).items()}


def _squared(parts: Sequence[Part]) -> Tensor:
    """[N] float64: the squared norm of the sum of a parameter's parts."""
    if len(parts) == 1 and not _ghost_is_cheaper(parts[0]):
        return _square(parts[0].dense())
    if any(isinstance(part, Dense) for part in parts):
        return _square(torch.stack([part.dense() for part in parts]).sum(0))
    total = torch.zeros(len(_rows(parts[0])), dtype=torch.float64, device=_rows(parts[0]).device)
    for i, first in enumerate(parts):
        total += _inner(first, first)
        for second in parts[i + 1 :]:
            total += 2 * _inner(first, second)
    return total


def _rows(part: Part) -> Tensor:
    return part.left if isinstance(part, Outer) else part.ids if isinstance(part, Lookup) else part.grad


def _square(dense: Tensor) -> Tensor:
    return torch.linalg.vector_norm(dense.flatten(1), dim=1).double() ** 2


def _ghost_is_cheaper(part: Part) -> bool:
    if isinstance(part, Outer):
        tokens, n, m = part.left.shape[1], part.left.shape[2], part.right.shape[2]
        return tokens * (n + m) < n * m
    return isinstance(part, Lookup)


def _inner(a: Part, b: Part) -> Tensor:
    """[N] the inner product of two parts' gradients, without forming them; in float64, because terms may cancel."""
    if isinstance(a, Lookup) and isinstance(b, Outer):
        a, b = b, a
    if isinstance(a, Outer) and isinstance(b, Outer):
        return (_products(a.left, b.left) * _products(a.right, b.right)).sum((1, 2))
    if isinstance(a, Lookup) and isinstance(b, Lookup):
        return (_products(a.grad, b.grad) * (a.ids[:, :, None] == b.ids[:, None, :])).sum((1, 2))
    assert isinstance(a, Outer) and isinstance(b, Lookup)
    chosen = a.right.gather(2, b.ids[:, None, :].expand(-1, a.right.shape[1], -1))  # [N, T, T']: right[t][ids[t']]
    return (_products(a.left, b.grad) * chosen.double()).sum((1, 2))


def _products(x: Tensor, y: Tensor) -> Tensor:
    """[N, T, T'] all inner products of a record's vectors."""
    return x.double() @ y.double().mT


def _summed(parts: Sequence[Part], factors: Tensor, parameter: nn.Parameter) -> Tensor:
    total = torch.zeros(parameter.shape, dtype=torch.float32, device=parameter.device)
    alive = factors > 0
    for part in parts:
        total += _finite(part, alive).summed(factors.float())
    return total


def _finite(part: Part, alive: Tensor) -> Part:
    """The part without the records that contribute nothing: 0 times infinity is not 0."""
    if bool(alive.all()):
        return part

    def kept(x: Tensor) -> Tensor:
        return x.where(alive.view(-1, *[1] * (x.dim() - 1)), torch.zeros_like(x))

    if isinstance(part, Outer):
        return Outer(kept(part.left), kept(part.right))
    return Lookup(part.ids, kept(part.grad), part.rows) if isinstance(part, Lookup) else Dense(kept(part.grad))
