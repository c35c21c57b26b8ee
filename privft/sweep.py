"""A sweep: several runs that differ in a few settings, of which the best is kept; priced before.

    sweep: 1
    base: run.yaml                      # a run configuration beside this file
    vary:                               # every combination is a candidate
      training.learning_rate: [1.0e-3, 5.0e-3]
      lora.r: [4, 8]
    charge: run-by-run                  # every candidate is a run with its own plan and charge

    charge: random-stopping             # or: the best of a hidden, random number of repetitions
    stopping: {distribution: truncated-negative-binomial, shape: 1.0, mean: 8.0, most: 64}
    score: {noise_multiplier: 30, loss_bound: 8.0, units: 150}     # by what; or `public`

**Run by run** the sum of all candidates is charged, and whoever sees all of them may choose.
**Random stopping** (`budget.selection`) repeats: draw a candidate at random, train it, score it;
the best is kept and how many there were stays hidden.  One repetition is one mechanism there, so
the candidates may differ only in what costs nothing and shows nowhere (`evaluating.SAME_FOR_ALL`).
A score on held-out units is a Gaussian mechanism of its own in every repetition; one on public text
is free, and has to be asked for in so many words.

Run by run, the file says what everything costs, and each candidate is then planned by itself.  A
randomly stopped sweep with a `most` becomes one config (`load_sweep`), one plan, one run, one
charge.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from privft.config import RunConfig, load_config, parse_config
from privft.errors import ConfigError
from privft.evaluating import HeldOutConfig, SelectionConfig, Stopping, label_of
from privft.signing import canonical_json
from privft.strictyaml import Document, Strict, read_path, validate

MOST_CANDIDATES = 200


class Sweep(Strict):
    """The file; the module's docstring shows it."""

    sweep: Literal[1]
    base: Annotated[str, Field(min_length=1)]
    vary: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    charge: Literal["run-by-run", "random-stopping"]
    stopping: Stopping | None = None
    score: HeldOutConfig | Literal["public"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Sweep:
        needed = self.charge == "random-stopping"
        if needed is not (self.stopping is not None) or needed is not (self.score is not None):
            raise ValueError("expected stopping and score with random-stopping, and only with it")
        return self

    def selection(self) -> SelectionConfig:
        """What a randomly stopped sweep adds to its base."""
        assert self.stopping is not None
        assert self.score is not None
        return SelectionConfig(vary=self.vary, stopping=self.stopping, score=self.score)


def is_sweep(path: Path) -> bool:
    """Whether a YAML file says that it is one; raises `ConfigError` for a file that is not YAML."""
    return "sweep" in read_path(path).data


def load_sweep(path: Path) -> tuple[Sweep, RunConfig]:
    """The sweep, and the config that it starts from: of a randomly stopped one the config that is
    planned and run, with all candidates in it."""
    document: Document = read_path(path)
    sweep = validate(Sweep, document)
    base = load_config(path.parent / sweep.base)
    if sweep.charge == "random-stopping":
        try:
            body = {**base.to_dict(), "selection": sweep.selection().model_dump(mode="json")}
        except ValidationError as error:
            said = error.errors(include_url=False, include_input=False)[0]["msg"]
            raise ConfigError(f"{path.name}: {said.removeprefix('Value error, ')}") from None
        base = parse_config(canonical_json(body).decode(), source=path.name)
    candidates(base, sweep.vary, source=path.name)
    return sweep, base


def candidates(
    base: RunConfig, vary: Mapping[str, Sequence[Any]], *, source: str
) -> list[tuple[str, RunConfig]]:
    """Each candidate with what it varies in words, in a fixed order."""
    body = {**base.to_dict(), "selection": None}
    combinations = list(itertools.product(*vary.values()))
    if len(combinations) > MOST_CANDIDATES:
        raise ConfigError(
            f"{source}: {len(combinations)} candidates, and {MOST_CANDIDATES} at most are priced"
        )
    made = []
    for values in combinations:
        changes = dict(zip(vary, values, strict=True))
        label = label_of(changes)
        text = canonical_json(_changed(body, changes, source)).decode()
        made.append((label, parse_config(text, source=f"{source}, {label}")))
    return made


def candidates_of(config: RunConfig) -> list[tuple[str, RunConfig]]:
    """The candidates of a randomly stopped sweep, from the config that is run.

    Errors: `ConfigError` where the config has none, or one that is no config.
    """
    if config.selection is None:
        raise ConfigError("this config is not a randomly stopped sweep")
    return candidates(config, config.selection.vary, source="the sweep")


def _changed(base: Mapping[str, Any], changes: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The base with values at dotted keys replaced; the keys must be there."""
    body = copy.deepcopy(dict(base))
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        at: Any = body
        for section in sections:
            at = at.get(section) if isinstance(at, dict) else None
        if not isinstance(at, dict) or key not in at:
            raise ConfigError(f"{source}: vary: a run has no setting {dotted!r}")
        at[key] = value
    return body
