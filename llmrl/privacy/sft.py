"""Supervised fine-tuning under differential privacy: one step, and the loop around it.

    ask the ledger -> write it -> draw records -> loss of each record -> clip, sum, noise, move -> controller

What leaves a step is the noised sum and, if paid for, noised counts. Losses, norms, the batch that was drawn and the time
it took stay inside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmrl.errors import ConfigError
from llmrl.privacy.clipping import NoiseRule
from llmrl.privacy.controllers import Constant, Controller, Knobs
from llmrl.privacy.gradients import RecordGradients
from llmrl.privacy.groups import Grouping, parameter_groups
from llmrl.privacy.ledger import Ledger, LedgerError
from llmrl.privacy.optimizer import PrivateOptimizer
from llmrl.privacy.randomness import SecureSource, Source, poisson_sample
from llmrl.privacy.view import ControllerView, view_of
from llmrl.train.updater import Updater, learning_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A tokenised text: `mask` is True where a token is learnt; `unit` says whose row it is."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything public that a run is steered by."""

    steps: int
    expected_batch: float  # records a step draws on average: q = expected_batch / records
    lr: float
    thresholds: tuple[float, ...] | float = 1.0
    groups: Grouping = "flat"
    rule: NoiseRule | tuple[float, ...] = "isotropic"
    rows_per_unit: int = 1  # rows of one unit that count; more of them are left out
    automatic: bool = False
    counts_share: float = 0.0
    interval: int = 1  # steps between a controller's decisions
    warmup_steps: int = 0
    schedule: str = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    micro_batch: int = 8  # units of one forward pass
    raw_state: bool = False  # show controllers what has no guarantee


def by_unit(rows: Sequence[Row], *, rows_per_unit: int) -> list[tuple[Row, ...]]:
    """The records: all rows of a unit, at most `rows_per_unit` of them. Which are left out depends on the unit alone."""
    units: dict[str, list[Row]] = {}
    for row in rows:
        units.setdefault(row.unit, []).append(row)
    return [tuple(own[:rows_per_unit]) for own in units.values()]


def row_losses(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """[rows] the mean negative log-likelihood of each row's learnt tokens: a function of that row and nothing else.

    A row without learnt tokens has loss 0. Positions are given row by row, so that no layer shares them.
    """
    device = next(model.parameters()).device
    width = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    learnt = torch.zeros(len(rows), width, dtype=torch.bool)
    present = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        n = len(row.tokens)
        tokens[number, :n], learnt[number, :n] = torch.tensor(row.tokens), torch.tensor(row.mask)
        present[number, :n] = 1
    present[:, 0] = 1  # a row of padding attends to something
    positions = torch.arange(width).expand(len(rows), width)
    out = model(
        input_ids=tokens.to(device),
        attention_mask=present.to(device),
        position_ids=positions.to(device),
        use_cache=False,
    )
    logprobs = out.logits[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 1:, None].to(device))[..., 0]
    weights = learnt[:, 1:].to(device).float()
    return -(logprobs * weights).sum(1) / weights.sum(1).clamp(min=1)


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Sequence[Row], *, micro_batch: int = 8) -> float:
    """Mean loss of rows, each counting the same; for public or held-out text only."""
    total = sum(
        row_losses(model, rows[start : start + micro_batch]).sum().item() for start in range(0, len(rows), micro_batch)
    )
    return total / len(rows)


@dataclass(slots=True, kw_only=True)
class _Probe:
    loss: float = math.nan
    slope: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a private run ended."""

    steps: int
    epsilon: float  # what may be claimed; infinite without a guarantee
    nominal_epsilon: float  # the closed form's reading of the steps that were paid for
    delta: float
    stopped: str  # "done", or why no more steps were made
    metrics: list[dict[str, float]] = field(default_factory=list)


class PrivateRun:
    """A private fine-tuning run over `rows`; `step` makes one step, `state` and `load` carry it over a restart.

    Raises ConfigError if what is trained cannot be, or if the settings contradict the ledger's terms.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        settings: Settings,
        ledger: Ledger,
        *,
        controller: Controller | None = None,
        source: Source | None = None,
        ledger_file: Path | None = None,
        public: Sequence[Row] = (),
    ) -> None:
        self.model, self.settings, self.ledger = model.train(), settings, ledger
        self._units = by_unit(rows, rows_per_unit=settings.rows_per_unit)
        self._source: Source = source or SecureSource()
        self._public, self._file = list(public), ledger_file
        self._probe = _Probe()
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = parameter_groups(list(named), settings.groups)
        start = settings.thresholds
        limits = tuple(start) if isinstance(start, tuple) else (float(start) / math.sqrt(len(groups)),) * len(groups)
        self.knobs = Knobs(thresholds=limits)
        self.controller = controller or Constant(self.knobs)
        self.done = 0
        _check(settings, ledger, self._source, len(self._units))
        inner = Updater(
            list(named.items()), betas=settings.betas, eps=1e-8, weight_decay=settings.weight_decay,
            max_grad_norm=math.inf,
        )  # fmt: skip
        self.gradients = RecordGradients(model, groups, rows_per_record=settings.rows_per_unit)
        self.optimizer = PrivateOptimizer(
            inner, self.gradients, named, thresholds=limits, sigma=ledger.terms.sigmas[0][0], rule=settings.rule,
            expected_batch=settings.expected_batch, source=self._source, counts_share=settings.counts_share,
            automatic=settings.automatic,
        )  # fmt: skip

    @property
    def q(self) -> float:
        """The sampling rate."""
        return self.ledger.terms.q

    def step(self) -> dict[str, float] | None:
        """One step and its public metrics; None if the ledger does not admit it: nothing was done then."""
        sigma = self._sigma()
        if sigma is None or not self.ledger.admit(sigma, self.q, step=self.done):
            return None
        if self._file is not None:
            self.ledger.save(self._file)
        self.optimizer.sigma, self.optimizer.thresholds = sigma, list(self.knobs.thresholds)
        self.optimizer.rule = self.knobs.weights if self.knobs.weights is not None else self.settings.rule
        norms = self._accumulate()
        rate = learning_rate(
            self.done, peak=self.settings.lr, total=self.settings.steps, warmup=self.settings.warmup_steps,
            schedule=self.settings.schedule,  # type: ignore[arg-type]
        )  # fmt: skip
        lr = rate * self.knobs.lr_scale
        update_norm, _ = self.optimizer.step(lr)
        self.done += 1
        view = None
        if self.done % self.settings.interval == 0:
            view = self._view(sigma, norms)
            self.knobs = self.controller.observe(view)
        return self._metrics(sigma, lr, update_norm, view)

    def _sigma(self) -> float | None:
        """The step's multiplier: as planned, or what the controller asks for, raised until the filter admits it."""
        if self.ledger.terms.mode == "fixed":
            return self.ledger.planned_sigma
        wanted = self.knobs.sigma if self.knobs.sigma is not None else self.ledger.terms.sigmas[0][0]
        return self.ledger.nearest(wanted, self.q)

    def _accumulate(self) -> Tensor | None:
        """Clipped sums of the drawn records. Returns raw norms only where the run gives up its guarantee for them."""
        drawn = poisson_sample(self._source, records=len(self._units), q=self.q, step=self.done)
        size, found = self.settings.micro_batch, []
        for start in range(0, len(drawn), size):
            rows = [row for index in drawn[start : start + size] for row in self._padded(self._units[index])]
            norms = self.optimizer.backward(row_losses(self.model, rows))
            if self.settings.raw_state:
                found.append(norms)
        return torch.cat(found) if found else None

    def _padded(self, unit: tuple[Row, ...]) -> list[Row]:
        empty = Row(tokens=(0, 0), mask=(False, False), unit=unit[0].unit)
        return [*unit, *[empty] * (self.settings.rows_per_unit - len(unit))]

    def _view(self, sigma: float, norms: Tensor | None) -> ControllerView:
        if self._public:
            loss = mean_loss(self.model, self._public, micro_batch=self.settings.micro_batch)
            change = self._probe.loss - loss if math.isfinite(self._probe.loss) else 0.0
            self._probe = _Probe(loss=loss, slope=0.7 * self._probe.slope + 0.3 * change)
        assert self.optimizer.release is not None
        return view_of(
            self.optimizer.release, thresholds=self.optimizer.thresholds, sigma=sigma,
            expected_batch=self.settings.expected_batch, progress=self.done / self.settings.steps,
            spent=self.ledger.share, probe={"probe_loss": self._probe.loss, "probe_slope": self._probe.slope},
            raw_norms=norms.median(0).values.tolist() if norms is not None else None,
        )  # fmt: skip

    def _metrics(self, sigma: float, lr: float, update_norm: float, view: ControllerView | None) -> dict[str, float]:
        """Public and released numbers only: no loss of a record, no realised batch, no time."""
        limits = self.optimizer.thresholds
        found = {
            "step": float(self.done), "lr": lr, "privacy/sigma": sigma, "privacy/spent": self.ledger.share,
            "privacy/threshold_mean": sum(limits) / len(limits), "privacy/update_norm": update_norm,
        }  # fmt: skip
        if view is not None and math.isfinite(view.number("probe_loss")):
            found["privacy/probe_loss"] = view.number("probe_loss")
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values of a checkpoint; the ledger is a file of its own and may be ahead of it."""
        plain = {
            "done": self.done, "controller": self.controller.state(),
            "probe": [self._probe.loss if math.isfinite(self._probe.loss) else None, self._probe.slope],
            "knobs": {"thresholds": list(self.knobs.thresholds), "sigma": self.knobs.sigma,
                      "weights": self.knobs.weights, "lr_scale": self.knobs.lr_scale},
        }  # fmt: skip
        return self.optimizer.state(), json.loads(json.dumps(plain))

    def load(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. Raises LedgerError if the ledger has paid for fewer steps than were made."""
        if self.ledger.paid < plain["done"]:
            raise LedgerError(
                f"the checkpoint is at step {plain['done']}, but only {self.ledger.paid} steps were paid for"
            )
        self.optimizer.load(tensors)
        self.done = int(plain["done"])
        self.controller.load(plain["controller"])
        loss, slope = plain["probe"]
        self._probe = _Probe(loss=math.nan if loss is None else loss, slope=slope)
        knobs = plain["knobs"]
        self.knobs = Knobs(
            thresholds=tuple(knobs["thresholds"]), sigma=knobs["sigma"], lr_scale=knobs["lr_scale"],
            weights=None if knobs["weights"] is None else tuple(knobs["weights"]),
        )  # fmt: skip

    def close(self) -> None:
        """Take the hooks off the model."""
        self.gradients.close()


def dp_sft(run: PrivateRun, *, on_step: Callable[[dict[str, float]], None] = lambda metrics: None) -> Outcome:
    """Steps until all are made or the ledger admits no more; `on_step` gets each one's public metrics."""
    kept, stopped = [], "done"
    while run.done < run.settings.steps:
        metrics = run.step()
        if metrics is None:
            stopped = "the budget is spent"
            break
        kept.append(metrics)
        on_step(metrics)
    run.close()
    return Outcome(
        steps=run.done, epsilon=run.ledger.epsilon(), nominal_epsilon=run.ledger.nominal_epsilon(),
        delta=run.ledger.terms.delta, stopped=stopped, metrics=kept,
    )  # fmt: skip


def _check(settings: Settings, ledger: Ledger, source: Source, units: int) -> None:
    terms = ledger.terms
    q = settings.expected_batch / max(1, units)
    if not 0 < q <= 1:
        raise ConfigError(f"an expected batch of {settings.expected_batch} of {units} records is no sampling rate")
    if not math.isclose(q, terms.q, rel_tol=1e-9):
        raise ConfigError(f"the ledger promises a sampling rate of {terms.q:.6g}, this run has {q:.6g}")
    if terms.guarantee and (settings.raw_state or not source.secure):
        reason = "shows the controller raw statistics" if settings.raw_state else "draws from a seed that is known"
        raise ConfigError(f"this run {reason}: no guarantee holds; its terms must say guarantee=False")
    if settings.counts_share and not 0 < settings.counts_share < 1:
        raise ConfigError(
            f"privacy.counts_share={settings.counts_share} is a share of the step's budget, between 0 and 1"
        )
