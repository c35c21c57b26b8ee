"""The loop is DP-SGD, takes every step, and can be stopped and resumed to the same bits."""

from __future__ import annotations

import pytest
import torch

from privft.errors import IntegrityError
from privft.randomness import KeyedStreams
from privft.training.adapter import (
    LoraSpec,
    adapter_files,
    attach_language_model,
    has_moved,
    load_adapter,
    trained_snapshot,
)
from privft.training.clipping import UnitGradients
from privft.training.loop import Performance, StepReport, clipped_sum, train
from privft.training.losses import LanguageModel, trained_parameters
from privft.training.noise import add_noise
from privft.training.optimiser import Optimisation
from privft.training.sampling import poisson_sample
from privft.training.scoring import unit_losses
from tests.training.tiny import ListUnits, mechanism, text_units, tiny_llama

UNITS = text_units([[5, 9], [12], [21, 17, 3], [8], [2], [33], [7, 7]])
CANARIES = text_units([[6], [10]], seed=9)


class Journal:
    """The ledger's rule for step intents, in memory."""

    def __init__(self) -> None:
        self.digests: dict[int, str] = {}

    def __call__(self, step: int, digest: str) -> None:
        if self.digests.setdefault(step, digest) != digest:
            raise IntegrityError(f"step {step} was journalled with another digest")


class Killed(Exception):
    pass


def model() -> LanguageModel:
    return attach_language_model(tiny_llama(dtype=torch.float32), LoraSpec(r=2), seed=5, pad_id=0)


def run(trained, *, journal=None, save=None, resume=None, tell=None, **changes):
    settings = {
        "units": ListUnits(UNITS),
        "canaries": CANARIES,
        "mechanism": mechanism(),
        "max_records_per_unit": 2,
        "optimisation": Optimisation(learning_rate=1e-2),
        "performance": Performance(token_budget=64, checkpoint_every=2),
        "streams": KeyedStreams(bytes(32)),
        "context": {"plan": "p"},
    } | changes
    train(
        trained,
        journal=journal or Journal(),
        save=save or (lambda state: None),
        resume=resume,
        tell=tell or (lambda report: None),
        **settings,
    )
    return trained


def parameters_of(trained) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trained_parameters(trained).items()}


def test_one_sgd_step_is_the_clipped_noised_sum_over_the_expected_batch_size() -> None:
    one = mechanism(steps=1)
    streams = KeyedStreams(bytes(32))
    start = parameters_of(model())
    after = parameters_of(
        run(
            model(),
            mechanism=one,
            canaries=[],
            max_records_per_unit=9,
            optimisation=Optimisation(optim="sgd", learning_rate=0.5),
        )
    )
    sampled = poisson_sample(streams, step=0, units=len(UNITS), probability=0.5, population="units")
    assert 0 < len(sampled) < len(UNITS)
    sums = clipped_sum(
        UnitGradients(model()), [UNITS[i] for i in sampled], clip_norm=0.1, token_budget=64
    )
    noisy = add_noise(sums, one, streams=streams, step=0)
    for name, value in start.items():
        expected = value - 0.5 * (noisy[name] / 4.0).float()
        torch.testing.assert_close(after[name], expected)


def test_an_empty_sample_is_a_step_with_noise() -> None:
    reports: list[StepReport] = []
    trained = model()
    before = trained_snapshot(trained)
    run(trained, units=ListUnits([]), canaries=[], tell=reports.append)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert {report.sampled_units for report in reports} == {0}
    assert has_moved(trained, before)


def test_every_step_is_journalled_before_its_noise() -> None:
    journal = Journal()
    order: list[str] = []

    def record(step: int, digest: str) -> None:
        order.append(f"intent {step}")
        journal(step, digest)

    run(model(), journal=record, tell=lambda report: order.append(f"done {report.step - 1}"))
    assert order == [f"{what} {step}" for step in range(6) for what in ("intent", "done")]
    assert len(set(journal.digests.values())) == 6


@pytest.mark.parametrize("stop_at", range(6))
@pytest.mark.parametrize("optim", ["adamw_torch", "sgd"])
def test_a_killed_run_resumes_to_the_same_bits(stop_at: int, optim: str) -> None:
    optimisation = Optimisation(
        optim=optim, learning_rate=1e-2, momentum=0.9 if optim == "sgd" else 0.0
    )
    whole = parameters_of(run(model(), optimisation=optimisation))
    journal, saved = Journal(), []

    def journal_then_die(step: int, digest: str) -> None:
        journal(step, digest)
        if step == stop_at:
            raise Killed

    with pytest.raises(Killed):
        run(model(), journal=journal_then_die, save=saved.append, optimisation=optimisation)
    resumed = run(
        model(), journal=journal, resume=saved[-1] if saved else None, optimisation=optimisation
    )
    for name, value in parameters_of(resumed).items():
        assert torch.equal(value, whole[name])


@pytest.mark.parametrize(
    "change",
    [
        {"context": {"plan": "another"}},
        {"mechanism": mechanism(sampling_probability=0.6)},
        {"units": ListUnits(UNITS[:-1])},
    ],
)
def test_resuming_another_run_is_noticed_before_noise_is_drawn_twice(change) -> None:
    journal, saved = Journal(), []

    def die_at_five(step: int, digest: str) -> None:
        journal(step, digest)
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(model(), journal=die_at_five, save=saved.append)
    with pytest.raises(IntegrityError, match="another digest"):
        run(model(), journal=journal, resume=saved[0], **change)


def test_a_damaged_checkpoint_is_refused() -> None:
    with pytest.raises(IntegrityError, match="not in the format"):
        run(model(), resume=b"\x10\0\0\0\0\0\0\0{}")


def test_the_reloaded_adapter_gives_the_same_losses() -> None:
    trained = run(model())
    files = adapter_files(trained, base_name="tiny")
    again = load_adapter(tiny_llama(dtype=torch.float32), files, pad_id=0)
    assert (unit_losses(trained, UNITS) == unit_losses(again, UNITS)).all()
    assert adapter_files(again, base_name="tiny") == files


def test_frozen_a_trains_b_only() -> None:
    spec = LoraSpec(r=2, freeze_a=True)
    trained = attach_language_model(tiny_llama(dtype=torch.float32), spec, seed=5, pad_id=0)
    assert all(".lora_B." in name for name in trained_parameters(trained))
    before = trained_snapshot(trained)
    assert has_moved(run(trained), before)


def test_the_label_only_loss_is_the_models_own() -> None:
    model().check_against_own_loss(UNITS[0].examples[1])
