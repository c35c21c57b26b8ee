"""Memory a device, reckoned from public facts before anything is loaded.

Sizes of the model come from its `config.json`, everything else from the run's config: no record is
opened and no weight is read.  What a step does depends on the lengths of the records, which are
private, so a plan states what it can be *at most*: all lengths up to `max_length` are tried, every
place has a label, and as many units as the token budget holds are in one microbatch.

Symbols: D hidden size, I intermediate size, H and G heads of queries and of keys, h numbers a head,
V vocabulary; b bytes of a frozen weight (4 or 2); A trained numbers in all, A_l in a layer; a
microbatch of U units and R rows of S places, T = R S tokens, N labels a row.

Memory a device, in bytes (`memory`).  Always there:
    weights     frozen numbers times b; sharded over n ranks 1/n of them, and then the whole of the
                embeddings and of two layers (the one at work and the one that is fetched)
                quantised: 1 + 4/D bytes (8 bit, one float32 scale a row) or 0.5 + 4/64 (4 bit, one
                scale a block of 64) a number of the layers' matrices; the rest stays in b
    trained     4 A
    optimiser   8 A (AdamW: two float32 moments); 0 (SGD)
    sums        8 A (float64 sums of clipped gradients)
    features    4 D for each record that a head alone remembers, up to `REMEMBERED_BYTES`
On top the largest of four moments of a step:
    logits      at the end of the forward pass: what all layers keep; T D (4 + 2 b) for the last
                norm and the hidden states with a copy of the labelled ones; R N D b for their
                gradient; one block of logits, min(R N, 256) V times 8 (float32) or 10 (bfloat16)
    backward    in layer l from the top: what the layers up to l keep, 4 U (A_l + ... + A_top), and
                passing gradients of the widest part, T (2 I + 2 D) times 4
    clipping    4 U A for the gradients
    noise       8 A (noisy sums, which leave as the optimiser's 4 A come)

What a Llama layer keeps for its backward pass, a token (transformers' own modules, whose frozen
matrices keep nothing, `training.products`): 4 D for each of two norms; b (H h + 2 G h) for queries,
keys and values, b H h and 4 H for what attention gives; 3 b I for the gated product; b for
each number that a matrix with an adapter reads, once for matrices that read the same; 4 r for each
matrix.  On a quantised base (bfloat16) each A keeps a float32 copy of its own instead, and so it
does with dropout, with a mask of a byte a number.  A BERT layer keeps 2 b D for two norms, 4 b D
and 4 H for attention, b I for GELU, and what A reads.  Layers below the first trained one keep
nothing.  With checkpointing a layer keeps its input, b D, and one layer at a time the rest.

Sources: Korthikanti et al. 2022 (arXiv 2205.05198) and Rajbhandari et al. 2020 (ZeRO, 1910.02054)
for the way of counting; the terms are read off privft's own step.  How well they hold is what
`benchmarks/planner.py` measures: within 7% in fifteen small models.  Time is not reckoned from
these but rehearsed (`training.rehearsal`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from privft.modelshape import Matrix, ModelShape

Dtype = Literal["float32", "bfloat16"]
Quantised = Literal["8-bit", "4-bit"]
BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2}
BLOCK_LABELS = 256
"""Rows of logits at a time: `training.losses.BLOCK_TOKENS`, which a test holds equal."""

REMEMBERED_BYTES = 1 << 29
"""The most that features of records take where a head is trained on a frozen encoder."""


@dataclass(frozen=True, kw_only=True)
class AdapterShape:
    """LoRA as the config has it; None means every matrix of a layer, and every layer."""

    rank: int
    targets: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    freeze_a: bool = False
    dropout: bool = False


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run, as far as memory and time depend on it.

    classes: labels of a classification head; 0 for a language model.
    ranks: processes, each with its own device; `sharded`: the frozen base is shared out among them.
    discrete: clipped gradients are rounded to whole numbers, and so is the noise.
    remembered: records whose features may be kept in memory.
    """

    shape: ModelShape
    adapter: AdapterShape | None
    dtype: Dtype
    classes: int = 0
    adam: bool = True
    ranks: int = 1
    sharded: bool = False
    quantised: Quantised | None = None
    checkpointing: bool = False
    discrete: bool = False
    remembered: int = 0

    def targets(self, layer: int) -> tuple[Matrix, ...]:
        """The matrices of a layer that have an adapter."""
        adapter = self.adapter
        if adapter is None or (adapter.layers is not None and layer not in adapter.layers):
            return ()
        return tuple(
            matrix
            for matrix in self.shape.matrices
            if adapter.targets is None
            or any(f".{matrix.name}".endswith(f".{name}") for name in adapter.targets)
        )

    def trained(self, layer: int) -> int:
        """Trained numbers of a layer."""
        if self.adapter is None:
            return 0
        frozen = self.adapter.freeze_a
        return self.adapter.rank * sum(
            matrix.outputs + (0 if frozen else matrix.inputs) for matrix in self.targets(layer)
        )

    @property
    def head_numbers(self) -> int:
        """Trained numbers of a classification head."""
        return self.classes * (self.shape.hidden + 1) if self.classes else 0

    @property
    def trained_numbers(self) -> int:
        """All trained numbers."""
        return sum(self.trained(layer) for layer in range(self.shape.layers)) + self.head_numbers

    @property
    def first_trained(self) -> int:
        """The lowest layer with an adapter; the number of layers where none has one."""
        found = (layer for layer in range(self.shape.layers) if self.trained(layer))
        return next(found, self.shape.layers)


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """`units` units of `rows` records together, each padded to `length`; `labels` a record."""

    units: int
    rows: int
    length: int
    labels: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device: what is always there, and the largest moment of a step on top."""

    weights: int
    trained: int
    optimiser: int
    sums: int
    features: int
    moments: dict[str, int]

    @property
    def at_rest(self) -> int:
        """Between two steps."""
        return self.weights + self.trained + self.optimiser + self.features

    @property
    def step(self) -> int:
        """What a step takes above that."""
        return self.sums + max(self.moments.values())

    @property
    def peak(self) -> int:
        return self.at_rest + self.step


def kept_by_layer(setting: Setting, layer: int) -> int:
    """Bytes that a layer keeps for its backward pass, a token; see the module's docstring."""
    if layer < setting.first_trained:
        return 0
    shape, wide, adapter = setting.shape, BYTES[setting.dtype], setting.adapter
    assert adapter is not None
    targets = setting.targets(layer)
    context, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    read: dict[str, int] = {}  # by what is read, or by who reads it where each has a copy
    for matrix in targets:
        if adapter.dropout:
            read[matrix.name] = (1 if adapter.freeze_a else 5) * matrix.inputs
        elif setting.quantised is None or wide == 4:
            read[matrix.reads] = wide * matrix.inputs
        elif not adapter.freeze_a:
            read[matrix.name] = 4 * matrix.inputs
    read.pop("context", None)  # kept anyway
    attention = wide * (2 * context + 2 * keys) + 4 * shape.heads
    if shape.family == "llama":
        norms = 2 * 4 * (shape.hidden + 1)
        inner = 3 * wide * shape.intermediate
    else:
        norms = 2 * wide * shape.hidden
        inner = wide * shape.intermediate
    return norms + attention + inner + sum(read.values()) + 4 * adapter.rank * len(targets)


def _weights(setting: Setting) -> int:
    shape, wide = setting.shape, BYTES[setting.dtype]
    layer = _layer_bytes(setting)
    whole = shape.layers * layer + shape.embeddings * wide
    if not setting.sharded or setting.ranks == 1:
        return whole
    return math.ceil(whole / setting.ranks)


def _layer_bytes(setting: Setting) -> int:
    """One layer's frozen numbers, as they are stored."""
    shape, wide = setting.shape, BYTES[setting.dtype]
    if setting.quantised is None:
        return shape.layer_numbers * wide
    stored = 0.0
    for matrix in shape.matrices:
        numbers = matrix.inputs * matrix.outputs
        scales = 4 * matrix.outputs if setting.quantised == "8-bit" else numbers / 16
        stored += numbers * (1 if setting.quantised == "8-bit" else 0.5) + scales
        stored += (matrix.numbers - numbers) * wide
    return math.ceil(stored) + shape.layer_rest * wide


def _gathered(setting: Setting) -> int:
    """What is whole for a moment: two layers and the embeddings of a sharded base, and the one
    matrix that is at work of a quantised one."""
    shape, wide = setting.shape, BYTES[setting.dtype]
    found = 0
    if setting.sharded and setting.ranks > 1:
        found += 2 * _layer_bytes(setting) + shape.embeddings * wide
    if setting.quantised is not None:
        found += max(matrix.inputs * matrix.outputs for matrix in shape.matrices) * wide
    return found


def memory(setting: Setting, batch: Microbatch) -> Memory:
    """Bytes on one device in a step whose largest microbatch is `batch`."""
    shape, wide = setting.shape, BYTES[setting.dtype]
    hidden, tokens, units = shape.hidden, batch.tokens, batch.units
    count = setting.trained_numbers
    kept = [tokens * kept_by_layer(setting, n) for n in range(shape.layers)]
    gathered = _gathered(setting)
    passing = 4 * tokens * 2 * (shape.intermediate + hidden)
    if setting.checkpointing:
        inputs = [tokens * hidden * wide if size else 0 for size in kept]
        again = max(kept) - (tokens * hidden * wide if wide == 4 and max(kept) else 0)
    else:
        inputs, again = kept, 0
    held = sum(inputs)
    if setting.classes:
        top = tokens * hidden * (wide + 4)
    else:
        block = (
            min(batch.rows * batch.labels, BLOCK_LABELS)
            * shape.vocabulary
            * (8 if wide == 4 else 10)
        )
        top = tokens * hidden * (4 + 2 * wide) + batch.rows * batch.labels * hidden * wide + block
    backward = 0
    of_units, below = 4 * units * setting.head_numbers, held
    for layer in reversed(range(setting.first_trained, shape.layers)):
        backward = max(backward, below + again + of_units + passing)
        of_units += 4 * units * setting.trained(layer)
        below -= inputs[layer]
    frozen_a = 0
    if setting.adapter is not None and setting.adapter.freeze_a:
        frozen_a = setting.adapter.rank * sum(
            matrix.inputs for n in range(shape.layers) for matrix in setting.targets(n)
        )
    return Memory(
        weights=_weights(setting),
        trained=4 * (count + frozen_a),
        optimiser=8 * count if setting.adam else 0,
        sums=8 * count,
        features=min(4 * hidden * setting.remembered, REMEMBERED_BYTES),
        moments={
            "logits": held + top + gathered,
            "backward": backward + gathered,
            "clipping": 4 * units * count,
            "noise": 8 * count,
        },
    )


def largest(
    lengths: Iterable[int], *, token_budget: int, records_per_unit: int, sampled_units: int
) -> list[Microbatch]:
    """The fullest microbatch of each length: as many whole units as the budget holds, at least
    one, at most `sampled_units`, with a label at every place but the first."""
    found = []
    for length in lengths:
        units = max(1, min(sampled_units, token_budget // length))
        few = max(1, token_budget // (length * records_per_unit))
        found.append(_filled(units, units, length))
        found.append(_filled(few, few * records_per_unit, length))
    return found


def _filled(units: int, rows: int, length: int) -> Microbatch:
    return Microbatch(units=units, rows=rows, length=length, labels=length - 1)


def reduction_bytes(numbers: int, ranks: int) -> int:
    """What each rank sends in a step, before the transport's headers: the float64 sum of `numbers`
    gradients, of which n - 1 of n parts go round a ring twice (Patarasu and Yuan 2009), and a
    digest of 32 bytes to each other rank."""
    others = ranks - 1
    return 2 * others * 8 * numbers // ranks + 32 * others


def wire_bytes(setting: Setting, *, passes: int) -> int:
    """The same with what a sharded base adds in `passes` microbatches: n - 1 times a rank's part,
    of the layers forward and backward, of the rest once."""
    sums = reduction_bytes(setting.trained_numbers, setting.ranks)
    if not setting.sharded:
        return sums
    gathered = 2 * setting.shape.layers * _layer_bytes(setting)
    gathered += setting.shape.embeddings * BYTES[setting.dtype]
    return sums + passes * (setting.ranks - 1) * gathered // setting.ranks
