"""The loss of each record: a mean over its own labels and nothing else.

Why not the model's own loss: it averages over all label tokens of a batch, so a record's gradient
would depend on its companions and the clip norm would not bound a unit's influence.

Causal LM.  Logits are taken only where there are labels, in blocks of `BLOCK_TOKENS`, so that a
[tokens, vocabulary] tensor never dominates memory; where products do not depend on companions
(`kernels`), neither do losses and gradients, to the bit.  Where the output embedding is frozen,
labels of all records share blocks, the gradient with respect to the hidden state is formed at once
in the forward pass, and no logits are kept (the idea of cut- and fused cross-entropies, e.g.
Wijmans et al. 2024, arXiv 2411.09009).  Where it is trained (`lora.modules_to_save: [lm_head]`),
records are taken one by one, logits are formed once more in the backward pass, and each record's
gradient by the weight goes to its unit (`products.active`).

`LanguageModel` and `Classifier` both give `record_losses`; `trained_parameters` lists what moves.
Shape suffixes: R rows (records), T positions, D hidden, N labelled positions, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from privft.errors import InputError
from privft.sizing import REMEMBERED_BYTES
from privft.training.examples import IGNORED, Example
from privft.training.kernels import product
from privft.training.products import active

BLOCK_TOKENS = 256


class _LabelledCrossEntropy(torch.autograd.Function):
    """Mean negative log-likelihood of each record's labels, [R]; the gradient goes to the hidden
    states only.

    places_N: which rows of hidden_RTD, seen as [R T, D], predict the labels_N; counts: how many
    labels each record has, in the order of both.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_RTD: torch.Tensor,
        weight_VD: torch.Tensor,
        places_N: torch.Tensor,
        labels_N: torch.Tensor,
        counts: list[int],
    ) -> torch.Tensor:
        ctx.shape, ctx.counts = hidden_RTD.shape, torch.tensor(counts, device=hidden_RTD.device)
        hidden_ND = hidden_RTD.flatten(0, 1)[places_N]
        of_record_N = ctx.counts.repeat_interleave(ctx.counts)[:, None]
        gradient_ND = torch.empty_like(hidden_ND) if hidden_RTD.requires_grad else None
        losses = []
        for block, labels, above, scores, totals in _blocks(hidden_ND, weight_VD, labels_N):
            losses.append(totals.log() - above)
            if gradient_ND is not None:
                by_logits = _by_logits(scores, totals, labels, of_record_N[block])
                gradient_ND[block] = product(by_logits.to(weight_VD.dtype), weight_VD.t(), None)
        ctx.save_for_backward(gradient_ND, places_N)
        of_records = torch.split(torch.cat(losses), counts)
        means = [of_labels.double().sum() / len(of_labels) for of_labels in of_records]
        return torch.stack(means).to(_wide(hidden_RTD.dtype))

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[Any, ...]:
        gradient_ND, places_N = ctx.saved_tensors
        by_loss_N = output_gradients[0].to(gradient_ND.dtype).repeat_interleave(ctx.counts)
        gradient_RTD = gradient_ND.new_zeros(ctx.shape)
        gradient_RTD.flatten(0, 1)[places_N] = gradient_ND * by_loss_N[:, None]
        return gradient_RTD, None, None, None, None


class _TrainedCrossEntropy(torch.autograd.Function):
    """The same where the weight is trained: its gradient goes to `record`, or to autograd where no
    unit is asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        labels_N: torch.Tensor,
        record: Callable[[torch.Tensor], None] | None,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        for _, _, above, _, totals in _blocks(hidden_ND, weight_VD, labels_N):
            total += (totals.log() - above).sum(dtype=torch.float64)
        ctx.record = record
        ctx.save_for_backward(hidden_ND, weight_VD, labels_N)
        return (total / labels_N.shape[0]).to(_wide(hidden_ND.dtype))

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[Any, ...]:
        hidden_ND, weight_VD, labels_N = ctx.saved_tensors
        of_hidden_ND, of_weight_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        for block, labels, _, scores, totals in _blocks(hidden_ND, weight_VD, labels_N):
            by_logits = _by_logits(scores, totals, labels, labels_N.shape[0])
            by_logits = (by_logits * output_gradients[0]).to(weight_VD.dtype)
            of_hidden_ND[block] = by_logits @ weight_VD
            of_weight_VD.addmm_(by_logits.t(), hidden_ND[block])
        if ctx.record is None:
            return of_hidden_ND, of_weight_VD, None, None
        ctx.record(of_weight_VD)
        return of_hidden_ND, None, None, None


def _blocks(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """At most `BLOCK_TOKENS` positions at a time: which; their labels; each label's logit less the
    largest; the exponentials of all logits less the largest, [n, V]; and their sums.  Labels,
    their logits and sums are [n, 1], and all but labels are of a wide type."""
    for start in range(0, labels_N.shape[0], BLOCK_TOKENS):
        block = slice(start, start + BLOCK_TOKENS)
        labels = labels_N[block, None]
        scores = product(hidden_ND[block], weight_VD, None).to(_wide(hidden_ND.dtype))
        scores.sub_(scores.amax(-1, keepdim=True))
        above = scores.gather(1, labels)
        scores.exp_()
        rows = scores.expand(2, -1) if len(scores) == 1 else scores  # a twin, as in `product`
        yield block, labels, above, scores, rows.sum(-1, keepdim=True)[: len(scores)]


def _by_logits(
    scores: torch.Tensor, totals: torch.Tensor, labels: torch.Tensor, count: torch.Tensor | int
) -> torch.Tensor:
    """The gradient of a mean over `count` labels by their logits, [n, V]; overwrites `scores`.
    count: one number, or that of each label's record, [n, 1]."""
    share = torch.ones_like(totals) / count
    return scores.mul_(share / totals).scatter_add_(1, labels, -share)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _whole(weight: torch.Tensor) -> torch.Tensor:
    """The weight, gathered from all ranks where it is shared out (`sharding`)."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def pad_rows(
    examples: Sequence[Example], length: int, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask), both [R, T] with T = `length`, padded on the right."""
    ids_RT = torch.full((len(examples), length), pad_id, dtype=torch.long)
    mask_RT = torch.zeros((len(examples), length), dtype=torch.long)
    for row, example in enumerate(examples):
        count = len(example.input_ids)
        ids_RT[row, :count] = torch.tensor(example.input_ids)
        mask_RT[row, :count] = 1
    return ids_RT.to(device), mask_RT.to(device)


class LanguageModel:
    """A causal language model (a peft wrapper or a bare one) with per-record losses."""

    task = "causal-lm"

    def __init__(self, module: nn.Module, *, pad_id: int) -> None:
        self.module = module
        self.pad_id = pad_id
        base: Any = module
        if hasattr(base, "get_base_model"):
            base = base.get_base_model()
        self.decoder: nn.Module = getattr(base, base.base_model_prefix)
        self.output: nn.Module = base.get_output_embeddings()
        self.embeddings: nn.Module = base.get_input_embeddings()
        self.tied = self.output.weight is self.embeddings.weight
        # of the two names of a tied weight, the one that the decoder's own passes keep up to date
        self._head = self.embeddings if self.tied else self.output
        trained = [p for p in self._head.parameters() if p.requires_grad]
        if trained and (len(trained) > 1 or trained[0] is not self._head.weight):
            raise InputError(
                "something other than the output embedding's weight is trained there, which the "
                "label-only loss does not support",
                hint="leave lm_head out of lora.target_modules; lora.modules_to_save: [lm_head] "
                "trains it whole",
            )

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def record_losses(self, examples: Sequence[Example], length: int) -> torch.Tensor:
        """Mean loss per label token of each record, shape [R]."""
        hidden_RTD = self._states(examples, length)
        weight_VD = _whole(self._head.weight)
        places_N, labels_N, counts = self._labelled(examples, length)
        losses_R: torch.Tensor
        if not weight_VD.requires_grad:
            losses_R = _LabelledCrossEntropy.apply(  # type: ignore[no-untyped-call]
                hidden_RTD, weight_VD, places_N, labels_N, counts
            )
            return losses_R
        hidden_ND = hidden_RTD.flatten(0, 1)[places_N].to(weight_VD.dtype)
        products = active()
        losses = [
            _TrainedCrossEntropy.apply(  # type: ignore[no-untyped-call]
                # a tensor of its own, at an address that companions do not move
                of_record.clone(),
                weight_VD,
                labels,
                products and products.row_recorder(weight_VD, row),
            )
            for row, (of_record, labels) in enumerate(
                zip(torch.split(hidden_ND, counts), torch.split(labels_N, counts), strict=True)
            )
        ]
        return torch.stack(losses)

    def writes(self, examples: Sequence[Example], length: int) -> torch.Tensor:
        """Whether each of a record's labels has the largest logit where it is due, [R]."""
        hidden_RTD = self._states(examples, length)
        weight_VD = _whole(self._head.weight)
        places_N, labels_N, counts = self._labelled(examples, length)
        hidden_ND = hidden_RTD.flatten(0, 1)[places_N].to(weight_VD.dtype)
        written = [
            product(hidden, weight_VD, None).argmax(-1) == labels
            for hidden, labels in zip(
                torch.split(hidden_ND, BLOCK_TOKENS),
                torch.split(labels_N, BLOCK_TOKENS),
                strict=True,
            )
        ]
        return torch.stack(
            [of_record.all() for of_record in torch.split(torch.cat(written), counts)]
        )

    def _states(self, examples: Sequence[Example], length: int) -> torch.Tensor:
        """The decoder's last hidden states, [R, T, D].

        Rows are padded on the right and attention is causal, so no labelled position ever sees a
        pad.  No mask is given: transformers drops one that masks nothing and then takes another
        kernel, so a row that fills its bucket would feel whether its companions do.
        """
        ids_RT, _ = pad_rows(examples, length, self.pad_id, self.device)
        states: torch.Tensor = self.decoder(input_ids=ids_RT, use_cache=False).last_hidden_state
        return states

    def _labelled(
        self, examples: Sequence[Example], length: int
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Of all labels, record by record: which of R T places predicts each, [N]; the labels, [N];
        and how many each record has."""
        labels = [
            (row * length + t - 1, label)
            for row, example in enumerate(examples)
            for t, label in enumerate(example.labels)
            if label != IGNORED
        ]
        places_N, labels_N = torch.tensor(labels, device=self.device).unbind(-1)
        return places_N, labels_N, [example.labelled for example in examples]

    def check_against_own_loss(self, example: Example) -> None:
        """Raise unless the label-only loss is the model's own on one row (logit scaling, soft caps
        and final biases would make it differ)."""
        length = len(example.input_ids)
        ids_RT, mask_RT = pad_rows([example], length, self.pad_id, self.device)
        labels = torch.tensor([example.labels], device=self.device)
        with torch.no_grad():
            ours = float(self.record_losses([example], length)[0])
            own = float(self.module(input_ids=ids_RT, attention_mask=mask_RT, labels=labels).loss)
        if not abs(ours - own) <= 0.02 * max(1.0, abs(own)):
            raise InputError(
                f"this architecture's logits are not its output embedding times its last hidden "
                f"state: loss {ours:.4f} against its own {own:.4f}",
                hint="privft supports Llama-like causal models; see README, 'Models'",
            )


class Classifier(nn.Module):
    """An encoder, mean pooling, normalised features times ten, and a linear head from zero.

    Under noise the features' scale and the head's start matter more than the adapter: clipped
    gradients of a zero head on unit-norm features point the same way for all units of a class.

    Where the encoder is frozen, a record has the same features in every step; those met in training
    are kept in memory (`KEPT_BYTES` of them at most), so that later steps cost the head alone.
    Only where companions change no bit of them (on CPUs, see `kernels`): elsewhere a resumed run
    would meet others.
    """

    task = "sequence-classification"
    FEATURE_SCALE = 10.0
    KEPT_BYTES = REMEMBERED_BYTES

    def __init__(self, encoder: nn.Module, *, hidden: int, labels: int, pad_id: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(hidden, labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.pad_id = pad_id
        self._kept: dict[bytes, torch.Tensor] = {}

    @property
    def module(self) -> nn.Module:
        return self

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def features(self, ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> torch.Tensor:
        """Mean-pooled, normalised, scaled: [R, D] in float32."""
        # Spelled out, and thus never dropped where nothing is masked; see `LanguageModel`.
        dtype = next(self.encoder.parameters()).dtype
        added_R11T = torch.zeros(mask_RT.shape, dtype=dtype, device=mask_RT.device).masked_fill_(
            mask_RT == 0, torch.finfo(dtype).min
        )[:, None, None, :]
        hidden_RTD = self.encoder(input_ids=ids_RT, attention_mask=added_R11T).last_hidden_state
        mask = mask_RT[..., None].to(hidden_RTD.dtype)
        pooled_RD = (hidden_RTD * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(pooled_RD.to(self.head.weight.dtype)) * self.FEATURE_SCALE

    def forward(self, ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> torch.Tensor:
        """Logits, [R, labels]."""
        features = self._remembered if self._remembers() else self.features
        logits: torch.Tensor = self.head(features(ids_RT, mask_RT))
        return logits

    def _remembers(self) -> bool:
        """A base that is shared out among ranks has to run on all of them as often, and does not
        remember."""
        return (
            active() is not None
            and self.device.type == "cpu"
            and not any(
                p.requires_grad or isinstance(p, DTensor) for p in self.encoder.parameters()
            )
        )

    def _remembered(self, ids_RT: torch.Tensor, mask_RT: torch.Tensor) -> torch.Tensor:
        """`features`, computed for the rows that were not met before in this length."""
        keys = [row.numpy().tobytes() for row in ids_RT.masked_fill(mask_RT == 0, -1).int()]
        new = {key: row for row, key in enumerate(keys) if key not in self._kept}
        found: dict[bytes, torch.Tensor] = {}
        if new:
            rows = list(new.values())
            found = dict(zip(new, self.features(ids_RT[rows], mask_RT[rows]), strict=True))
            room = self.KEPT_BYTES // next(iter(found.values())).nbytes - len(self._kept)
            kept = islice(found.items(), max(0, room))
            self._kept.update((key, features_D.clone()) for key, features_D in kept)
        return torch.stack([found[key] if key in found else self._kept[key] for key in keys])

    def record_losses(self, examples: Sequence[Example], length: int) -> torch.Tensor:
        """Cross-entropy of each record's label, shape [R]."""
        ids_RT, mask_RT = pad_rows(examples, length, self.pad_id, self.device)
        labels_R = torch.tensor([example.labels[0] for example in examples], device=self.device)
        return nn.functional.cross_entropy(self(ids_RT, mask_RT), labels_R, reduction="none")


TrainedModel = LanguageModel | Classifier


def trained_parameters(model: TrainedModel) -> dict[str, nn.Parameter]:
    """Every parameter that training moves, by name, in the order of names."""
    return {
        name: parameter
        for name, parameter in sorted(model.module.named_parameters())
        if parameter.requires_grad
    }
