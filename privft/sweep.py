"""A sweep: several runs that differ in a few settings, of which the best is kept; priced before.

    sweep: 1
    base: run.yaml                      # a run configuration beside this file
    vary:                               # every combination is a candidate
      training.learning_rate: [1.0e-3, 5.0e-3]
      lora.r: [4, 8]
    charge: run-by-run                  # every candidate is a run with its own plan and charge

    charge: random-stopping             # or: the best of a hidden, random number of repetitions
    stopping: {distribution: truncated-negative-binomial, shape: 1.0, mean: 8.0, most: 64}
    score: {noise_multiplier: 30.0}     # what the best is chosen by: its noise, or `public`

**Run by run** the sum of all candidates is charged, and whoever sees all of them may choose.
**Random stopping** (`budget.selection`) repeats: draw a candidate at random, train it, score it;
the best is kept and how many there were stays hidden.  One repetition is one mechanism there, so
the candidates may differ only in what costs nothing.  A score on private records is a Gaussian
mechanism of its own in every repetition; one on public text is free, and has to be asked for in so
many words.

The file says what everything costs; it runs nothing.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from privft.budget.mechanism import Event
from privft.budget.selection import MOST, POISSON, TRUNCATED, Selection
from privft.config import RunConfig, load_config, parse_config
from privft.errors import ConfigError
from privft.signing import canonical_json
from privft.strictyaml import Document, Strict, read_path, validate

MOST_CANDIDATES = 200


class Stopping(Strict):
    """How the number of repetitions is drawn: `selection.Selection`."""

    distribution: Literal["truncated-negative-binomial", "poisson"]
    mean: Annotated[float, Field(gt=1)]
    shape: Annotated[float, Field(ge=0, le=100)] | None = None
    most: Annotated[int, Field(ge=2, le=MOST)] | None = None
    """Never more repetitions than these, at a small price; only so could a time be fixed."""

    @model_validator(mode="after")
    def _shaped(self) -> Stopping:
        if (self.shape is None) is (self.distribution == TRUNCATED):
            raise ValueError(f"expected shape with {TRUNCATED}, and none with {POISSON}")
        if self.most is not None and self.most < self.mean:
            raise ValueError(f"expected most of at least the mean {self.mean:g}, got {self.most}")
        return self


class Score(Strict):
    """A score on private records, as a Gaussian mechanism of sensitivity 1."""

    noise_multiplier: Annotated[float, Field(gt=0)]


class Sweep(Strict):
    """The file; the module's docstring shows it."""

    sweep: Literal[1]
    base: Annotated[str, Field(min_length=1)]
    vary: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    charge: Literal["run-by-run", "random-stopping"]
    stopping: Stopping | None = None
    score: Score | Literal["public"] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Sweep:
        needed = self.charge == "random-stopping"
        if needed is not (self.stopping is not None) or needed is not (self.score is not None):
            raise ValueError("expected stopping and score with random-stopping, and only with it")
        return self

    def selection(self, repetition: Event) -> Selection:
        """The one event of random stopping, whose repetitions train by `repetition`."""
        assert self.stopping is not None
        score = self.score
        scored = (
            (Event(noise_multiplier=score.noise_multiplier),) if isinstance(score, Score) else ()
        )
        return Selection(
            events=(repetition, *scored),
            mean=self.stopping.mean,
            shape=self.stopping.shape,
            most=self.stopping.most,
        )


def is_sweep(path: Path) -> bool:
    """Whether a YAML file says that it is one; raises `ConfigError` for a file that is not YAML."""
    return "sweep" in read_path(path).data


def load_sweep(path: Path) -> tuple[Sweep, list[tuple[str, RunConfig]]]:
    """The sweep and its candidates, each with what it varies in words."""
    document: Document = read_path(path)
    sweep = validate(Sweep, document)
    base = load_config(path.parent / sweep.base).to_dict()
    names = list(sweep.vary)
    combinations = list(itertools.product(*sweep.vary.values()))
    if len(combinations) > MOST_CANDIDATES:
        raise ConfigError(
            f"{path.name}: {len(combinations)} candidates, and {MOST_CANDIDATES} at most are priced"
        )
    candidates = []
    for values in combinations:
        changes = dict(zip(names, values, strict=True))
        label = ", ".join(f"{name} {value}" for name, value in changes.items())
        body = canonical_json(_changed(base, changes, path.name))
        candidates.append((label, parse_config(body.decode(), source=f"{path.name}, {label}")))
    return sweep, candidates


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
