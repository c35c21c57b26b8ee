"""What a run costs by its config alone, and what a budget still affords.

A config names a noise multiplier, or a target epsilon that the noise is calibrated to; either way
the `Mechanism` here is the one that is planned, priced and trained.  `fitted` is `plan --fit`: the
config with the largest target that policy and budget admit.
"""

from __future__ import annotations

import math

from privft.budget.accounting import calibrate_noise, cost
from privft.budget.filter import admit
from privft.budget.history import BudgetView
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Mechanism
from privft.config import RunConfig
from privft.errors import BudgetExceeded
from privft.policy import Policy
from privft.stages.data import dataset_entry, policy_of
from privft.workspace import Workspace

_LEAST_NOISE, _MOST_NOISE = 0.2, 1e4  # multipliers between which a fitting one is sought


def mechanism_of(config: RunConfig) -> Mechanism:
    """The mechanism that a config asks for; calibrates the noise to a target epsilon."""
    privacy = config.privacy
    noise = privacy.noise_multiplier
    if noise is None:
        assert privacy.target_epsilon is not None
        noise = calibrate_noise(
            target_epsilon=privacy.target_epsilon,
            delta=privacy.delta_value,
            sampling_probability=privacy.sampling_probability,
            steps=privacy.max_steps,
        )
    return mechanism_with(config, noise)


def mechanism_with(config: RunConfig, noise: float) -> Mechanism:
    """The mechanism of a config at this noise multiplier."""
    privacy = config.privacy
    return Mechanism(
        unit=privacy.unit,
        sampling_probability=privacy.sampling_probability,
        noise_multiplier=noise,
        clip_norm=privacy.max_grad_norm,
        steps=privacy.max_steps,
        expected_batch_size=float(privacy.expected_batch_size),
        noise="discrete-gaussian" if privacy.secure_noise else "gaussian",
        clipping=privacy.clipping,
    )


def affordable_epsilon(config: RunConfig, policy: Policy, view: BudgetView) -> float | None:
    """The largest target epsilon that budget (in steps of 0.05) and policy still admit, if any."""
    spent = (*view.spent, *view.reserved)

    def admitted(noise: float) -> bool:
        return admit(view.cap, spent, (mechanism_with(config, noise).event(),)).admitted

    low, high = _LEAST_NOISE, _MOST_NOISE
    if not admitted(high):
        return None
    while high > low * 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if admitted(middle) else (middle, high)
    alone = cost((mechanism_with(config, high).event(),), config.privacy.delta_value).epsilon
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
