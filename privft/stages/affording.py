"""What a run costs by its config alone, and what a budget still affords.

A config names a noise multiplier, or a target epsilon that the noise is calibrated to; either way
the `Mechanism` here is the one that is planned, priced and trained.  `fitted` is `plan --fit`: the
config with the largest target that policy and budget admit.
"""

from __future__ import annotations

import math

from privft.budget.accounting import calibrate_noise, cost
from privft.budget.calibration import calibrate_list
from privft.budget.filter import admit
from privft.budget.history import BudgetView
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event, Mechanism
from privft.config import PrivacyConfig, RunConfig
from privft.errors import BudgetExceeded, ConfigError
from privft.policy import Policy
from privft.stages.data import dataset_entry, policy_of
from privft.workspace import Workspace

_LEAST_NOISE, _MOST_NOISE = 0.2, 1e4  # multipliers between which a fitting one is sought


def mechanism_of(config: RunConfig) -> Mechanism:
    """The mechanism that a config asks for; calibrates the noise to a target epsilon, of which a
    score on held-out units takes its part first."""
    privacy, score = config.privacy, config.score_events()
    noise, target = privacy.noise_multiplier, privacy.target_epsilon
    if noise is None and score:
        assert target is not None
        noise = calibrate_list(
            lambda value: (_event(privacy, value), *score),
            target_epsilon=target,
            delta=privacy.delta_value,
        )
    elif noise is None:
        assert target is not None
        noise = calibrate_noise(
            target_epsilon=target,
            delta=privacy.delta_value,
            sampling_probability=privacy.sampling_probability,
            steps=privacy.max_steps,
        )
    return mechanism_with(config, noise)


def mechanism_with(config: RunConfig, noise: float) -> Mechanism:
    """The mechanism of a config at this noise multiplier.

    Errors: `ConfigError` when the noise that it names for the count of adaptive clipping is so
    small that the count alone would cost more than the run.
    """
    privacy = config.privacy
    count_noise = _count_noise(privacy, noise)
    if count_noise is not None and 2 * count_noise <= noise:
        raise ConfigError(
            f"privacy.adaptive.count_noise is {count_noise:g}, and must be above half the noise "
            f"multiplier {noise:.4g}",
            hint=f"leave it out, or write {2 * noise:.2g}",
        )
    return Mechanism(
        unit=privacy.unit,
        sampling_probability=privacy.sampling_probability,
        noise_multiplier=noise,
        clip_norm=privacy.max_grad_norm,
        steps=privacy.max_steps,
        expected_batch_size=float(privacy.expected_batch_size),
        noise="discrete-gaussian" if privacy.secure_noise else "gaussian",
        clipping=privacy.clipping,
        count_noise=count_noise,
    )


def _count_noise(privacy: PrivacyConfig, noise: float) -> float | None:
    """The noise on the count of adaptive clipping (`config.AdaptiveClippingConfig`)."""
    if privacy.clipping != "adaptive":
        return None
    named = privacy.adaptive.count_noise if privacy.adaptive else None
    return named or max(privacy.expected_batch_size / 20, 2 * noise)


def _event(privacy: PrivacyConfig, noise: float) -> Event:
    return Event(
        noise_multiplier=noise,
        sampling_probability=privacy.sampling_probability,
        count=privacy.max_steps,
    )


def affordable_epsilon(config: RunConfig, policy: Policy, view: BudgetView) -> float | None:
    """The largest target epsilon that budget (in steps of 0.05) and policy still admit, if any."""
    spent = (*view.spent, *view.reserved)

    def events(noise: float) -> tuple[Event, ...]:
        return (_event(config.privacy, noise), *config.score_events())

    def admitted(noise: float) -> bool:
        return admit(view.cap, spent, events(noise)).admitted

    low, high = _LEAST_NOISE, _MOST_NOISE
    if view.exhausted or not admitted(high):
        return None
    while high > low * 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if admitted(middle) else (middle, high)
    alone = cost(events(high), config.privacy.delta_value).epsilon
    return min(math.floor(alone * 20) / 20, policy.max_epsilon_per_run.value) or None


def fitted(workspace: Workspace, ledger: Ledger, config: RunConfig) -> RunConfig:
    """The config with the largest target epsilon that budget and policy admit (`plan --fit`)."""
    dataset = dataset_entry(ledger, config.dataset).body
    view = ledger.budget(dataset["lineage"])
    policy = policy_of(workspace, ledger, config.dataset)
    best = affordable_epsilon(config, policy, view)
    if best is None:
        raise BudgetExceeded(
            f"nothing fits: {view.epsilon_left:.2f} of {view.cap.epsilon:.2f} is left for dataset "
            f"{config.dataset}",
            hint="fewer steps or a smaller expected batch size cost less",
        )
    wanted = config.privacy.target_epsilon
    target = best if wanted is None else min(best, wanted)
    privacy = config.privacy.model_copy(update={"target_epsilon": target, "noise_multiplier": None})
    return config.model_copy(update={"privacy": privacy})
