"""Updates are torch's own on the same noisy means, schedules are those of transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from privft.randomness import KeyedStreams
from privft.training import loop
from privft.training.adapter import LoraSpec, attach_classifier
from privft.training.losses import TrainedModel, trained_parameters
from privft.training.optimiser import (
    NoiseCorrectedAdam,
    Optimisation,
    learning_rate_factor,
    make_optimizer,
)
from tests.training.tiny import ListUnits, label_units, mechanism, tiny_bert

STEPS = 10
MECHANISM = mechanism(steps=STEPS)
UNITS = label_units([[5, 9], [12], [21, 17, 3], [8], [2], [33], [7, 7]], labels=3)

SCHEDULES = {
    "constant": get_constant_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
    "linear": get_linear_schedule_with_warmup,
}


def classifier() -> TrainedModel:
    """LoRA and a head, so that two learning rates are in play."""
    bert = tiny_bert(dtype=torch.float32)
    return attach_classifier(bert, LoraSpec(r=2), seed=5, pad_id=0, labels=3)


def train(
    monkeypatch: pytest.MonkeyPatch, plan: Optimisation
) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The trained parameters, and the noisy sums that the loop saw."""
    sound, seen = loop.add_noise, []

    def recorded(*args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        noisy = sound(*args, **kwargs)
        seen.append({name: value.clone() for name, value in noisy.items()})
        return noisy

    monkeypatch.setattr(loop, "add_noise", recorded)
    model = classifier()
    loop.train(
        model,
        units=ListUnits(UNITS),
        canaries=[],
        mechanism=MECHANISM,
        max_records_per_unit=2,
        optimisation=plan,
        performance=loop.Performance(token_budget=64),
        streams=KeyedStreams(bytes(32)),
        context={},
        journal=lambda step, digest: None,
        save=lambda state: None,
    )
    return {n: p.detach().clone() for n, p in trained_parameters(model).items()}, seen


def hugging_face(schedule: str, warmup_ratio: float, steps: int) -> list[float]:
    """Factors by transformers' own schedulers.

    Its first step of a warm-up has the rate zero, which would be paid for and do nothing; privft's
    warm-up is one step ahead, and the rest is the same.
    """
    warmup = math.ceil(warmup_ratio * steps)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    total = {} if schedule == "constant" else {"num_training_steps": steps}
    scheduler = SCHEDULES[schedule](optimizer, num_warmup_steps=warmup, **total)
    factors = []
    for _ in range(steps + 1):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors[1 : warmup + 1] + factors[warmup:steps]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 0.25, 0.33])
@pytest.mark.parametrize("steps", [10, 37])
def test_schedules_are_those_of_transformers(
    schedule: str, warmup_ratio: float, steps: int
) -> None:
    plan = Optimisation(
        learning_rate=1.0,
        lr_scheduler_type=schedule,  # type: ignore[arg-type]
        warmup_ratio=warmup_ratio,
    )
    ours = [learning_rate_factor(plan, step, steps) for step in range(steps)]
    assert ours == pytest.approx(hugging_face(schedule, warmup_ratio, steps)[:steps], rel=1e-12)
    assert min(ours) > 0, "every step is paid for"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.5])
def test_a_single_step_has_the_whole_rate(schedule: Any, warmup_ratio: float) -> None:
    plan = Optimisation(learning_rate=1.0, lr_scheduler_type=schedule, warmup_ratio=warmup_ratio)
    assert learning_rate_factor(plan, 0, 1) == 1.0


REFERENCES = {
    "sgd": lambda groups, plan: torch.optim.SGD(
        groups, lr=1.0, momentum=plan.momentum, weight_decay=plan.weight_decay
    ),
    "adamw_torch": lambda groups, plan: torch.optim.AdamW(
        groups,
        lr=1.0,
        betas=(plan.adam_beta1, plan.adam_beta2),
        eps=plan.adam_epsilon,
        weight_decay=plan.weight_decay,
    ),
}

PLANS = {
    "sgd": Optimisation(optim="sgd", learning_rate=0.5),
    "sgd with momentum": Optimisation(optim="sgd", learning_rate=0.05, momentum=0.9),
    "sgd with momentum, decay, cosine and warm-up": Optimisation(
        optim="sgd",
        learning_rate=0.05,
        momentum=0.5,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        warmup_ratio=0.2,
    ),
    "sgd with a head's own rate": Optimisation(
        optim="sgd", learning_rate=0.05, head_learning_rate=1.0, lr_scheduler_type="linear"
    ),
    "adam": Optimisation(learning_rate=1e-2),
    "adam with other moments": Optimisation(
        learning_rate=1e-2, adam_beta1=0.5, adam_beta2=0.9, adam_epsilon=1e-3
    ),
    "adam with decay, linear and warm-up": Optimisation(
        learning_rate=1e-2, weight_decay=0.3, lr_scheduler_type="linear", warmup_ratio=0.3
    ),
    "adam with a head's own rate and cosine": Optimisation(
        learning_rate=1e-3, head_learning_rate=3e-2, lr_scheduler_type="cosine"
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_updates_are_those_of_torch_on_the_same_noisy_means(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plan = PLANS[name]
    trained, sums = train(monkeypatch, plan)
    assert len(sums) == STEPS
    parameters = trained_parameters(classifier())
    head_rate = plan.learning_rate if plan.head_learning_rate is None else plan.head_learning_rate
    rates = [head_rate if name.startswith("head.") else plan.learning_rate for name in parameters]
    assert len({name.startswith("head.") for name in parameters}) == 2
    groups = [{"params": [parameter]} for parameter in parameters.values()]
    reference = REFERENCES[plan.optim](groups, plan)
    for step, factor in enumerate(
        hugging_face(plan.lr_scheduler_type, plan.warmup_ratio, STEPS)[:STEPS]
    ):
        for parameter, noisy in zip(parameters.values(), sums[step].values(), strict=True):
            parameter.grad = (noisy / MECHANISM.expected_batch_size).float()
        for group, rate in zip(reference.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        reference.step()
    for key, parameter in parameters.items():
        torch.testing.assert_close(trained[key], parameter.detach(), rtol=1e-6, atol=1e-7)


def corrected(
    gradients: list[torch.Tensor], variances: list[float], plan: Optimisation
) -> torch.Tensor:
    """Where a parameter that starts at 1 ends."""
    parameter = nn.Parameter(torch.ones_like(gradients[0]))
    optimizer = make_optimizer({"w": parameter}, plan)
    assert isinstance(optimizer, NoiseCorrectedAdam)
    for gradient, variance in zip(gradients, variances, strict=True):
        parameter.grad = gradient.clone()
        optimizer.param_groups[0]["noise_variance"] = variance
        optimizer.step()
    return parameter.detach()


CORRECTED = Optimisation(
    learning_rate=0.01, adam_noise_correction=True, adam_noise_floor=0.2, weight_decay=0.05
)


def test_the_noise_correction_is_algorithm_1_of_tang_et_al() -> None:
    generator = torch.Generator().manual_seed(1)
    noise, gradients = 0.7, [torch.randn(50, generator=generator).double() for _ in range(8)]
    m = v = torch.zeros(50, dtype=torch.float64)
    w = torch.ones(50, dtype=torch.float64)
    floored = 0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        floored += int((v_hat - noise < 0.2 * noise).sum())
        w = w * (1 - 0.01 * 0.05) - 0.01 * m_hat / torch.sqrt(
            torch.maximum(v_hat - noise, torch.tensor(0.2 * noise))
        )
    assert 0 < floored < 8 * 50, "the case must exercise the floor"
    torch.testing.assert_close(corrected(gradients, [noise] * 8, CORRECTED), w)


def test_a_noise_that_changes_is_averaged_as_the_second_moment_is() -> None:
    """With gradients of nothing but noise of variances s_t, what is left is the floor."""
    variances = [4.0, 1.0, 0.25]
    gradients = [torch.full((3,), math.sqrt(s), dtype=torch.float64) for s in variances]
    m = v = noise = 0.0
    w = 1.0
    for t, s in enumerate(variances, start=1):
        m, v, noise = 0.9 * m + 0.1 * s**0.5, 0.999 * v + 0.001 * s, 0.999 * noise + 0.001 * s
        assert v == pytest.approx(noise)
        second = noise / (1 - 0.999**t)
        w = w * (1 - 0.01 * 0.05) - 0.01 * m / (1 - 0.9**t) / math.sqrt(0.2 * second)
    assert corrected(gradients, variances, CORRECTED).tolist() == pytest.approx([w] * 3)


def test_without_noise_the_correction_leaves_adam() -> None:
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(20, generator=generator).double() for _ in range(5)]
    plain = nn.Parameter(torch.ones(20, dtype=torch.float64))
    optimizer = torch.optim.AdamW([plain], lr=0.01, eps=0.0, weight_decay=0.05)
    for gradient in gradients:
        plain.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(corrected(gradients, [0.0] * 5, CORRECTED), plain.detach())


def test_the_correction_restores_the_second_moment_of_the_signal() -> None:
    """Signal 1 under noise of variance 1/2: Adam divides by sqrt(1.5), the correction by 1."""
    generator = torch.Generator().manual_seed(3)
    steps, noise = 200, 0.5
    gradients = [
        1.0 + math.sqrt(noise) * torch.randn(4000, generator=generator).double()
        for _ in range(steps)
    ]
    plan = Optimisation(learning_rate=1.0, adam_beta1=0.0, adam_noise_correction=True)
    before = corrected(gradients[:-1], [noise] * (steps - 1), plan)
    after = corrected(gradients, [noise] * steps, plan)
    divided_by = (gradients[-1] / (before - after)).square()
    assert float(divided_by.mean()) == pytest.approx(1.0, abs=0.02)


def test_the_loop_tells_the_optimiser_the_noise_of_the_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    class Watched(NoiseCorrectedAdam):
        def step(self, closure: None = None) -> None:
            seen.append([group["noise_variance"] for group in self.param_groups])
            super().step()

    monkeypatch.setattr("privft.training.optimiser.NoiseCorrectedAdam", Watched)
    train(monkeypatch, Optimisation(learning_rate=1e-3, adam_noise_correction=True))
    scale = MECHANISM.noise_multiplier * MECHANISM.clip_norm / MECHANISM.expected_batch_size
    assert seen == [[pytest.approx(scale**2)] * 2] * STEPS
