"""The sizes of a model, from its `config.json` alone: matrices, heads, embeddings.

What a plan reckons (`sizing`) must be reckoned before any weight is read, and what it cannot
reckon it must not guess: an architecture that is not listed here has no shape, and the plan says
so.  A test holds the count of numbers equal to what transformers builds from the same file.

    llama, mistral, qwen2    RMS norms, gated products, grouped heads; Qwen2 has biases on queries,
                             keys and values
    bert                     layer norms, GELU; without the pooler, which privft leaves out
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LLAMA_LIKE = ("llama", "mistral", "qwen2")
"""Values of `model_type` whose layers are those of Llama (Qwen2 adds biases)."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One linear layer: the end of its name, its shape, and what it reads, by a name that is the
    same for matrices that read the same tensor."""

    name: str
    inputs: int
    outputs: int
    bias: bool
    reads: str

    @property
    def numbers(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a model, as its `config.json` has them.

    matrices: the linear layers of one of `layers` equal layers.
    layer_rest: the other numbers of a layer (norms).
    embeddings: numbers outside the layers (embeddings, output embedding, last norm).
    """

    family: Literal["llama", "bert"]
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    matrices: tuple[Matrix, ...]
    layer_rest: int
    embeddings: int

    @property
    def layer_numbers(self) -> int:
        """Numbers of one layer."""
        return sum(matrix.numbers for matrix in self.matrices) + self.layer_rest

    @property
    def numbers(self) -> int:
        """All numbers of the model."""
        return self.layers * self.layer_numbers + self.embeddings


def shape_of(config: Mapping[str, Any], *, head: bool = True) -> ModelShape | None:
    """The sizes in a parsed `config.json`, or None for an architecture that is not known here.

    head: whether the output embedding is loaded (causal-lm) or the bare encoder.
    """
    kind = config.get("model_type")
    if kind in LLAMA_LIKE:
        return _llama(config, head=head)
    if kind == "bert":
        return _bert(config)
    return None


def _llama(config: Mapping[str, Any], *, head: bool) -> ModelShape:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    keys = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or hidden // heads)
    biased = bool(config.get("attention_bias", config["model_type"] == "qwen2"))
    out_biased = biased and config["model_type"] != "qwen2"
    mlp = bool(config.get("mlp_bias", False))
    vocabulary = int(config["vocab_size"])
    rows = (
        ("self_attn.q_proj", hidden, heads * size, biased, "attention"),
        ("self_attn.k_proj", hidden, keys * size, biased, "attention"),
        ("self_attn.v_proj", hidden, keys * size, biased, "attention"),
        ("self_attn.o_proj", heads * size, hidden, out_biased, "context"),
        ("mlp.gate_proj", hidden, inner, mlp, "mlp"),
        ("mlp.up_proj", hidden, inner, mlp, "mlp"),
        ("mlp.down_proj", inner, hidden, mlp, "inner"),
    )
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelShape(
        family="llama",
        hidden=hidden,
        intermediate=inner,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        key_heads=keys,
        head_size=size,
        vocabulary=vocabulary,
        matrices=_matrices(rows),
        layer_rest=2 * hidden,
        embeddings=vocabulary * hidden * (2 if head and not tied else 1) + hidden,
    )


def _bert(config: Mapping[str, Any]) -> ModelShape:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    heads = int(config["num_attention_heads"])
    vocabulary = int(config["vocab_size"])
    places = int(config["max_position_embeddings"]) + int(config.get("type_vocab_size", 2))
    rows = (
        ("attention.self.query", hidden, hidden, True, "attention"),
        ("attention.self.key", hidden, hidden, True, "attention"),
        ("attention.self.value", hidden, hidden, True, "attention"),
        ("attention.output.dense", hidden, hidden, True, "context"),
        ("intermediate.dense", hidden, inner, True, "mlp"),
        ("output.dense", inner, hidden, True, "inner"),
    )
    return ModelShape(
        family="bert",
        hidden=hidden,
        intermediate=inner,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        key_heads=heads,
        head_size=hidden // heads,
        vocabulary=vocabulary,
        matrices=_matrices(rows),
        layer_rest=4 * hidden,
        embeddings=(vocabulary + places + 2) * hidden,
    )


def _matrices(rows: Sequence[tuple[str, int, int, bool, str]]) -> tuple[Matrix, ...]:
    return tuple(
        Matrix(name=name, inputs=inputs, outputs=outputs, bias=bias, reads=reads)
        for name, inputs, outputs, bias, reads in rows
    )
