"""The training loops that `training_speed.py` sets side by side.

All sit on the same frozen base weights (their storage is shared), carry the same LoRA, made by the
same call with the same seed, and see the same records.  A *round* is one logical batch: `records`,
and the same records again as `batches`, drawn at random, as a loop without length handling gets
them.

    privft     privft's own `train`, one step: journal digest, sampling, unit gradients, clipping,
               noise, optimiser
    unbound    the same with torch's own products and batched sums, so that a unit's bits depend on
               its companions: what the promise about bits costs
    alike      no privacy: the microbatches, label-only logits and single optimiser step of privft
    padded     no privacy, as people run it: random batches padded to their longest record, the
               model's own loss over all logits, an optimiser step a batch
    hooks      Opacus `make_private` (GradSampleModule, DPOptimizer), physical batches as `padded`
    ghost      Opacus `make_private(grad_sample_mode="ghost")`, physical batches as `padded`
    opake      opake's `clipped_grad` over a functional model, physical batches as `padded`
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from numpy.typing import NDArray
from torch import nn

from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.training import basemodel, losses, lowrank, products
from privft.training.adapter import LoraSpec, attach_language_model
from privft.training.examples import IGNORED, UnitExamples, microbatches
from privft.training.kernels import use_reproducible_kernels
from privft.training.loop import Performance, train
from privft.training.losses import LanguageModel, pad_rows
from privft.training.optimiser import Optimisation

MODEL = "builtin:smollm2-135m-instruct"
CLIP_NORM = 0.3
NOISE_MULTIPLIER = 0.01
"""Small, so that losses of float32 and bfloat16 can be compared; its size costs no time."""
LEARNING_RATE = 1e-3
PAD_ID = 2


@dataclass(frozen=True, kw_only=True)
class Round:
    """One logical batch, whole and as random physical batches."""

    number: int
    records: list[UnitExamples]
    batches: list[list[UnitExamples]]

    @property
    def tokens(self) -> int:
        """Real tokens, without any padding."""
        return sum(len(e.input_ids) for unit in self.records for e in unit.examples)


Step = Callable[[Round], None]


class Bench:
    """Makes models on shared frozen weights; `rank` is LoRA's."""

    def __init__(self, *, rank: int = 8, device: str = "cpu") -> None:
        self.found = basemodel.find(MODEL)
        self.rank = rank
        self.device = torch.device(device)
        self._shared: dict[str, list[torch.Tensor]] = {}

    def model(self, dtype: str = "float32") -> LanguageModel:
        """The base with a fresh adapter, in privft's wrapper; `.module` is the plain peft model."""
        base = basemodel.load_model(self.found, task="causal-lm", dtype=dtype).to(self.device)
        first = self._shared.setdefault(dtype, [p.data for p in base.parameters()])
        for parameter, data in zip(base.parameters(), first, strict=True):
            parameter.data = data
        return attach_language_model(base, LoraSpec(r=self.rank), seed=0, pad_id=PAD_ID)

    def padded(
        self, batch: Sequence[UnitExamples]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(input_ids, attention_mask, labels), padded to the longest record."""
        examples = [example for unit in batch for example in unit.examples]
        longest = max(len(example.input_ids) for example in examples)
        ids, mask = pad_rows(examples, longest, PAD_ID, self.device)
        labels = torch.full_like(ids, IGNORED)
        for row, example in enumerate(examples):
            labels[row, : len(example.labels)] = torch.tensor(example.labels)
        return ids, mask, labels


class Given:
    """Units that are all in the step."""

    def __init__(self, records: list[UnitExamples]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def examples(self, positions: NDArray[Any]) -> list[UnitExamples]:
        return [self._records[position] for position in positions]


def privft_step(model: LanguageModel, *, token_budget: int) -> Step:
    """One step of privft's own loop on all records of a round."""

    def step(given: Round) -> None:
        use_reproducible_kernels()  # as in every run of privft, and in no rival
        train(
            model,
            units=Given(given.records),
            canaries=[],
            mechanism=Mechanism(
                unit="record",
                sampling_probability=1.0,
                noise_multiplier=NOISE_MULTIPLIER,
                clip_norm=CLIP_NORM,
                steps=1,
                expected_batch_size=float(len(given.records)),
            ),
            max_records_per_unit=1,
            optimisation=Optimisation(learning_rate=LEARNING_RATE),
            performance=Performance(token_budget=token_budget),
            streams=KeyedStreams(given.number.to_bytes(32, "big")),
            context={},
            journal=lambda step, digest: None,
            save=lambda state: None,
        )
        torch.use_deterministic_algorithms(False)

    return step


def _batched(input: torch.Tensor, gradient: torch.Tensor, records: Sequence[int]) -> torch.Tensor:
    """Gradients of a linear layer by unit (a record each), in one batched product."""
    return torch.einsum("r...n,r...k->rnk", gradient, input.to(gradient.dtype))


def _torchs_sum(factors: Any, bias: Any, narrow: Any, narrow_weight: Any, scaling: float) -> Any:
    (input, weight), *others = factors
    wide = nn.functional.linear(input, weight, bias)
    for other, its_weight in others:
        wide.add_(nn.functional.linear(other, its_weight))
    return wide.add_(nn.functional.linear(narrow, narrow_weight), alpha=scaling)


@contextmanager
def _torchs_products() -> Iterator[None]:
    with (
        mock.patch.object(products, "product", nn.functional.linear),
        mock.patch.object(products, "_weight_gradients", _batched),
        mock.patch.object(losses, "product", nn.functional.linear),
        mock.patch.object(lowrank, "product", nn.functional.linear),
        mock.patch.object(lowrank, "sum_of_products", _torchs_sum),
    ):
        yield


def unbound_step(model: LanguageModel, *, token_budget: int) -> Step:
    """`privft_step` with torch's own products."""
    own = privft_step(model, token_budget=token_budget)

    def step(given: Round) -> None:
        with _torchs_products():
            own(given)

    return step


def _optimizer(module: nn.Module) -> torch.optim.AdamW:
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)


def alike_step(model: LanguageModel, *, token_budget: int) -> Step:
    """No privacy, on privft's microbatches and with its label-only loss."""
    optimizer = _optimizer(model.module)

    def step(given: Round) -> None:
        model.module.train()
        for batch in microbatches(given.records, token_budget=token_budget):
            examples = [example for unit in batch for example in unit.examples]
            of_records = model.record_losses(examples, batch[0].bucket)
            (of_records.sum() / len(given.records)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def padded_step(bench: Bench, model: LanguageModel) -> Step:
    """No privacy, random batches padded to the longest, the model's own loss."""
    module = model.module
    optimizer = _optimizer(module)

    def step(given: Round) -> None:
        module.train()
        for batch in given.batches:
            ids, mask, labels = bench.padded(batch)
            module(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def _private(module: nn.Module, *, expected: int, **options: Any) -> tuple[Any, ...]:
    """Opacus's `make_private`; the loader only tells it the expected batch size."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    module.train()
    loader = DataLoader(TensorDataset(torch.zeros(100 * expected)), batch_size=expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # secure_mode is off, as in the tutorials
        made: tuple[Any, ...] = PrivacyEngine(accountant="rdp").make_private(
            module=module,
            optimizer=_optimizer(module),
            data_loader=loader,
            noise_multiplier=NOISE_MULTIPLIER,
            max_grad_norm=CLIP_NORM,
            poisson_sampling=False,  # the round's records are the sample
            **options,
        )
    return made


def hooks_step(bench: Bench, model: LanguageModel, *, expected: int) -> Step:
    """Opacus's hooks, a logical batch in physical ones as its BatchMemoryManager does it."""
    module, optimizer, _ = _private(model.module, expected=expected)

    def step(given: Round) -> None:
        for number, batch in enumerate(given.batches, start=1):
            optimizer.signal_skip_step(do_skip=number < len(given.batches))
            ids, mask, labels = bench.padded(batch)
            module(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def ghost_step(bench: Bench, model: LanguageModel, *, expected: int) -> Step:
    """Opacus's ghost clipping: two backward passes, no per-record gradients kept."""
    module, optimizer, criterion, _ = _private(
        model.module,
        expected=expected,
        criterion=nn.CrossEntropyLoss(ignore_index=IGNORED),
        grad_sample_mode="ghost",
    )

    def step(given: Round) -> None:
        for number, batch in enumerate(given.batches, start=1):
            optimizer.signal_skip_step(do_skip=number < len(given.batches))
            ids, mask, labels = bench.padded(batch)
            logits = module(input_ids=ids, attention_mask=mask).logits[:, :-1]
            targets = labels[:, 1:]
            loss = criterion(
                logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), shape=logits.shape
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def opake_step(bench: Bench, model: LanguageModel, *, expected: int) -> Step:
    """opake's documented loop: functional model, vmap inside `clipped_grad`, Gaussian noise.

    Its patches rewrite classes of transformers, so it wants a process of its own."""
    from opake.dpsgd.clipping import clipped_grad
    from opake.dpsgd.noise import gaussian_noise
    from opake.functional import make_functional
    from opake.patches import apply_model_patches
    from opake.random import key

    module = model.module
    module.train()
    apply_model_patches(module)
    optimizer = _optimizer(module)
    functional, trained, frozen = make_functional(module, partition_trainable=True)

    def loss_of(parameters: Any, ids: Any, mask: Any, labels: Any) -> Any:
        out = functional(
            {**frozen, **parameters},
            input_ids=ids[None],
            attention_mask=mask[None],
            labels=labels[None],
        )
        return out.loss

    gradient, clip_state = clipped_grad(
        loss_of, clipping_norm=CLIP_NORM, batch_argnums=(1, 2, 3), normalize_by=expected
    )
    noise, noise_state = gaussian_noise(noise_multiplier=NOISE_MULTIPLIER, key=key(0))
    live = dict(module.named_parameters())

    def step(given: Round) -> None:
        nonlocal clip_state, noise_state
        total = None
        for batch in given.batches:
            current = {name: live[name].detach() for name in trained}
            part, clip_state = gradient(current, *bench.padded(batch), state=clip_state)
            if total is not None:
                for name, tensor in part.pytree.items():
                    tensor.add_(total.pytree[name])
            total = part
        noisy, noise_state = noise(total, noise_state)
        for name, tensor in noisy.pytree.items():
            live[name].grad = tensor
        optimizer.step()
        optimizer.zero_grad()

    return step


def make(
    name: str,
    bench: Bench,
    *,
    expected: int,
    token_budget: int,
    model: LanguageModel | None = None,
) -> Step:
    """The step of a contender by its name, on `model` or on a fresh one."""
    model = bench.model() if model is None else model
    if name in ("privft", "privft-bf16"):
        return privft_step(model, token_budget=token_budget)
    if name == "unbound":
        return unbound_step(model, token_budget=token_budget)
    if name == "alike":
        return alike_step(model, token_budget=token_budget)
    if name == "padded":
        return padded_step(bench, model)
    steps = {"hooks": hooks_step, "ghost": ghost_step, "opake": opake_step}
    return steps[name](bench, model, expected=expected)
