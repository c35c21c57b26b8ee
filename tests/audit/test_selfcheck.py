"""The attack on the mechanism: sound code passes, and every planted fault is caught.

The fault table below is part of the evidence: each row plants one fault in the real training loop
and names the checks that must notice it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from privft.audit.attacks import Claim
from privft.audit.selfcheck import Check, check_mechanism
from privft.audit.suite import SelfcheckSpec, load_suite
from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.training import clipping, loop
from privft.training.clipping import COUNT, UnitGradients
from privft.training.examples import UnitExamples

MECHANISM = Mechanism(
    unit="record",
    sampling_probability=0.05,
    noise_multiplier=1.0,
    clip_norm=1.0,
    steps=40,
    expected_batch_size=20.0,
)
CLAIM = Claim(epsilon=2.0, delta=1e-5)
SPEC = SelfcheckSpec(
    noise_multiplier=1.0, steps=4, runs=8, canaries=128, significance=1e-4, share_of_theory=0.7
)

SHIFT = "white-box attack on the mechanism at full batch"
NOISE = "scale of the noise"
SHAPE = "shape of the noise"
INDEPENDENCE = "independence of the noise"
EMPTY = "steps on an empty sample add noise"
SAMPLING = "sampling by independent coins"
INFLUENCE = "influence of one unit"
OWN_RATE = "white-box attack at the run's own sampling probability"
ADAPTIVE = "adaptive clipping: one event of sum and count"


def failed(
    spec: SelfcheckSpec = SPEC, secret: int = 3, mechanism: Mechanism = MECHANISM
) -> set[str]:
    checks = check_mechanism(spec, bytes([secret]) * 32, mechanism=mechanism, claim=CLAIM)
    return {check.check for check in checks if not check.ok}


@pytest.mark.parametrize("noise", ["gaussian", "discrete-gaussian"])
@pytest.mark.parametrize("clipping", ["automatic", "per-layer"])
def test_every_way_of_clipping_passes(
    clipping: Literal["automatic", "per-layer"], noise: Literal["gaussian", "discrete-gaussian"]
) -> None:
    assert failed(mechanism=dataclasses.replace(MECHANISM, clipping=clipping, noise=noise)) == set()


def test_discrete_noise_passes_the_same_checks() -> None:
    discrete = dataclasses.replace(MECHANISM, noise="discrete-gaussian")
    checks = check_mechanism(SPEC, bytes([5]) * 32, mechanism=discrete, claim=CLAIM)
    assert [check.check for check in checks if not check.ok] == []


def test_the_mechanism_as_it_is_passes_and_the_attack_sees_most_of_theory() -> None:
    spec = load_suite("quick")[0].selfcheck
    checks = check_mechanism(spec, bytes([7]) * 32, mechanism=MECHANISM, claim=CLAIM)
    assert [check.check for check in checks if not check.ok] == []
    assert len(checks) == 8
    shift = next(check for check in checks if check.check == SHIFT)
    assert "mu is 2.000 in theory" in shift.detail


@pytest.mark.slow
def test_sound_code_is_not_accused() -> None:
    for secret in range(40):
        assert failed(load_suite("quick")[0].selfcheck, secret) == set()


# --- faults, each under the name that audits/README.md has for it ---------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    """no clipping"""

    def add(totals: Mapping[str, torch.Tensor], gradients: Any, clip: float, *_: Any) -> None:
        for name, gradient in gradients.items():
            totals[name].add_(torch.nan_to_num(gradient).sum(0))

    patch.setattr(loop, "add_clipped", add)


def records_clipped_one_by_one(patch: pytest.MonkeyPatch) -> None:
    """records clipped one by one instead of the unit"""
    sound = loop.clipped_sum

    def split(gradients_of: UnitGradients, units: Sequence[UnitExamples], **more: Any) -> Any:
        rows = [
            UnitExamples(key=f"{unit.key}:{i}", examples=(example,))
            for unit in units
            for i, example in enumerate(unit.examples)
        ]
        return sound(gradients_of, rows, **more)

    patch.setattr(loop, "clipped_sum", split)


def non_finite_gradients_kept(patch: pytest.MonkeyPatch) -> None:
    """a gradient that is not a number gets in"""

    def add(totals: Mapping[str, torch.Tensor], gradients: Any, clip: float, *_: Any) -> None:
        squares = sum(gradient.flatten(1).square().sum(1) for gradient in gradients.values())
        factors = clip / torch.clamp(squares.sqrt(), min=clip)
        for name, gradient in gradients.items():
            totals[name].view(-1).add_(factors @ gradient.flatten(1))

    patch.setattr(loop, "add_clipped", add)


def noise_at_half_scale(patch: pytest.MonkeyPatch) -> None:
    """noise at half scale"""
    sound = loop.add_noise

    def half(sums: Any, mechanism: Mechanism, **more: Any) -> Any:
        less = dataclasses.replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 2)
        return sound(sums, less, **more)

    patch.setattr(loop, "add_noise", half)


def noise_in_16_bits(patch: pytest.MonkeyPatch) -> None:
    """noise drawn in 16 bits"""
    sound = loop.add_noise

    def coarse(sums: Any, mechanism: Mechanism, **more: Any) -> Any:
        noisy = sound(sums, mechanism, **more)
        return {
            name: total + (noisy[name] - total).bfloat16().double() for name, total in sums.items()
        }

    patch.setattr(loop, "add_noise", coarse)


def noise_of_another_shape(patch: pytest.MonkeyPatch) -> None:
    """noise of the right spread that is not Gaussian"""

    def laplace(sums: Any, mechanism: Mechanism, *, streams: KeyedStreams, step: int) -> Any:
        scale = mechanism.noise_multiplier * mechanism.clip_norm / 2**0.5
        noisy = {}
        for name, total in sums.items():
            uniform = streams.stream("noise", step=step, label=name).uniform(total.numel()) - 0.5
            drawn = -scale * np.sign(uniform) * np.log1p(-2 * np.abs(uniform))
            noisy[name] = total + torch.from_numpy(drawn).reshape(total.shape)
        return noisy

    patch.setattr(loop, "add_noise", laplace)


def noise_per_microbatch(patch: pytest.MonkeyPatch) -> None:
    """noise per microbatch"""
    sound, draw = loop.add_clipped, np.random.default_rng(0)

    def add(totals: Mapping[str, torch.Tensor], gradients: Any, clip: float, *_: Any) -> None:
        sound(totals, gradients, clip)
        for total in totals.values():
            total.add_(torch.from_numpy(draw.normal(0, clip, tuple(total.shape))))

    patch.setattr(loop, "add_clipped", add)


def empty_batches_skipped(patch: pytest.MonkeyPatch) -> None:
    """empty batches skipped"""
    sound = loop.add_noise

    def skip(sums: Any, mechanism: Mechanism, **more: Any) -> Any:
        if not any(bool(total.any()) for total in sums.values()):
            return dict(sums)
        return sound(sums, mechanism, **more)

    patch.setattr(loop, "add_noise", skip)


def dealt(
    streams: KeyedStreams, *, step: int, units: int, probability: float, population: str
) -> NDArray[np.int64]:
    """Shuffled batches in the form of `poisson_sample`."""
    parts = max(1, round(1 / probability))
    epoch, turn = divmod(step, parts)
    order = streams.stream("shuffle", step=epoch, label=population).uint64(units).argsort()
    return np.sort(order[turn::parts])


def shuffled_instead_of_poisson(patch: pytest.MonkeyPatch) -> None:
    """shuffled batches instead of Poisson sampling"""
    patch.setattr(loop, "poisson_sample", dealt)


def shuffled_beside_poisson_canaries(patch: pytest.MonkeyPatch) -> None:
    """shuffled batches of real units, and coins for canaries alone"""
    sound = loop.poisson_sample

    def by_population(streams: KeyedStreams, *, population: str, **more: Any) -> Any:
        sample = sound if population == "canaries" else dealt
        return sample(streams, population=population, **more)

    patch.setattr(loop, "poisson_sample", by_population)


def one_step_more(patch: pytest.MonkeyPatch) -> None:
    """one step more than is charged"""
    sound = loop.train

    def longer(model: Any, *, mechanism: Mechanism, **more: Any) -> None:
        sound(model, mechanism=dataclasses.replace(mechanism, steps=mechanism.steps + 1), **more)

    patch.setattr(loop, "train", longer)


def same_coins_on_two_ranks(patch: pytest.MonkeyPatch) -> None:
    """same sampling coins on two ranks"""
    sound = loop.poisson_sample

    def mirrored(streams: KeyedStreams, *, units: int, **more: Any) -> NDArray[np.int64]:
        first = sound(streams, units=(units + 1) // 2, **more)
        both = np.concatenate([first, first + (units + 1) // 2])
        return both[both < units]

    patch.setattr(loop, "poisson_sample", mirrored)


def same_noise_on_two_ranks(patch: pytest.MonkeyPatch) -> None:
    """same noise on two ranks"""
    # Each of two ranks adds noise of half the variance, but from one stream.
    sound = loop.add_noise

    def doubled(sums: Any, mechanism: Mechanism, **more: Any) -> Any:
        noisy = sound(sums, mechanism, **more)
        return {name: sums[name] + (noisy[name] - sums[name]) * 2**0.5 for name in sums}

    patch.setattr(loop, "add_noise", doubled)


def same_noise_twice(patch: pytest.MonkeyPatch) -> None:
    """same noise in two steps"""
    sound = loop.add_noise

    def stuck(sums: Any, mechanism: Mechanism, *, streams: KeyedStreams, step: int) -> Any:
        return sound(sums, mechanism, streams=streams, step=step // 2)

    patch.setattr(loop, "add_noise", stuck)


def same_noise_on_two_parameters(patch: pytest.MonkeyPatch) -> None:
    """same noise on two parameters"""

    def unnamed(sums: Any, mechanism: Mechanism, *, streams: KeyedStreams, step: int) -> Any:
        scale = mechanism.noise_multiplier * mechanism.clip_norm
        noisy = {}
        for name, total in sums.items():
            drawn = streams.stream("noise", step=step).gaussian(total.numel())
            noisy[name] = total + torch.from_numpy(drawn * scale).reshape(total.shape)
        return noisy

    patch.setattr(loop, "add_noise", unnamed)


def noise_from_a_fixed_seed(patch: pytest.MonkeyPatch) -> None:
    """noise from a fixed seed"""
    sound = loop.add_noise

    def seeded(sums: Any, mechanism: Mechanism, *, streams: KeyedStreams, step: int) -> Any:
        return sound(sums, mechanism, streams=KeyedStreams(bytes(32)), step=step)

    patch.setattr(loop, "add_noise", seeded)


def batch_mean_loss(patch: pytest.MonkeyPatch) -> None:
    """mean over the batch instead of a sum over units"""
    sound = UnitGradients.__call__

    def averaged(self: UnitGradients, units: Sequence[UnitExamples]) -> Any:
        return {name: gradient / len(units) for name, gradient in sound(self, units).items()}

    patch.setattr(UnitGradients, "__call__", averaged)


def unit_split_over_two_steps(patch: pytest.MonkeyPatch) -> None:
    """a unit split over two steps"""
    sound = loop._sample

    def split(units: Any, canaries: Any, mechanism: Any, streams: Any, step: int) -> Any:
        halves = []
        for at, which in ((step, 0), (step - 1, 1)):
            if at < 0:
                continue
            for unit in sound(units, canaries, mechanism, streams, at):
                half = unit.examples[which::2]
                if half:
                    halves.append(UnitExamples(key=unit.key, examples=half))
        return halves

    patch.setattr(loop, "_sample", split)


def divisor_from_the_realised_batch(patch: pytest.MonkeyPatch) -> None:
    """divisor from the realised batch"""
    sound_sum, sound_noise, sizes = loop.clipped_sum, loop.add_noise, [1]

    def counted(gradients_of: UnitGradients, units: Sequence[UnitExamples], **more: Any) -> Any:
        sizes[0] = max(1, len(units))
        return sound_sum(gradients_of, units, **more)

    def rescaled(sums: Any, mechanism: Mechanism, **more: Any) -> Any:
        factor = mechanism.expected_batch_size / sizes[0]
        noisy = sound_noise(sums, mechanism, **more)
        return {name: value * factor for name, value in noisy.items()}

    patch.setattr(loop, "clipped_sum", counted)
    patch.setattr(loop, "add_noise", rescaled)


def layers_clipped_each_to_the_whole(patch: pytest.MonkeyPatch) -> None:
    """layers clipped each to the whole clip norm"""
    sound = clipping.unit_factors

    def each(gradients: Any, clip_norm: float, how: Any) -> Any:
        if how != "per-layer":
            return sound(gradients, clip_norm, how)
        layers = len({name.rpartition(".")[0] for name in gradients})
        return sound(gradients, clip_norm * layers**0.5, how)

    patch.setattr(clipping, "unit_factors", each)


def half_the_noise_on_the_count(patch: pytest.MonkeyPatch) -> None:
    """half the noise on the count of unclipped units"""
    sound = loop.noisy_count

    def half(count: torch.Tensor, mechanism: Mechanism, **more: Any) -> float:
        return (sound(count, mechanism, **more) + float(count) / 2) / 2

    patch.setattr(loop, "noisy_count", half)


def a_count_that_is_not_centred(patch: pytest.MonkeyPatch) -> None:
    """a count of unclipped units that is not centred"""

    def uncentred(totals: Mapping[str, Any], factors: Mapping[str, list[float]]) -> None:
        if COUNT in totals:
            totals[COUNT].add_(2 * next(iter(factors.values())).count(1.0))

    patch.setattr(clipping, "add_count", uncentred)


def gradients_that_do_not_pay_for_the_count(patch: pytest.MonkeyPatch) -> None:
    """gradients that do not pay for the count"""
    patch.setattr(
        Mechanism, "gradient_noise_multiplier", property(lambda self: self.noise_multiplier)
    )


FAULTS: list[tuple[Patch, set[str]]] = [
    (no_clipping, {INFLUENCE, SHIFT}),
    (records_clipped_one_by_one, {INFLUENCE}),
    (non_finite_gradients_kept, {INFLUENCE}),
    (noise_at_half_scale, {NOISE, SHIFT}),
    (noise_in_16_bits, {SHAPE}),
    (noise_of_another_shape, {SHAPE}),
    (noise_per_microbatch, {NOISE, SHIFT}),
    (empty_batches_skipped, {EMPTY}),
    (shuffled_instead_of_poisson, {SAMPLING}),
    (shuffled_beside_poisson_canaries, {SAMPLING}),
    (one_step_more, {NOISE}),
    (same_coins_on_two_ranks, {SAMPLING}),
    (same_noise_on_two_ranks, {NOISE}),
    (same_noise_twice, {NOISE}),
    (same_noise_on_two_parameters, {INDEPENDENCE}),
    (noise_from_a_fixed_seed, {INDEPENDENCE}),
    (batch_mean_loss, {SHIFT}),
    (unit_split_over_two_steps, {SHIFT}),
    (divisor_from_the_realised_batch, {NOISE, EMPTY}),
    (layers_clipped_each_to_the_whole, {INFLUENCE}),
    (half_the_noise_on_the_count, {ADAPTIVE}),
    (a_count_that_is_not_centred, {ADAPTIVE}),
    (gradients_that_do_not_pay_for_the_count, {ADAPTIVE}),
]

# With a count noise so small that both kinds of noise are far from the noise multiplier.
ADAPTIVE_MECHANISM = dataclasses.replace(MECHANISM, clipping="adaptive", count_noise=0.6)


def mechanism_of(plant: Patch) -> Mechanism:
    """A mechanism of the sort that the fault is about; flat clipping for most."""
    if plant is layers_clipped_each_to_the_whole:
        return dataclasses.replace(MECHANISM, clipping="per-layer")
    return ADAPTIVE_MECHANISM if (plant, {ADAPTIVE}) in FAULTS else MECHANISM


@pytest.mark.parametrize(
    ("plant", "caught_by"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS]
)
def test_a_planted_fault_is_caught(
    monkeypatch: pytest.MonkeyPatch, plant: Patch, caught_by: set[str]
) -> None:
    plant(monkeypatch)
    assert caught_by <= failed(mechanism=mechanism_of(plant))


@pytest.mark.parametrize("noise", ["gaussian", "discrete-gaussian"])
def test_sum_and_count_are_one_event(noise: Literal["gaussian", "discrete-gaussian"]) -> None:
    mechanism = dataclasses.replace(ADAPTIVE_MECHANISM, noise=noise)
    checks = check_mechanism(SPEC, bytes([9]) * 32, mechanism=mechanism, claim=CLAIM)
    assert [check.check for check in checks if not check.ok] == []
    (found,) = [check for check in checks if check.check == ADAPTIVE]
    assert "moved the count by at most 0.500000" in found.detail


def test_threads_are_as_before_after_a_check() -> None:
    before = torch.get_num_threads()
    failed()
    assert torch.get_num_threads() == before


def test_a_check_is_reported_with_what_it_measured() -> None:
    check = Check(check="a", ok=True, detail="b")
    assert check.to_dict() == {"check": "a", "ok": True, "detail": "b"}
