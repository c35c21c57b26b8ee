"""The loss of each record's labels: the mean of cross-entropies, and the same in every company."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from privft.training.losses import BLOCK_TOKENS, _LabelledCrossEntropy

COUNTS = [1, 40, BLOCK_TOKENS + 7, 3, 2 * BLOCK_TOKENS - 1]
LENGTH = 2 * BLOCK_TOKENS + 8


@pytest.fixture(params=[1, 2, 3], ids=lambda count: f"{count} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def losses_and_gradient(
    hidden_RTD: torch.Tensor, weight_VD: torch.Tensor, labels_RT: torch.Tensor, counts: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each record's loss [R], and the gradient of their weighted sum by the hidden states; record r
    has its labels at its first counts[r] places."""
    hidden = hidden_RTD.clone().requires_grad_()
    places = torch.cat([row * LENGTH + torch.arange(n) for row, n in enumerate(counts)])
    labels = torch.cat([labels_RT[row, :n] for row, n in enumerate(counts)])
    losses = _LabelledCrossEntropy.apply(hidden, weight_VD, places, labels, counts)
    losses.backward(torch.full_like(losses, 0.3))
    assert hidden.grad is not None
    return losses.detach(), hidden.grad


def made_up(
    dtype: torch.dtype, *, vocabulary: int, hidden: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    weight = (torch.randn(vocabulary, hidden) * 0.2).to(dtype)
    states = torch.randn(len(COUNTS), LENGTH, hidden).to(dtype)
    return states, weight, torch.randint(vocabulary, (len(COUNTS), LENGTH))


def test_it_is_the_mean_cross_entropy_of_each_record_and_its_gradient() -> None:
    hidden, weight, labels = made_up(torch.float64, vocabulary=37, hidden=6)
    losses, gradient = losses_and_gradient(hidden, weight, labels, COUNTS)
    plain = hidden.clone().requires_grad_()
    want = torch.stack(
        [
            nn.functional.cross_entropy(plain[row, :n] @ weight.T, labels[row, :n])
            for row, n in enumerate(COUNTS)
        ]
    )
    (0.3 * want.sum()).backward()  # type: ignore[no-untyped-call]
    assert plain.grad is not None
    torch.testing.assert_close(losses, want.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, plain.grad, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("vocabulary", "hidden"), [(49152, 96), (50257, 32)], ids=["of SmolLM2", "of GPT-2, odd"]
)
def test_companions_change_no_bit_of_it(
    vocabulary: int, hidden: int, dtype: torch.dtype, threads: int
) -> None:
    """With vocabularies of real sizes, which torch would sum in parts for a label that is alone."""
    states, weight, labels = made_up(dtype, vocabulary=vocabulary, hidden=hidden)
    alone = [
        losses_and_gradient(states[[row]], weight, labels[[row]], [count])
        for row, count in enumerate(COUNTS)
    ]
    for company in ([0, 1, 2], [3, 2, 4, 0], [0, 0]):
        together = losses_and_gradient(
            states[company], weight, labels[company], [COUNTS[row] for row in company]
        )
        for place, row in enumerate(company):
            assert torch.equal(together[0][place], alone[row][0][0]), (company, row)
            assert torch.equal(together[1][place], alone[row][1][0]), (company, row)
