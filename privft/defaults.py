"""Settings that depend on the task where the config is silent, and what each was measured by.

A language model's adapter starts from B = 0, so its first gradients are short (a norm of 0.25 on
short notes) and its loss needs a large rate to move within tens of steps; a head on normalised
features starts with gradients longer than 1 and wants a rate some thirty times that of an adapter
below it.  One number for both would serve neither.  The figures are those of the recipes that were
best on held-out records (`benchmarks/README.md`, "utility"), with `adamw_torch`; sgd wants rates
of its own.

What is filled in stands in the plan and in the report like everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BY_TASK: Mapping[str, Mapping[tuple[str, str], float]] = {
    "causal-lm": {
        ("privacy", "max_grad_norm"): 0.3,
        ("training", "learning_rate"): 5e-3,
    },
    "sequence-classification": {
        ("privacy", "max_grad_norm"): 1.0,
        ("training", "learning_rate"): 1e-3,
        ("training", "head_learning_rate"): 0.02,
    },
}


def filled_in(data: Any) -> Any:
    """The config's data with the defaults of its task where it is silent; a null stays a null.

    Data of another form than a config's are given back as they are: whoever validates says so.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("task"), str):
        return data
    full = dict(data)
    for (section, key), value in BY_TASK.get(data["task"], {}).items():
        given = full.get(section, {} if section == "training" else None)  # the optional section
        if isinstance(given, Mapping) and key not in given:
            full[section] = {**given, key: value}
    return full
