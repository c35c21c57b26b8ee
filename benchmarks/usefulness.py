"""Below which ratio of signal to noise does a run teach too little to be of use?

`privft plan` warns by a rule (`privft.stages.outlook`) whose one number is s = sqrt(steps) *
expected batch / noise multiplier: how many standard deviations of noise the signal of a whole run
is worth along one direction, if all units agreed on it.  Here the thresholds of that rule are
measured, and whether s is the number that matters: the same s from few units with little noise and
from many with much, and from few large batches and many small ones, should leave the same share of
what is learnt.

A linear head on the normalised features of MiniLM (mean pooling, times ten) learns the 77 intents
of Banking77 by DP-SGD as privft does it: Poisson sampling, clip norm 1, noise on the sum, divided
by the expected batch, Adam at 0.03 from zero.  The head's gradients are known in closed form, so a
cell takes a second; the noise is torch's, since nothing here is private.  The share kept is
(accuracy - chance) over the same without noise, with as many units and steps; medians over seeds.

    python benchmarks/usefulness.py [--data ../shared/data] [--out FILE]

Prints a table and writes `results/usefulness.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from real_text import machine
from torch import nn
from utility import DATA, Banking

from privft.training.adapter import attach_classifier
from privft.training.examples import UnitExamples, microbatches
from privft.training.losses import Classifier, pad_rows

RESULTS = Path(__file__).resolve().parent / "results" / "usefulness.json"
RATIOS = (30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
UNITS = (500, 2000, 10003)
SHAPES = ((0.2, 100), (0.05, 400))
"""(sampling probability, steps)."""
SEEDS = (0, 1, 2)
RATE = 0.03


def features(model: Classifier, units: Sequence[UnitExamples]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of all units, with a 1 for the bias, [N, D]; labels, [N]."""
    rows, labels = [], []
    with torch.no_grad():
        for batch in microbatches(units, token_budget=8192):
            examples = [unit.examples[0] for unit in batch]
            ids, mask = pad_rows(examples, batch[0].bucket, model.pad_id, torch.device("cpu"))
            rows.append(model.features(ids, mask))
            labels += [example.labels[0] for example in examples]
    return nn.functional.pad(torch.cat(rows), (0, 1), value=1.0), torch.tensor(labels)


def accuracy(
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    *,
    units: int,
    probability: float,
    steps: int,
    noise_multiplier: float,
    seed: int,
) -> float:
    """Test accuracy of a head trained on so many of the units."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train[0]), generator=generator)[:units]
    inputs, labels = train[0][chosen], train[1][chosen]
    head = torch.zeros((77, inputs.shape[1]), requires_grad=True)
    optimizer = torch.optim.AdamW([head], lr=RATE, weight_decay=0.0)
    for _ in range(steps):
        sampled = torch.rand(len(inputs), generator=generator) < probability
        x, y = inputs[sampled], labels[sampled]
        errors = torch.softmax(x @ head.detach().T, dim=1)
        errors[torch.arange(len(y)), y] -= 1
        norms = errors.norm(dim=1) * x.norm(dim=1)  # of the outer product, a unit's gradient
        total = (errors / norms.clamp(min=1.0)[:, None]).T @ x
        noise = noise_multiplier * torch.randn(total.shape, generator=generator)
        head.grad = (total + noise) / (probability * units)
        optimizer.step()
    right = (test[0] @ head.detach().T).argmax(dim=1) == test[1]
    return float(right.double().mean())


def measure(data: Path) -> list[dict[str, Any]]:
    """One row for each number of units, shape of run, and ratio."""
    banking = Banking(data=data)
    model = attach_classifier(
        banking.bench.base_module(), None, seed=0, pad_id=banking.bench.pad_id, labels=77
    )
    train, test = (features(model, half) for half in banking.splits["test"])
    rows = []
    for units in UNITS:
        for probability, steps in SHAPES:
            without = None
            for ratio in (math.inf, *RATIOS):
                found = [
                    accuracy(
                        train,
                        test,
                        units=units,
                        probability=probability,
                        steps=steps,
                        noise_multiplier=math.sqrt(steps) * probability * units / ratio,
                        seed=seed,
                    )
                    for seed in SEEDS
                ]
                middle = statistics.median(found)
                without = middle if without is None else without
                rows.append(
                    {
                        "units": units,
                        "sampling_probability": probability,
                        "steps": steps,
                        "ratio": None if math.isinf(ratio) else ratio,
                        "accuracy": found,
                        "share_kept": (middle - 1 / 77) / (without - 1 / 77),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="When does a run stop to be of use?")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(chosen.data)
    print("share of the gain kept, by s = sqrt(T) B / sigma")
    print(f"{'units':>7} {'q':>5} {'T':>4} {'no noise':>9}", *(f"{r:>7g}" for r in RATIOS))
    for at in range(0, len(rows), 1 + len(RATIOS)):
        first, *rest = rows[at : at + 1 + len(RATIOS)]
        print(
            f"{first['units']:>7} {first['sampling_probability']:>5} {first['steps']:>4} "
            f"{statistics.median(first['accuracy']):>9.3f}",
            *(f"{row['share_kept']:>7.2f}" for row in rest),
        )
    chosen.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
