"""The adaptive clip norm: one event with the right sensitivity, noise as stated, resumable."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.training import loop
from privft.training.adaptive import joint_influence, next_clip_norm, noisy_count
from privft.training.clipping import COUNT, UnitGradients, add_clipped, unit_norms
from privft.training.discrete import add_rounded, count_grid, extra_delta, grid_of
from privft.training.loop import clipped_sum, grid_for
from privft.training.noise import add_noise
from privft.training.optimiser import Optimisation
from tests.training.test_clipping import llama
from tests.training.test_loop import UNITS, Journal, Killed, model, parameters_of, run
from tests.training.tiny import ListUnits, mechanism

STREAMS = KeyedStreams(b"test only stream, never of a run")
KINDS = ("gaussian", "discrete-gaussian")


def adaptive(**changes: Any) -> Mechanism:
    return mechanism(**({"clipping": "adaptive", "count_noise": 2.0} | changes))


# --- the event ------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.99])
@pytest.mark.parametrize("count_noise", [2.0, 5.0, 400.0])
def test_gradient_and_count_noise_make_up_the_noise_multiplier(
    noise: float, count_noise: float
) -> None:
    one = adaptive(noise_multiplier=noise, count_noise=count_noise)
    g = one.gradient_noise_multiplier
    assert (g**-2 + (2 * count_noise) ** -2) ** -0.5 == pytest.approx(noise, rel=1e-12)
    assert g > noise
    assert one.event() == mechanism(noise_multiplier=noise).event()


def test_the_formula_is_the_one_of_the_paper() -> None:
    """Andrew et al. 2021: z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2), here z = 3 and sigma_b = 5."""
    one = adaptive(noise_multiplier=3.0, count_noise=5.0)
    assert one.gradient_noise_multiplier == pytest.approx((1 / 9 - 1 / 100) ** -0.5, rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"count_noise": 0.5},  # the count alone would cost as much as the run
        {"count_noise": None},
        {"count_noise": math.inf},
        {"count_noise": -2.0},
        {"clipping": "flat"},
    ],
)
def test_a_mechanism_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="count_noise"):
        adaptive(**changes)


def test_a_mechanism_survives_its_json() -> None:
    assert Mechanism.from_dict(adaptive().to_dict()) == adaptive()


# --- the sensitivity of (sum, count) --------------------------------------------------------


def sums_of(one: Mechanism, gradients: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Clipped sum and count of units with these gradients, in float64."""
    numbers = sum(g[0].numel() for g in gradients.values())
    totals = {name: torch.zeros(g.shape[1:], dtype=torch.float64) for name, g in gradients.items()}
    if one.noise == "gaussian":
        totals[COUNT] = torch.zeros((), dtype=torch.int64)
        add_clipped(totals, gradients, one.clip_norm, "adaptive")
        return totals
    grid = grid_of(one, numbers)
    whole = {name: total.to(torch.int64) for name, total in totals.items()}
    whole[COUNT] = torch.zeros((), dtype=torch.int64)
    add_rounded(whole, gradients, grid, "adaptive")
    return {n: v if n == COUNT else v.double() * grid.step for n, v in whole.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count_noise", [0.51, 2.0])
def test_a_unit_moves_sum_and_count_jointly_by_at_most_the_stated_amount(
    kind: str, count_noise: float
) -> None:
    """Units of all sizes around the clip norm, and such that are not finite; the worst one is as
    bad as stated, so the bound is not merely loose."""
    one = adaptive(noise=kind, count_noise=count_noise)
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in (0.0, 1e-9, 0.5, 0.999, 1.0, 1.001, 2.0, 1e6, 1e30, math.inf, math.nan):
        direction = torch.randn(1, 6, 5, generator=generator)
        gradient = direction / direction.norm() * size * one.clip_norm
        change = sums_of(one, {"a": gradient[:, :4], "b": gradient[:, 4:]})
        assert abs(int(change[COUNT])) == 1
        moved = joint_influence(change, one, one.clip_norm)
        assert moved <= 1
        worst = max(worst, moved)
        # The same, spelled out in the units in which the noise is standard normal.
        length = math.sqrt(sum(float(v.square().sum()) for n, v in change.items() if n != COUNT))
        spelled = math.hypot(
            length / (one.gradient_noise_multiplier * one.clip_norm), 0.5 / count_noise
        )
        assert moved == pytest.approx(spelled * one.noise_multiplier)
    assert worst > 1 - 2e-6


def test_counting_without_centring_would_move_more() -> None:
    """What the bound excludes: the plain number of unclipped units moves by 1, not by 1/2."""
    one = adaptive(count_noise=0.6)
    gradient = torch.tensor([[one.clip_norm]])
    change = sums_of(one, {"a": gradient})
    uncentred = change | {COUNT: torch.tensor(2)}
    assert joint_influence(change, one, one.clip_norm) <= 1
    assert joint_influence(uncentred, one, one.clip_norm) > 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_taking_a_unit_away_from_a_real_model_keeps_to_the_bound(kind: str) -> None:
    gradients_of = UnitGradients(llama(torch.float32))
    norms = torch.cat([unit_norms(gradients_of([unit])) for unit in UNITS])
    one = adaptive(noise=kind, clip_norm=1.01 * float(norms.median()))
    grid = grid_for(one, gradients_of)

    def total(units: Any) -> dict[str, torch.Tensor]:
        sums = clipped_sum(
            gradients_of,
            units,
            clip_norm=one.clip_norm,
            token_budget=64,
            clipping="adaptive",
            grid=grid,
        )
        step = 1.0 if grid is None else grid.step
        return {n: v if n == COUNT else v.double() * step for n, v in sums.items()}

    whole, counts = total(UNITS), set()
    assert int(whole[COUNT]) == sum(1 if n <= one.clip_norm else -1 for n in norms)
    for place in range(len(UNITS)):
        rest = total(UNITS[:place] + UNITS[place + 1 :])
        change = {name: whole[name] - rest[name] for name in whole}
        counts.add(int(change[COUNT]))
        assert 0 < joint_influence(change, one, one.clip_norm) <= 1 + 1e-6
    assert counts == {-1, 1}


# --- the noise --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count_noise", [0.7, 30.0])
def test_the_count_has_noise_of_the_stated_scale(kind: str, count_noise: float) -> None:
    one = adaptive(noise=kind, count_noise=count_noise)
    values = np.array(
        [noisy_count(torch.tensor(7), one, streams=STREAMS, step=step) for step in range(2000)]
    )
    centred = values - 3.5
    assert abs(centred.mean()) < 4 * count_noise / math.sqrt(2000)
    for factor, right in ((1.0, True), (2 / 3, False), (3 / 2, False)):
        chance = stats.chi2.cdf((centred**2).sum() / (factor * count_noise) ** 2, 2000)
        assert bool(5e-5 < chance < 1 - 5e-5) is right
    assert stats.kstest(centred / count_noise, "norm").pvalue > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_the_larger_noise_that_pays_for_the_count(kind: str) -> None:
    one = adaptive(noise=kind, count_noise=0.6)
    dtype = torch.float64 if kind == "gaussian" else torch.int64
    zero = {"a": torch.zeros(5000, dtype=dtype)}
    values = add_noise(zero, one, streams=STREAMS, step=0)["a"].numpy()
    expected = one.gradient_noise_multiplier * one.clip_norm
    assert expected > 1.8 * one.noise_multiplier * one.clip_norm
    for factor, right in ((1.0, True), (2 / 3, False), (3 / 2, False)):
        chance = stats.chi2.cdf((values**2).sum() / (factor * expected) ** 2, 5000)
        assert bool(5e-5 < chance < 1 - 5e-5) is right


def test_the_counts_noise_is_keyed_by_step_and_independent_of_the_gradients() -> None:
    for kind in KINDS:
        one = adaptive(noise=kind)
        draws = [noisy_count(torch.tensor(0), one, streams=STREAMS, step=s) for s in range(50)]
        again = [noisy_count(torch.tensor(0), one, streams=STREAMS, step=s) for s in range(50)]
        assert draws == again
        assert len(set(draws)) == 50


@pytest.mark.parametrize("count_noise", [2.0**-30, 0.51, 1.0, 3.7, 1e5])
def test_the_discrete_counts_noise_is_never_smaller_than_stated(count_noise: float) -> None:
    bits, weight = count_grid(count_noise)
    meets = 2.0**bits / (2 * weight)
    assert count_noise <= meets <= count_noise * (1 + 2.0**-29)


def test_the_count_has_its_part_in_what_discrete_noise_adds_to_delta() -> None:
    one = adaptive(noise="discrete-gaussian", noise_multiplier=1.0, count_noise=2.0)
    flat = mechanism(noise="discrete-gaussian", noise_multiplier=one.gradient_noise_multiplier)
    assert extra_delta(one, 10, 1.0) > extra_delta(flat, 10, 1.0)


# --- the clip norm --------------------------------------------------------------------------


def test_the_clip_norm_moves_as_in_the_paper() -> None:
    step = {"expected_batch_size": 20.0, "target_quantile": 0.5, "learning_rate": 0.2}
    assert next_clip_norm(0.7, 0.0, **step) == 0.7
    assert next_clip_norm(0.7, 10.0, **step) == pytest.approx(0.7 * math.exp(-0.1))
    assert next_clip_norm(0.7, -10.0, **step) == pytest.approx(0.7 * math.exp(0.1))


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_clip_norm_finds_the_quantile(quantile: float) -> None:
    """Norms 1 to 100, all units in every step: the clip norm ends near the quantile."""
    one = adaptive(noise_multiplier=1.0, count_noise=5.0, clip_norm=0.1)
    norms = np.arange(1.0, 101.0)
    clip_norm = 0.1
    path = []
    for step in range(400):
        count = torch.tensor(int(np.where(norms <= clip_norm, 1, -1).sum()))
        clip_norm = next_clip_norm(
            clip_norm,
            noisy_count(count, one, streams=STREAMS, step=step),
            expected_batch_size=100.0,
            target_quantile=quantile,
            learning_rate=0.2,
        )
        path.append(clip_norm)
    assert np.mean(path[-100:]) == pytest.approx(100 * quantile, rel=0.1)


def clip_norms(**more: Any) -> list[float]:
    seen: list[float] = []
    run(model(), tell=lambda report: seen.append(report.clip_norm), **more)
    return seen


def test_each_step_clips_at_the_norm_that_the_last_one_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = []
    sound, noise = loop.clipped_sum, loop.add_noise

    def summed(*args: Any, clip_norm: float, **more: Any) -> Any:
        used.append(clip_norm)
        return sound(*args, clip_norm=clip_norm, **more)

    def noised(sums: Any, now: Mechanism, **more: Any) -> Any:
        assert now.clip_norm == used[-1], "noise goes with the clip norm of its own step"
        assert COUNT not in sums
        return noise(sums, now, **more)

    monkeypatch.setattr(loop, "clipped_sum", summed)
    monkeypatch.setattr(loop, "add_noise", noised)
    published = clip_norms(mechanism=adaptive())
    assert used == [0.1, *published[:-1]]
    assert len(set(published)) == 6


def test_with_flat_clipping_it_stays() -> None:
    assert set(clip_norms()) == {0.1}


def test_nobody_in_the_sample_leaves_noise_alone() -> None:
    found = clip_norms(mechanism=adaptive(), units=ListUnits([]), canaries=[])
    counts = [noisy_count(torch.tensor(0), adaptive(), streams=KeyedStreams(bytes(32)), step=s)
              for s in range(6)]  # fmt: skip
    expected, clip_norm = [], 0.1
    for count in counts:
        clip_norm *= math.exp(-0.2 * count / 4.0)
        expected.append(clip_norm)
    assert found == pytest.approx(expected)


def test_quantile_and_rate_are_the_optimisers() -> None:
    low, high = (
        clip_norms(
            mechanism=adaptive(count_noise=0.6),
            optimisation=Optimisation(
                learning_rate=1e-2, clip_quantile=quantile, clip_learning_rate=rate
            ),
        )
        for quantile, rate in ((0.01, 0.0001), (0.99, 0.0001))
    )
    assert high[0] / low[0] == pytest.approx(math.exp(0.0001 * 0.98))


# --- the state --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_a_killed_run_resumes_to_the_same_bits_and_clip_norms(stop_at: int, kind: str) -> None:
    plan = Optimisation(learning_rate=1e-2, adam_noise_correction=True)
    same = {"mechanism": adaptive(noise=kind), "optimisation": plan}
    whole_norms: list[float] = []
    whole = parameters_of(run(model(), tell=lambda r: whole_norms.append(r.clip_norm), **same))
    journal, saved = Journal(), []

    def die(step: int, digest: str) -> None:
        journal(step, digest)
        if step == stop_at:
            raise Killed

    with pytest.raises(Killed):
        run(model(), journal=die, save=saved.append, **same)
    norms: list[float] = []
    resumed = run(
        model(),
        journal=journal,
        resume=saved[-1] if saved else None,
        tell=lambda r: norms.append(r.clip_norm),
        **same,
    )
    assert norms == whole_norms[-len(norms) :]
    for name, value in parameters_of(resumed).items():
        assert torch.equal(value, whole[name])


def test_another_clip_norm_on_resume_is_noticed_before_noise_is_drawn_twice() -> None:
    """The checkpoint's, as if it had been swapped: parameters and optimiser are the same."""
    journal, saved = Journal(), []
    run(model(), journal=journal, save=saved.append, mechanism=adaptive())
    first = np.frombuffer(saved[0], dtype=np.uint8)
    from safetensors.torch import load, save

    tensors = load(saved[0])
    tensors["clip_norm"] = tensors["clip_norm"] * (1 + 2.0**-52)
    length = int.from_bytes(first[:8].tobytes(), "little")
    assert b'"step":"2"' in saved[0][8 : 8 + length]
    swapped = save(tensors, metadata={"format": "privft-state-v1", "step": "2"})
    with pytest.raises(Exception, match="another digest"):
        run(model(), journal=journal, resume=swapped, mechanism=adaptive())


def test_a_mechanism_differs_by_its_count_noise() -> None:
    assert dataclasses.replace(adaptive(), count_noise=3.0) != adaptive()
