"""What else is in a microbatch does not change the bits of a unit's gradient."""

from __future__ import annotations

import gc
import itertools

import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from torch import nn

from privft.errors import InputError
from privft.training import kernels
from privft.training.adapter import LoraSpec, attach_classifier, attach_language_model
from privft.training.clipping import UnitGradients, clip_factors, unit_norms
from privft.training.examples import UnitExamples
from privft.training.kernels import multiplies, product, sum_of_products
from privft.training.losses import TrainedModel
from privft.training.products import UnitProducts
from tests.training.test_clipping import randomise
from tests.training.tiny import label_units, text_units, tiny_bert, tiny_llama

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SAME_BUCKET = [[12], [11, 9], [10], [12, 12, 12], [9], [16], [15, 10]]
PLACES = [[0, 1], [1, 0], [3, 0, 5], [5, 6, 0, 3], [4, 4, 4, 0], [6, 5, 4, 3, 2, 1, 0]]


@pytest.fixture
def no_narrow_instructions(monkeypatch):
    """A CPU whose oneDNN multiplies float32 and nothing narrower."""
    monkeypatch.setattr(
        kernels, "multiplies", lambda dtype: dtype == torch.float32 and multiplies(dtype)
    )


@pytest.fixture(params=[False, True], ids=["oneDNN", "BLAS"])
def float32_way(request, monkeypatch):
    """Either way to multiply long records in float32, on any CPU."""
    monkeypatch.setattr(kernels, "has_tiles", lambda: request.param)


@pytest.fixture(params=[1, 3], ids=lambda count: f"{count} threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def language_model(dtype: torch.dtype) -> TrainedModel:
    return attach_language_model(tiny_llama(dtype=dtype), LoraSpec(r=2), seed=1, pad_id=0)


def classifier(dtype: torch.dtype) -> TrainedModel:
    return attach_classifier(tiny_bert(dtype=dtype), LoraSpec(r=2), seed=1, pad_id=0, labels=5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [language_model, classifier])
def test_a_clipped_gradient_has_the_same_bits_in_every_company(make, dtype, threads) -> None:
    check_companies(make, dtype)


@pytest.mark.parametrize("make", [language_model, classifier])
def test_so_it_has_on_a_cpu_without_instructions_for_bfloat16(
    make, threads, no_narrow_instructions
) -> None:
    check_companies(make, torch.bfloat16)


def check_companies(make, dtype: torch.dtype) -> None:
    model = make(dtype)
    randomise(model)
    units = (
        text_units(SAME_BUCKET) if make is language_model else label_units(SAME_BUCKET, labels=5)
    )
    assert len({unit.bucket for unit in units}) == 1
    gradients_of = UnitGradients(model)
    alone = [gradients_of([unit]) for unit in units]
    factors = [clip_factors(unit_norms(gradient), 0.05) for gradient in alone]
    assert all(float(factor) < 1 for factor in factors), "the case must exercise clipping"
    for company in PLACES:
        together = gradients_of([units[i] for i in company])
        clipped = clip_factors(unit_norms(together), 0.05)
        for row, i in enumerate(company):
            assert clipped[row] == factors[i][0]
            for name, gradient in together.items():
                assert torch.equal(gradient[row], alone[i][name][0]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(576, 1536), (1536, 576), (576, 8), (8, 576), (2048, 2048)]
)
def test_a_row_of_a_product_has_the_same_bits_beside_any_number(
    inputs: int, outputs: int, dtype: torch.dtype, threads: int
) -> None:
    """Shapes of SmolLM2, at which the BLAS behind torch's own float32 product differs, and a wide
    one, at which oneDNN's in bfloat16 does with AMX, for a weight as it lies in a backward pass."""
    torch.manual_seed(0)
    forwards = torch.randn(outputs, inputs).to(dtype)
    for weight in (forwards, torch.randn(inputs, outputs).to(dtype).t()):
        for length in (1, 8, 40, 128):
            many = torch.randn(5, length, inputs).to(dtype)
            whole = product(many, weight, None)
            plain = nn.functional.linear(many, weight)
            torch.testing.assert_close(whole, plain, rtol=2e-2, atol=0.3)
            for row, count in itertools.product(range(5), (1, 2, 3)):
                some = many[row : row + count]
                assert torch.equal(product(some, weight, None), whole[row : row + count])


@pytest.mark.parametrize(("inputs", "outputs"), [(1536, 576), (576, 1536), (2048, 8), (384, 77)])
def test_so_has_one_of_a_sum_of_products(
    inputs: int, outputs: int, threads: int, float32_way: None
) -> None:
    """Of two inputs, with LoRA's part and a bias; rows begin anywhere in a cache line."""
    torch.manual_seed(0)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    its_weight, narrow_weight = torch.randn(outputs, 40), torch.randn(outputs, 8)

    def summed(some: slice) -> torch.Tensor:
        factors = [(many[some], weight), (other[some], its_weight)]
        return sum_of_products(factors, bias, narrow[some], narrow_weight, 0.5)

    for length in (24, 64, 77, 330):
        many, other, narrow = (torch.randn(5, length, wide) for wide in (inputs, 40, 8))
        whole = summed(slice(None))
        first = product(many, weight, bias)
        plain = nn.functional.linear(many, weight, bias)
        plain += nn.functional.linear(other, its_weight)
        plain += 0.5 * nn.functional.linear(narrow, narrow_weight)
        torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-3)
        for row, count in itertools.product(range(5), (1, 2, 3)):
            some = slice(row, row + count)
            assert torch.equal(summed(some), whole[some])
            assert torch.equal(product(many[some], weight, bias), first[some])


def test_narrow_products_are_rounded_once_where_the_cpu_has_none(no_narrow_instructions) -> None:
    torch.manual_seed(0)
    rows, weight, bias = (torch.randn(*shape) for shape in ((3, 5, 64), (48, 64), (48,)))
    for dtype in (torch.bfloat16, torch.float16):
        narrow = [each.to(dtype) for each in (rows, weight, bias)]
        exact = product(*(each.double() for each in narrow))
        found = product(*narrow)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)


def test_gradients_are_those_of_opacus() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs = torch.randn(4, 7, 6, dtype=torch.float64)
    parameters = dict(module.named_parameters())
    with UnitProducts(parameters, [1, 1, 1, 1]) as products:
        module(inputs).square().mean((1, 2)).sum().backward()
    assert all(parameter.grad is None for parameter in parameters.values())
    hooks = GradSampleHooks(module, loss_reduction="sum")
    module(inputs.requires_grad_()).square().mean((1, 2)).sum().backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(products.gradients[name], parameter.grad_sample)
    hooks.cleanup()


def test_a_layer_that_is_used_twice_gets_both_parts() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    inputs = torch.randn(3, 5, 4, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    with UnitProducts(parameters, [2, 1]) as products:
        layer(layer(inputs)).square().sum().backward()
    for unit, rows in enumerate((inputs[:2], inputs[2:])):
        expected = torch.autograd.grad(layer(layer(rows)).square().sum(), list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(products.gradients[name][unit], gradient)


def test_a_trained_parameter_outside_the_graph_is_named() -> None:
    model = classifier(torch.float32)
    model.register_module("spare", nn.Linear(3, 3))
    units: list[UnitExamples] = label_units([[5]], labels=5)
    with pytest.raises(InputError, match=r"2 of \d+ trained parameters have no part in the loss"):
        UnitGradients(model)(units)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("make", [language_model, classifier])
def test_nothing_of_a_unit_waits_in_memory_for_the_collector_of_cycles(make, recompute) -> None:
    """Gradients without noise are gone when whoever asked for them lets go, and a plan need not
    reckon with those of the last microbatch."""
    model = make(torch.float32)
    units = text_units([[5], [7, 3]]) if make is language_model else label_units([[5]], labels=5)
    gradients_of = UnitGradients(model, recompute=recompute)
    gradients_of(units)  # what is made once is there
    gc.collect()
    gc.disable()
    try:
        before = {id(each) for each in tensors()}
        gradients_of(units)
        assert [tuple(each.shape) for each in tensors() if id(each) not in before] == []
    finally:
        gc.enable()


def tensors() -> list[torch.Tensor]:
    return [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
