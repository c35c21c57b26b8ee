"""What becomes of a noisy mean gradient, and a note on what each option does under noise.

All of this is post-processing: it changes what a run learns, never what it costs.

The gradient that an optimiser gets here is g + n.  Every coordinate of n is normal with the same
standard deviation s = noise_multiplier * clip_norm / expected_batch_size, whatever the gradient
there; with LoRA on few units s is far above |g| in nearly all of them.  What follows from that:

    momentum (sgd)
        averages the noise of about 1/(1 - m) steps: in the buffer it grows to s/sqrt(1 - m^2) while
        a steady gradient grows to g/(1 - m), so g stands sqrt((1 + m)/(1 - m)) times higher above
        it (4.4 times at m = 0.9).  Over a whole run nothing is won: each noise still enters the
        weights with lr/(1 - m), so m also acts as a larger rate.  Runs of few steps end before the
        buffer has filled.
    adam_beta1
        the same averaging, normalised: n shrinks to s sqrt((1 - b1)/(1 + b1)).
    adam_beta2, adam_epsilon
        the second moment estimates g^2 + s^2, and where s is large that is s^2 in all coordinates:
        Adam is then momentum at the rate lr/s, and what is adaptive about it is gone (Tang,
        Shpilevskiy, Lecuyer 2024, arXiv 2312.14334).  What remains is useful: a learning rate that
        keeps its meaning when clip norm, noise or batch size change.  Epsilon, far below s, does
        nothing.
    adam_noise_correction
        subtracts s^2 from the second moment again (DP-AdamBC, Algorithm 1 of that paper), with a
        floor, because estimates of g^2 near zero come out negative.  Steps grow, by at most
        1/sqrt(adam_noise_floor) where gradients are lost in the noise, so learning_rate has to be
        tuned again.  Off by default, since the evidence is mixed: up to 3.5 points better in that
        paper; consistently worse with decoupled weight decay, which is what privft has, in Chooi et
        al. 2025 (arXiv 2511.07843); and Ganesh, McMahan, Thakurta 2025 (arXiv 2507.01129) find the
        aim of an unbiased second moment misguided.
    warmup_ratio
        Adam's first second moments are of few gradients, so its first steps go by the full rate in
        the direction of the noise; a warm-up keeps them small.  Steps are paid for all alike, so
        unlike transformers' the first rate is not zero.
    lr_scheduler_type
        noise of the last steps is not averaged out by later ones: a falling rate leaves less of it
        in the result.  It also leaves less signal, which in runs of a few tens of steps, as tight
        budgets allow, may be the larger loss; the default is constant.
    weight_decay
        without it noise makes weights walk: a coordinate that learns nothing has the variance
        T lr^2 s^2 after T steps of sgd.  Decay bounds that (by lr s^2 / 2 wd) and pulls B of LoRA
        and a head back to zero, which is the base model.  Decoupled with adamw_torch, added to the
        gradient with sgd, as in torch.
    head_learning_rate
        a head of few numbers that starts from zero has far more signal in each of them than an
        adapter, and takes a larger rate.
    dropout
        adds the variance of its masks to every unit's gradient, on top of n; it lessens memorising,
        which n and clipping do already.

What happens before the noise is added changes how much of g is left (`training.clipping`):

    clipping: automatic
        no unit counts less because its gradient is small, so clip_norm stops mattering but as a
        part of the learning rate (with adamw_torch not even that).
    clipping: adaptive
        holds the share of clipped units as gradients grow or shrink, of use with LoRA, whose
        gradients are small while B is near zero; gradients get a little more noise, which pays for
        the count (`training.adaptive`).
    clipping: per-layer
        a layer cannot crowd out the others, but a unit whose gradient lies in one of L layers keeps
        only 1/sqrt(L) of what flat clipping would leave.
    lora.freeze_a
        with both factors noisy their product holds noise times noise; with A frozen it is linear in
        the noise, and half as many numbers get any (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """What happens to a noisy mean gradient; post-processing, so free of privacy cost.

    head_learning_rate: for parameters whose name starts with "head."; None means the common one.
    momentum: of sgd; Adam's is adam_beta1.
    adam_noise_correction, adam_noise_floor: see `NoiseCorrectedAdam`.
    clip_quantile, clip_learning_rate: where adaptive clipping wants the clip norm and how fast it
        goes there (`adaptive.next_clip_norm`).
    """

    optim: Literal["adamw_torch", "sgd"] = "adamw_torch"
    learning_rate: float
    head_learning_rate: float | None = None
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = "constant"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_noise_correction: bool = False
    adam_noise_floor: float = 0.1
    momentum: float = 0.0
    clip_quantile: float = 0.5
    clip_learning_rate: float = 0.2


def learning_rate_factor(plan: Optimisation, step: int, steps: int) -> float:
    """What the learning rate of 0-based `step` is multiplied by; never 0."""
    warmup = math.ceil(plan.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    if plan.lr_scheduler_type == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    if plan.lr_scheduler_type == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))


class NoiseCorrectedAdam(torch.optim.Optimizer):
    """DP-AdamBC (Tang et al. 2024, Algorithm 1) with decoupled weight decay.

        m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
        w = w - lr wd w - lr m_hat / sqrt(max(v_hat - s^2, floor * s^2))

    with m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t), g noisy, and s^2 the variance of its
    noise, which whoever steps sets as `noise_variance` of each group.  Where that changes between
    steps (adaptive clipping), s^2 is averaged as v is, so that what is subtracted is what is in it.
    The paper's floor gamma' is a number of its own; here it is a share of s^2, so that it keeps its
    meaning when clip norm, noise or batch size change: gamma' = floor * s^2.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float],
        floor: float,
        weight_decay: float,
    ) -> None:
        defaults = {"betas": betas, "floor": floor, "weight_decay": weight_decay}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: nn.Parameter, group: Mapping[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["noise_sq"] = torch.zeros((), dtype=torch.float64)
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        state["noise_sq"].mul_(beta2).add_((1 - beta2) * group["noise_variance"])
        steps = float(state["step"])
        first, second = 1 - beta1**steps, 1 - beta2**steps
        noise = float(state["noise_sq"]) / second
        signal = state["exp_avg_sq"].div(second).sub_(noise).clamp_(min=group["floor"] * noise)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], signal.sqrt_(), value=-group["lr"] / first)


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], plan: Optimisation
) -> torch.optim.Optimizer:
    """The optimiser of the noisy means; two groups where the head has its own learning rate."""
    head = [p for name, p in parameters.items() if name.startswith("head.")]
    body = [p for name, p in parameters.items() if not name.startswith("head.")]
    head_rate = plan.head_learning_rate or plan.learning_rate
    groups = [
        {"params": group, "lr": rate, "base_lr": rate}
        for group, rate in ((body, plan.learning_rate), (head, head_rate))
        if group
    ]
    if plan.optim == "sgd":
        return torch.optim.SGD(
            groups,
            lr=plan.learning_rate,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
            foreach=False,
        )
    betas = (plan.adam_beta1, plan.adam_beta2)
    if plan.adam_noise_correction:
        return NoiseCorrectedAdam(
            groups, betas=betas, floor=plan.adam_noise_floor, weight_decay=plan.weight_decay
        )
    return torch.optim.AdamW(
        groups,
        lr=plan.learning_rate,
        betas=betas,
        eps=plan.adam_epsilon,
        weight_decay=plan.weight_decay,
        foreach=False,
    )


def set_step(
    optimizer: torch.optim.Optimizer, plan: Optimisation, *, step: int, steps: int, noise: float
) -> None:
    """Give every group the learning rate of 0-based `step`, and the variance of the noise.

    noise: standard deviation of the noise in each coordinate of the mean gradient.
    """
    factor = learning_rate_factor(plan, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        group["noise_variance"] = noise**2
