"""Losses of soft actor-critic and its family: pure, differentiable, any float type, no configuration.

An action is a = tanh(u) in the unit box (-1, 1)^d; replayed actions keep u, because atanh loses precision near the
corners. J critics value a batch of B transitions as `values [J, B]` (J = 2, or an ensemble); `alpha` is the temperature,
`terminated` marks transitions after which nothing follows (a time limit is not one of them: it still bootstraps).

Sources: soft actor-critic, Haarnoja et al. 2018 (arXiv 1812.05905); DSAC-T, Duan et al. 2025 (arXiv 2310.05858) and its
authors' code (DSAC-v2); PMOE, Ren et al. 2021 (arXiv 2104.09122), whose loss is a reconstruction from its abstract.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, one_hot, softplus

DistributionalForm = Literal["nll", "released", "released_2024"]

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_NLL_EPS = 1e-8  # keeps the division finite where a standard deviation underflows
_RELEASED_BIAS = 0.1
_HUBER_DELTA = 50.0


def squashed_logprob(mean: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """Log-density (nats) of a = tanh(u), u ~ N(mean, exp(log_std)^2), with respect to a: [..., d] -> [...].

    log pi(a) = sum_i [log N(u_i) - 2 (log 2 - u_i - softplus(-2 u_i))]: the exact form of log(1 - tanh(u)^2), which
    neither overflows nor needs an epsilon (Haarnoja et al. 2018, appendix C, in the stable form).
    """
    return (_normal_logprob(mean, log_std, u) - _log_tanh_slope(u)).sum(-1)


def soft_target(
    reward: Tensor,
    terminated: Tensor,
    next_values: Tensor,
    next_logprob: Tensor,
    *,
    gamma: float,
    alpha: float | Tensor,
) -> Tensor:
    """y = r + gamma (1 - terminated) (min_j Q_j(s', a') - alpha log pi(a'|s')): [B], without gradient.

    `next_values [J, B]` are those of the target critics at a fresh a'. A terminated row ignores them, whatever they are.
    """
    follows = next_values.min(0).values - alpha * next_logprob
    return _bootstrapped(reward, terminated, follows, gamma)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """sum_j mean_B (Q_j - y)^2, without the half: values [J, B], target [B] -> []."""
    return (values - target.detach()).square().mean(-1).sum()


def actor_loss(values: Tensor, logprob: Tensor, *, alpha: float | Tensor) -> Tensor:
    """mean_B (alpha log pi(a|s) - min_j Q_j(s, a)): values [J, B], logprob [B] -> [].

    Gradients flow through `values` into a and on to the policy; freeze the critics' parameters.
    """
    weight = alpha.detach() if isinstance(alpha, Tensor) else alpha
    return (weight * logprob - values.min(0).values).mean()


def temperature_loss(log_alpha: Tensor, logprob: Tensor, *, target_entropy: float) -> Tensor:
    """mean_B -alpha (log pi + H), alpha = exp(log_alpha), H = `target_entropy` (nats, in the unit box): [].

    An entropy above H lowers alpha, one below raises it. `logprob` gets no gradient.
    """
    return -(log_alpha.exp() * (logprob.detach() + target_entropy)).mean()


def polyak(target: Tensor, online: Tensor, *, tau: float) -> Tensor:
    """(1 - tau) target + tau online, any shape, without gradient."""
    return torch.lerp(target.detach(), online.detach(), tau)


def log_uniform(action: Tensor, *, low: float, high: float) -> Tensor:
    """low (high / low)^((a + 1) / 2): from (-1, 1) to [low, high], equal ratios for equal steps; any shape.

    Raises ValueError unless 0 < low <= high.
    """
    if not 0 < low <= high:
        raise ValueError(f"log_uniform needs 0 < low <= high, got low={low}, high={high}; use a linear map for others")
    return low * torch.exp((action + 1) / 2 * math.log(high / low))


def distributional_targets(
    reward: Tensor,
    terminated: Tensor,
    next_mean: Tensor,
    next_std: Tensor,
    z: Tensor,
    next_logprob: Tensor,
    *,
    gamma: float,
    alpha: float | Tensor,
    z_clip: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """DSAC-T's two targets of a Gaussian return: (of the mean [B], of the spread [B]), without gradient.

    Per sample the critic with the smaller mean is picked; the first target uses that mean m, the second the draw
    m + s clip(z, -z_clip, z_clip) of the same critic. `next_mean`, `next_std` and the standard-normal `z` are [2, B].
    (Duan et al. 2025: expected value substitution, twin value distributions.)
    """
    picked = next_mean.argmin(0, keepdim=True)  # [1, B]
    mean, std, noise = (part.gather(0, picked).squeeze(0) for part in (next_mean, next_std, z))
    entropy = alpha * next_logprob
    drawn = mean + std * noise.clamp(-z_clip, z_clip)
    return (
        _bootstrapped(reward, terminated, mean - entropy, gamma),
        _bootstrapped(reward, terminated, drawn - entropy, gamma),
    )


def distributional_critic_loss(
    mean: Tensor,
    std: Tensor,
    mean_target: Tensor,
    sampled_target: Tensor,
    *,
    ema_std: Tensor,
    tau_b: float,
    xi: float = 3.0,
    form: DistributionalForm = "nll",
) -> tuple[Tensor, Tensor]:
    """DSAC-T's critic loss, summed over two critics, and the new running mean b [2] of their standard deviations.

    With b = (1 - tau_b) b + tau_b mean_B(s), y the target of the mean and y_b = m + clip(y_sampled - m, -xi b, xi b),
    per critic and averaged over the batch:

        nll            dL/dm = -w (y - m) / (s^2 + e)    dL/ds = -w ((y_b - m)^2 - s^2) / (s^3 + e)    w = b^2, e = 1e-8
        released_2024  the same with w = b^2 + 0.1, e = 0.1 (the authors' code until July 2025)
        released       q (h(y - m) + s [s^2 - h(y_b - m)] / (s + 0.1)), h = Huber with delta 50, brackets and quotients
                       without gradient, q = clip(b^2 / (s^2 + 0.1), 0.1, 10) (the code since then)

    The first two have these gradients, and a value that is not a likelihood. h is d^2 / 2, so that under `released` the
    standard deviation settles at |d| / sqrt(2). An entry of `ema_std` that is not positive (or NaN) has not begun: it
    becomes the batch's mean. mean, std: [2, B]; targets: [B]. Raises ValueError for another form.
    """
    spread = std.detach()
    batch_std = spread.mean(-1)
    b = torch.where(ema_std > 0, torch.lerp(ema_std, batch_std, tau_b), batch_std).detach()
    centre, y = mean.detach(), mean_target.detach()
    bound = (xi * b)[:, None]
    error = torch.minimum(torch.maximum(sampled_target.detach() - centre, -bound), bound)  # y_b - m
    if form == "released":
        ratio = (b[:, None].square() / (spread.square() + _RELEASED_BIAS)).clamp(0.1, 10.0)
        of_mean = huber_loss(mean, y.expand_as(mean), reduction="none", delta=_HUBER_DELTA)
        of_error = huber_loss(error, torch.zeros_like(error), reduction="none", delta=_HUBER_DELTA)
        of_std = std * (spread.square() - of_error) / (spread + _RELEASED_BIAS)
        return (ratio * (of_mean + of_std)).mean(-1).sum(), b
    if form not in ("nll", "released_2024"):
        raise ValueError(f"form={form!r} is no distributional loss; choose nll, released or released_2024")
    eps, floor = (_NLL_EPS, 0.0) if form == "nll" else (_RELEASED_BIAS, _RELEASED_BIAS)
    slope_mean = -(y - centre) / (spread.square() + eps)
    slope_std = -(error.square() - spread.square()) / (spread.pow(3) + eps)
    return ((b.square() + floor) * (slope_mean * mean + slope_std * std).mean(-1)).sum(), b


def mixture_logprob(weights: Tensor, mean: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    """Log-density (nats) of the squashed mixture sum_k w_k tanh(N_k) at each expert's own u_k: [B, K].

    `weights [B, K]` sum to 1; mean, log_std and u are [B, K, d]. The tanh's slope counts once: it depends on u alone.
    """
    under_each = _normal_logprob(mean[:, None], log_std[:, None], u[:, :, None]).sum(-1)  # [B, point, expert]
    log_weights = weights.clamp_min(torch.finfo(weights.dtype).tiny).log()
    return torch.logsumexp(log_weights[:, None] + under_each, -1) - _log_tanh_slope(u).sum(-1)


def gate_loss(weights: Tensor, values: Tensor) -> Tensor:
    """PMOE's frequency loss, mean_B sum_k (w_k - v_k)^2, v = 1 at the expert whose action is valued highest: [].

    weights, values: [B, K]; `values` gets no gradient.
    """
    best = one_hot(values.argmax(-1), values.shape[-1]).to(weights.dtype)
    return (weights - best).square().sum(-1).mean()


def _normal_logprob(mean: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
    return -0.5 * ((u - mean) * torch.exp(-log_std)).square() - log_std - _HALF_LOG_2PI


def _log_tanh_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2), element by element."""
    return 2 * (math.log(2) - u - softplus(-2 * u))


def _bootstrapped(reward: Tensor, terminated: Tensor, follows: Tensor, gamma: float) -> Tensor:
    return (reward + gamma * torch.where(terminated.bool(), 0.0, follows)).detach()
