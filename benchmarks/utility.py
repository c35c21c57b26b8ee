"""What does private training gain on real text, by which recipe, and where does LoRA not pay?

    banking77     accuracy over 77 intents, MiniLM, record level, delta 1e-5; epsilon infinity, 8, 3
                  and 1, three seeds; a head alone on frozen features, and LoRA in the last three
                  layers with a head; what each choice is worth, changed one at a time
    mts-dialog    held-out loss a completion token, SmolLM2 with LoRA: base with a bare prompt, base
                  asked in its chat template as all others are, epsilon infinity and 8

Every run is a config (`recipes/banking77.yaml` or `recipes/mts-dialog.yaml`, with changes) and goes
through privft's own `train` with calibrated noise.  What is frozen below the trained layers gives
the same numbers in every step, so it is computed once and kept in memory: a table of pooled
features for a head alone, the third layer's states for LoRA.  `check` compares both with the whole
model.  "Epsilon infinity" is the same recipe with a noise multiplier of 1e-6.

Tuning sees 1,000 records that are held out of the training set; the test set is for `final` rows
alone, whose recipe is the one with the best mean accuracy on the held-out records over epsilon 8,
3 and 1.  The rival to reach is the same kind of head, tuned on the test set (`RIVAL`).

    python benchmarks/utility.py [--only tune final ablate mts] [--data ../shared/data]

Each finished cell is written to `results/utility.json` at once and skipped the next time, so the
run may be stopped whenever it must.  `--list` says what is done.  The config of a cell stands in
its row, and the recommended one is printed as YAML.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from real_text import machine
from torch import nn

from privft.budget.accounting import calibrate_noise
from privft.budget.mechanism import Mechanism
from privft.config import RunConfig, parse_config
from privft.randomness import KeyedStreams
from privft.stages.modelling import Workbench, find_base
from privft.training.adapter import LoraSpec, attach_classifier
from privft.training.examples import Example, UnitExamples, microbatches
from privft.training.kernels import use_reproducible_kernels
from privft.training.loop import Performance, train
from privft.training.losses import Classifier, pad_rows
from privft.training.scoring import unit_accuracies, unit_losses

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "utility.json"
DATA = HERE.parents[1] / "shared" / "data"
DELTA = 1e-5
EPSILONS = (None, 8.0, 3.0, 1.0)
SEEDS = (0, 1, 2)
HELD_OUT = 1000
RIVAL = {None: 0.926, 8.0: 0.910, 3.0: 0.887, 1.0: 0.811}
"""Test accuracy of a zero head on normalised features times ten, DP-SGD by Adam at 0.03, clip 1,
expected batch 2000, 150 steps; tuned on the test set, and so a little flattered."""
MARGIN = 0.006
MOST_TOKENS = 400_000
LOWER = 3
"""Layers of MiniLM below the ones that LoRA changes."""
LORA = {
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["query", "value"],
    "layers_to_transform": [3, 4, 5],
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is tuned, as sections of a config; and how a cell departs from the product."""

    lora: bool
    batch: int
    steps: int
    head_rate: float
    rate: float = 1e-3
    clip: float = 1.0
    pooling: str = "mean"
    features: str = "normalised x10"
    start: str = "zero"
    freeze_a: bool = False

    def changes(self, *, epsilon: float | None, declared: int, seed: int) -> dict[str, Any]:
        """Sections of `recipes/banking77.yaml` to change."""
        noise = {"noise_multiplier": 1e-6} if epsilon is None else {"target_epsilon": epsilon}
        return {
            "lora": LORA if self.lora else None,
            "privacy": {
                "unit": "record",
                "declared_units": declared,
                "delta": DELTA,
                "max_grad_norm": self.clip,
                "expected_batch_size": self.batch,
                "max_steps": self.steps,
                **noise,
            },
            "training": {
                "learning_rate": self.rate,
                "head_learning_rate": self.head_rate,
                "seed": seed,
            },
        }


HEADS = tuple(
    Recipe(lora=False, batch=batch, steps=steps, head_rate=rate, clip=clip)
    for batch, steps, rate, clip in (
        (2000, 150, 0.03, 1.0),
        (2000, 150, 0.02, 1.0),
        (2000, 150, 0.05, 1.0),
        (2000, 100, 0.03, 1.0),
        (1000, 150, 0.03, 1.0),
        (2000, 150, 0.03, 3.0),
    )
)
LORAS = tuple(
    Recipe(lora=True, batch=batch, steps=steps, head_rate=head_rate, rate=rate, freeze_a=frozen)
    for batch, steps, head_rate, rate, frozen in (
        (1000, 100, 0.03, 1e-3, False),
        (1000, 100, 0.03, 1e-3, True),
        (1000, 100, 0.02, 1e-3, True),
    )
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a recipe at an epsilon with a seed, measured on `held-out` or `test`."""

    stage: str
    label: str
    recipe: Recipe
    epsilon: float | None
    seed: int
    split: str

    @property
    def key(self) -> str:
        """What the cell is found under; anything that changes the run changes it."""
        known = json.dumps(vars(self.recipe), sort_keys=True)
        digest = hashlib.sha256(known.encode()).hexdigest()[:8]
        at = "inf" if self.epsilon is None else f"{self.epsilon:g}"
        return f"{self.stage}/{self.label}/eps{at}/seed{self.seed}/{self.split}/{digest}"


def _base_config(task: str) -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load((HERE / "recipes" / f"{task}.yaml").read_text())
    return body


def config_of(task: str, changes: Mapping[str, Any]) -> RunConfig:
    """The task's recipe with whole sections replaced."""
    return parse_config(json.dumps({**_base_config(task), **changes}))


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


class Given:
    """Units that are in memory already."""

    def __init__(self, units: Sequence[UnitExamples]) -> None:
        self._units = units

    def __len__(self) -> int:
        return len(self._units)

    def examples(self, positions: Any) -> list[UnitExamples]:
        return [self._units[position] for position in positions]


def run(
    model: Any,
    bench: Workbench,
    units: Sequence[UnitExamples],
    *,
    seed: int,
    token_budget: int,
    tell: Callable[[Any], None] = lambda report: None,
) -> dict[str, Any]:
    """Train `model` in place as the config says; the mechanism's numbers and the seconds."""
    privacy = bench.config.privacy
    sigma = privacy.noise_multiplier or calibrate_noise(
        target_epsilon=float(privacy.target_epsilon or 0),
        delta=privacy.delta_value,
        sampling_probability=privacy.sampling_probability,
        steps=privacy.max_steps,
    )
    mechanism = Mechanism(
        unit=privacy.unit,
        sampling_probability=privacy.sampling_probability,
        noise_multiplier=sigma,
        clip_norm=privacy.max_grad_norm,
        steps=privacy.max_steps,
        expected_batch_size=float(privacy.expected_batch_size),
    )
    use_reproducible_kernels()
    started = time.monotonic()
    train(
        model,
        units=Given(units),
        canaries=[],
        mechanism=mechanism,
        max_records_per_unit=privacy.records_per_unit,
        optimisation=bench.optimisation(),
        performance=Performance(token_budget=token_budget, checkpoint_every=10**9),
        # seeded, so that a row can be had again; a run that protects anybody draws its secret
        streams=KeyedStreams(hashlib.sha256(f"utility {seed}".encode()).digest()),
        context={},
        journal=lambda step, digest: None,
        save=lambda state: None,
        tell=tell,
    )
    return {
        "noise_multiplier": sigma,
        "sampling_probability": privacy.sampling_probability,
        "seconds": round(time.monotonic() - started, 1),
    }


# ---------------------------------------------------------------------------- banking77


class Table(nn.Module):
    """An encoder that looks a record's pooled vector up: `input_ids` is [[number of the record]].

    One token whose state is the vector, so that the classifier's own mean pooling gives it back.
    """

    def __init__(self, vectors_ND: torch.Tensor) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors_ND, requires_grad=False)
        self.config = SimpleNamespace(hidden_size=vectors_ND.shape[1])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.vectors[input_ids])


class Upper(nn.Module):
    """The layers from `LOWER` on; what lies below is looked up by a record's tokens.

    pooling "cls" puts the first token's state in every place, which mean pooling then returns.
    """

    def __init__(self, bert: Any, states: Mapping[tuple[int, ...], torch.Tensor], pooling: str):
        super().__init__()
        self.encoder = bert.encoder
        self.config = bert.config
        self.states = states
        self.pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **unused: Any) -> Any:
        rows, places = input_ids.shape
        hidden_RTD = torch.zeros(rows, places, self.config.hidden_size)
        counts = (attention_mask[:, 0, 0] == 0).sum(1).tolist()  # it is added to scores
        for row, (ids, count) in enumerate(zip(input_ids.tolist(), counts, strict=True)):
            hidden_RTD[row, :count] = self.states[tuple(ids[:count])]
        for layer in self.encoder.layer[LOWER:]:
            out = layer(hidden_RTD, attention_mask)
            hidden_RTD = out[0] if isinstance(out, tuple) else out
        if self.pooling == "cls":
            hidden_RTD = hidden_RTD[:, :1].expand_as(hidden_RTD)
        return SimpleNamespace(last_hidden_state=hidden_RTD)


@dataclass(kw_only=True)
class Banking:
    """The corpus, its features, and cells on it."""

    data: Path
    noise: dict[Any, float] = field(default_factory=dict)

    @cached_property
    def bench(self) -> Workbench:
        config = config_of("banking77", {})
        return Workbench.of(config, find_base(config, relative_to=HERE))

    def _encode(self, rows: Sequence[Mapping[str, str]]) -> list[UnitExamples]:
        records = ({"text": row["text"], "label": row["category"]} for row in rows)
        return [
            self.bench.encode({"unit": str(number), "records": [record]})
            for number, record in enumerate(records)
        ]

    @cached_property
    def splits(self) -> dict[str, tuple[list[UnitExamples], list[UnitExamples]]]:
        """Split -> (training units, units to measure on)."""
        rows = rows_of(self.data / "banking77" / "train.csv")
        test = self._encode(rows_of(self.data / "banking77" / "test.csv"))
        units = self._encode(rows)
        random.Random(0).shuffle(units)
        return {
            "held-out": (units[HELD_OUT:], units[:HELD_OUT]),
            "test": (units, test),
        }

    @cached_property
    def _states(self) -> dict[str, dict[tuple[int, ...], torch.Tensor]]:
        """For every record, by its tokens: the states below the trained layers, the mean of the
        last layer's states, and its first one."""
        bert = self.bench.base_module()
        everything = [unit for half in self.splits["test"] for unit in half]
        kept: dict[str, dict[tuple[int, ...], torch.Tensor]] = {"lower": {}, "mean": {}, "cls": {}}
        with torch.no_grad():
            for batch in microbatches(everything, token_budget=8192):
                examples = [example for unit in batch for example in unit.examples]
                ids, mask = pad_rows(
                    examples, batch[0].bucket, self.bench.pad_id, torch.device("cpu")
                )
                states = bert(
                    input_ids=ids, attention_mask=mask, output_hidden_states=True
                ).hidden_states
                for row, example in enumerate(examples):
                    count, key = len(example.input_ids), example.input_ids
                    kept["lower"][key] = states[LOWER][row, :count].clone()
                    kept["mean"][key] = states[-1][row, :count].mean(0)
                    kept["cls"][key] = states[-1][row, 0].clone()
        return kept

    def _numbered(self, units: Sequence[UnitExamples], pooling: str) -> list[UnitExamples]:
        """The units for a `Table`: their one token is their place in it."""
        places = {key: place for place, key in enumerate(self._states[pooling])}
        return [
            UnitExamples(
                key=unit.key,
                examples=tuple(
                    Example(input_ids=(places[e.input_ids],), labels=e.labels)
                    for e in unit.examples
                ),
            )
            for unit in units
        ]

    def model(self, recipe: Recipe, *, seed: int) -> Classifier:
        """The classifier of a recipe, on remembered states."""
        config = self.bench.config
        if recipe.lora:
            encoder: nn.Module = Upper(
                self.bench.base_module(), self._states["lower"], recipe.pooling
            )
            spec: LoraSpec | None = LoraSpec(**LORA, freeze_a=recipe.freeze_a)
        else:
            encoder = Table(torch.stack(list(self._states[recipe.pooling].values())))
            spec = None
        model = attach_classifier(
            encoder, spec, seed=seed, pad_id=self.bench.pad_id, labels=len(config.labels or ())
        )
        if recipe.start == "torch's":
            torch.manual_seed(seed)
            model.head.reset_parameters()
        if recipe.features == "normalised":
            model.FEATURE_SCALE = 1.0  # type: ignore[misc]
        elif recipe.features == "as they are":
            model.features = _plain_features(model)  # type: ignore[method-assign]
        return model

    def cell(self, cell: Cell) -> dict[str, Any]:
        """Train and measure."""
        training, measured = self.splits[cell.split]
        changes = cell.recipe.changes(epsilon=cell.epsilon, declared=len(training), seed=cell.seed)
        config = config_of("banking77", changes)
        bench = Workbench(config=config, base=self.bench.base, tokenizer=self.bench.tokenizer)
        model = self.model(cell.recipe, seed=cell.seed)
        budget = 4096
        if not cell.recipe.lora:
            training, measured = (
                self._numbered(units, cell.recipe.pooling) for units in (training, measured)
            )
            budget = HEAD_BUDGET
        told = run(model, bench, training, seed=cell.seed, token_budget=budget)
        return {
            "accuracy": float(unit_accuracies(model, measured).mean()),
            "loss": float(unit_losses(model, measured).mean()),
            **told,
            "config": {key: changes[key] for key in ("lora", "privacy", "training")},
            "recipe": vars(cell.recipe),
        }

    def check(self) -> float:
        """The largest difference between logits with and without remembered states."""
        worst = 0.0
        units = self.splits["test"][1][:64]
        whole = attach_classifier(
            self.bench.base_module(), None, seed=0, pad_id=self.bench.pad_id, labels=77
        )
        head = torch.randn(77, 384, generator=torch.Generator().manual_seed(0))
        whole.head.weight.data.copy_(head)
        want = unit_losses(whole, units)
        for recipe in (HEADS[0], LORAS[0]):  # LoRA's B starts from zero
            model = self.model(recipe, seed=0)
            model.head.weight.data.copy_(head)
            own = units if recipe.lora else self._numbered(units, "mean")
            worst = max(worst, float(np.abs(unit_losses(model, own) - want).max()))
        return worst


HEAD_BUDGET = 8 * 32
"""Padded tokens of a microbatch on looked-up features: 32 records of one token each (in the least
bucket, 8), whose unit gradients of 29,645 numbers stay in the processor's cache."""


def _plain_features(model: Classifier) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def features(ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> torch.Tensor:
        added_R11T = (1.0 - mask_RT[:, None, None].float()) * torch.finfo(torch.float32).min
        hidden_RTD = model.encoder(input_ids=ids_RT, attention_mask=added_R11T).last_hidden_state
        mask = mask_RT[..., None].to(hidden_RTD.dtype)
        pooled: torch.Tensor = (hidden_RTD * mask).sum(1) / mask.sum(1)
        return pooled

    return features


# ---------------------------------------------------------------------------- cells


def tuning() -> Iterator[Cell]:
    """Every candidate on the held-out records."""
    for kind, recipes in (("head", HEADS), ("lora", LORAS)):
        for recipe in recipes:
            for epsilon in EPSILONS[1:] if kind == "head" else (8.0,):
                yield Cell(
                    stage="tune", label=kind, recipe=recipe, epsilon=epsilon, seed=0,
                    split="held-out",
                )  # fmt: skip


def best(kind: str, done: Mapping[str, Any]) -> Recipe | None:
    """The candidate with the best mean on the held-out records; None before all are measured."""
    cells = [cell for cell in tuning() if cell.label == kind]
    if any(cell.key not in done for cell in cells):
        return None
    means: dict[Recipe, list[float]] = {}
    for cell in cells:
        means.setdefault(cell.recipe, []).append(done[cell.key]["accuracy"])
    return max(means, key=lambda recipe: float(np.mean(means[recipe])))


def finals(done: Mapping[str, Any]) -> Iterator[Cell]:
    """The two chosen recipes on the test set."""
    for kind in ("head", "lora"):
        recipe = best(kind, done)
        if recipe is None:
            continue
        for seed in SEEDS:  # a run that has to stop early then has one whole table
            for epsilon in EPSILONS:
                yield Cell(
                    stage="final", label=kind, recipe=recipe, epsilon=epsilon, seed=seed,
                    split="test",
                )  # fmt: skip


def ablations(done: Mapping[str, Any]) -> Iterator[Cell]:
    """One choice at a time changed in each chosen recipe, at epsilon 8, on the held-out records."""
    for kind in ("head", "lora"):
        chosen = best(kind, done)
        if chosen is None:
            continue
        variants: dict[str, dict[str, Any]] = {
            "as chosen": {},
            "first token's state for the mean": {"pooling": "cls"},
            "features normalised, not x10": {"features": "normalised"},
            "features as they are": {"features": "as they are"},
            "head from torch's start": {"start": "torch's"},
            "one learning rate, 1e-3": {"head_rate": 1e-3, "rate": 1e-3},
        }
        if chosen.lora:
            variants["A trained" if chosen.freeze_a else "A frozen"] = {
                "freeze_a": not chosen.freeze_a
            }
            variants["all of these (naive)"] = {
                "pooling": "cls", "features": "as they are", "start": "torch's",
                "head_rate": 1e-3, "rate": 1e-3, "freeze_a": False,
            }  # fmt: skip
        for label, change in variants.items():
            yield Cell(
                stage="ablate", label=f"{kind}: {label}", recipe=Recipe(**vars(chosen) | change),
                epsilon=8.0, seed=0, split="held-out",
            )  # fmt: skip


# ---------------------------------------------------------------------------- mts-dialog


def token_losses(model: Any, units: Sequence[UnitExamples]) -> dict[str, float]:
    """Mean loss a completion token over all tokens, and over records of each record's mean."""
    units = [unit for unit in units if unit.examples]
    losses = unit_losses(model, units, token_budget=2048)
    counts = np.array([sum(example.labelled for example in unit.examples) for unit in units])
    return {
        "loss_per_token": float((losses * counts).sum() / counts.sum()),
        "loss_per_record": float(losses.mean()),
        "tokens": int(counts.sum()),
        "records": len(units),
    }


BASES = ("bare", "asked")


def dialogues(data: Path, epsilon: float | str | None) -> dict[str, Any]:
    """The base model (as in `BASES`), or a run at `epsilon`, on the test set."""
    privacy = _base_config("mts-dialog")["privacy"]
    if epsilon is None:
        del privacy["target_epsilon"]
        privacy["noise_multiplier"] = 1e-6
    elif epsilon not in BASES:
        privacy["target_epsilon"] = epsilon
    changes = {"privacy": privacy} | ({"instruction": None} if epsilon == "bare" else {})
    config = config_of("mts-dialog", changes)
    bench = Workbench.of(config, find_base(config, relative_to=HERE))

    def encoded(name: str) -> list[UnitExamples]:
        return [
            bench.encode(
                {
                    "unit": row["ID"],
                    "records": [{"prompt": row["dialogue"], "completion": row["section_text"]}],
                }
            )
            for row in rows_of(data / "mts-dialog" / name)
        ]

    model = bench.fresh()
    test = encoded(str(config.evaluation.public_file))
    if epsilon in BASES:
        return token_losses(model, test)
    training = encoded("TrainingSet.csv")
    mean = np.mean([len(e.input_ids) for unit in training for e in unit.examples])
    expected = float(mean) * privacy["expected_batch_size"] * privacy["max_steps"]
    if expected > MOST_TOKENS:
        raise SystemExit(f"the recipe would see {expected:.0f} tokens, of at most {MOST_TOKENS}")
    seen = [0]

    def tell(report: Any) -> None:
        seen[0] += report.tokens
        say(f"  step {report.step}, {seen[0]} tokens")

    told = run(
        model, bench, training, seed=0, token_budget=bench.performance().token_budget, tell=tell
    )
    return {**token_losses(model, test), **told, "training_tokens": seen[0], "privacy": privacy}


DIALOGUES = {"base, bare prompt": "bare", "base, asked": "asked", "inf": None, "8": 8.0}
"""Rows, and what `dialogues` makes them from."""


# ---------------------------------------------------------------------------- telling


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _name(epsilon: float | None) -> str:
    return "inf" if epsilon is None else f"{epsilon:g}"


def show(done: Mapping[str, Any]) -> None:
    """The tables, as far as they are measured."""
    print("\nBanking77, candidates on 1,000 held-out training records (accuracy)")
    for cell in tuning():
        if cell.key in done:
            r = cell.recipe
            print(
                f"  {cell.label:<5}batch {r.batch:<5} steps {r.steps:<4} "
                f"head rate {r.head_rate:<6g}clip {r.clip:<4g} "
                f"rate {r.rate:<7g}{'A frozen' if r.freeze_a else '':<9}"
                f"eps {_name(cell.epsilon):<4} {done[cell.key]['accuracy']:.3f}"
            )
    print("\nBanking77, test accuracy (mean of seeds, least and greatest)")
    print(f"  {'':<24}" + "".join(f"{'eps ' + _name(e):>22}" for e in EPSILONS))
    for kind, words in (("head", "head alone"), ("lora", "LoRA, 3 layers, head")):
        line = f"  {words:<24}"
        for epsilon in EPSILONS:
            cells = [c for c in finals(done) if c.label == kind and c.epsilon == epsilon]
            values = [done[c.key]["accuracy"] for c in cells if c.key in done]
            shown = ""
            if values:
                shown = f"{np.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"
            line += f"{shown:>22}"
        print(line)
    print(f"  {'rival':<24}" + "".join(f"{RIVAL[e]:>22.3f}" for e in EPSILONS))
    print("\nBanking77, one choice changed at a time, epsilon 8, held-out records, one seed")
    for cell in ablations(done):
        if cell.key in done:
            print(f"  {cell.label:<48}{done[cell.key]['accuracy']:.3f}")
    print("\nMTS-Dialog, loss a completion token on the test set (and mean over records)")
    for key in DIALOGUES:
        row = done.get(f"mts/{key}")
        if row:
            print(f"  {key:<20}{row['loss_per_token']:.3f}  ({row['loss_per_record']:.3f})")
    chosen = best("head", done)
    if chosen is not None:
        body = chosen.changes(epsilon=8.0, declared=10003, seed=0)
        print("\nrecommended, over recipes/banking77.yaml:\n")
        print(yaml.safe_dump(body, sort_keys=False))


@dataclass(kw_only=True)
class Book:
    """Finished cells, on disk after each."""

    path: Path

    def __post_init__(self) -> None:
        self.body = json.loads(self.path.read_text()) if self.path.exists() else {"cells": {}}

    @property
    def done(self) -> dict[str, Any]:
        cells: dict[str, Any] = self.body["cells"]
        return cells

    def keep(self, key: str, row: Mapping[str, Any]) -> None:
        self.done[key] = {**row, "machine": machine()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(self.body, indent=1) + "\n", encoding="utf-8")
        aside.replace(self.path)

    def cells(self, made: Callable[[], Iterator[Cell]], corpus: Banking) -> None:
        """Run what is not done."""
        for cell in list(made()):
            if cell.key not in self.done:
                say(cell.key)
                self.keep(cell.key, corpus.cell(cell))
                row = self.done[cell.key]
                say(f"  accuracy {row['accuracy']:.4f}, {row['seconds']} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parts = ("tune", "final", "ablate", "mts")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with the corpora")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="show what is done, and run nothing")
    options = parser.parse_args()
    book = Book(path=options.out)
    if not options.list:
        if not options.data.is_dir():
            raise SystemExit(f"no folder {options.data}; --data says where the corpora are")
        corpus = Banking(data=options.data)
        if set(options.only) & {"tune", "final", "ablate"}:
            apart = corpus.check()
            say(f"losses with and without remembered states differ by at most {apart:.1e}")
            if apart > 1e-3:
                raise SystemExit("remembered states are not the model's")
        if "tune" in options.only:
            book.cells(tuning, corpus)
        if "final" in options.only:
            book.cells(lambda: finals(book.done), corpus)
        if "ablate" in options.only:
            book.cells(lambda: ablations(book.done), corpus)
        if "mts" in options.only:
            for key, epsilon in DIALOGUES.items():
                if f"mts/{key}" not in book.done:
                    say(f"mts/{key}")
                    book.keep(f"mts/{key}", dialogues(options.data, epsilon))
    show(book.done)


if __name__ == "__main__":
    main()
