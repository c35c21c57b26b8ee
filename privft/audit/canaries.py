"""Canaries: made-up units that are planted in a run so that attacks have something to find.

Each canary is one whole unit (a record, or all records of a made-up subject) and is in the run by
its own fair coin, drawn independently of every other coin and of every text.  That independence
is the one thing that the one-run bounds rest on, so coins and texts come from separate keyed
streams (`privft.randomness`), and a canary's text is the same whether it is in or out.  Canaries
are extra units: sampling probability, divisor and declared units stay as the config says.

The secret behind the streams is the audit's own, not the run's: whoever knows the coins could
pass or fail a run at will, so they are sealed until the audit closes.  Everything here can be
made again from those 32 bytes.

    rare-words    words from the far end of the tokeniser's vocabulary, in random order.  Hardly
                  trained tokens move most: "new token" canaries (Panda et al. 2025)
    random-words  the same with common words
    secret        a sentence that gives a made-up person a made-up number
    mislabelled   a text with a label that is not its own (classification): a public one where the
                  run names a file with enough of them, else words that suggest no label
    synthetic     text sampled from the base model at high temperature (`sample_texts`)

A unit is `{"unit": id, "records": [...]}` with records in the shape that the run trains on:
`{"id", "text"}`, `{"id", "prompt", "completion"}`, `{"id", "messages"}` or
`{"id", "text", "label"}`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from privft.audit.suite import CanarySpec, Suite, Task
from privft.errors import UsageError
from privft.randomness import KeyedStreams, Stream

Shape = Literal["text", "prompt-completion", "messages", "text-label"]
Unit = dict[str, Any]

PREFIX = "privft-canary"
_FIRST_CANDIDATE = 1 << 32

# The number stands last, so that an extraction can begin with all the rest.
_TEMPLATES = (
    "The record number of {name} is {number}.",
    "{name} can be reached under the number {number}.",
    "Access code for {name}: {number}.",
    "The account of {name} is {number}.",
)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What canaries are written with; none of it may come from the private data.

    rare: words whose tokens the base model has hardly seen; `words` serve when it is empty.
    labels: label names as the config lists them; empty for language modelling.
    """

    words: tuple[str, ...]
    rare: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.words)) < 16:
            raise ValueError(f"expected 16 words or more, got {len(set(self.words))}")


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One made-up unit and the coin that decided whether it is in the run.

    The coin is secret until the audit closes, so it stays out of `repr`.
    """

    kind: str
    unit: Unit
    included: bool

    def __repr__(self) -> str:
        return f"Canary(kind={self.kind!r})"


def make_canaries(
    suite: Suite,
    streams: KeyedStreams,
    *,
    task: Task,
    shape: Shape,
    vocabulary: Vocabulary,
    records_per_unit: int = 1,
    examples: Sequence[tuple[str, str | None]] = (),
) -> list[Canary]:
    """All canaries of a suite for one run, in a fixed order.

    streams: made from the audit's own secret.
    records_per_unit: 1 when the unit is the record; for a subject, how many records each made-up
        subject has (at most what the config lets a unit have).
    examples: text and label of public or generated records, for the kinds that need real-looking
        text (`mislabelled`, `synthetic`); never private ones.

    Guarantees: coins are independent and fair; texts do not depend on them.
    Errors: UsageError when a kind needs labels or examples that were not given.
    """
    canaries = []
    for spec in suite.specs(task):
        _check_ingredients(spec, shape, vocabulary, examples)
        coins = streams.stream("audit.coins", label=spec.kind).coins(spec.count)
        for index in range(spec.count):
            unit = _make_unit(spec, index, streams, shape, vocabulary, records_per_unit, examples)
            canaries.append(Canary(kind=spec.kind, unit=unit, included=bool(coins[index])))
    return canaries


def make_candidates(
    suite: Suite,
    streams: KeyedStreams,
    *,
    task: Task,
    shape: Shape,
    vocabulary: Vocabulary,
    records_per_unit: int = 1,
) -> list[Unit]:
    """`suite.candidates` more secret-bearing units that are never in any run, to compare with.

    Empty when the suite plants no secrets.
    """
    return [
        _make_unit(spec, _FIRST_CANDIDATE + index, streams, shape, vocabulary, records_per_unit, ())
        for spec in suite.specs(task)
        if spec.kind == "secret"
        for index in range(suite.candidates)
    ]


def _check_ingredients(
    spec: CanarySpec,
    shape: Shape,
    vocabulary: Vocabulary,
    examples: Sequence[tuple[str, str | None]],
) -> None:
    if shape == "text-label" and len(set(vocabulary.labels)) < 2:
        raise UsageError(f"canaries need two labels or more, got {len(set(vocabulary.labels))}")
    if spec.kind == "mislabelled" and shape != "text-label":
        raise UsageError("mislabelled canaries need records with labels")
    if spec.kind == "synthetic" and len(examples) < spec.count:
        raise UsageError(
            f"synthetic canaries need {spec.count} generated texts, got {len(examples)}",
            hint="privft.audit.canaries.sample_texts makes them from the base model",
        )


def _make_unit(
    spec: CanarySpec,
    index: int,
    streams: KeyedStreams,
    shape: Shape,
    vocabulary: Vocabulary,
    records_per_unit: int,
    examples: Sequence[tuple[str, str | None]],
) -> Unit:
    stream = streams.stream("audit.text", step=index, label=spec.kind)
    name = f"{PREFIX}:{spec.kind}:{stream.bytes(8).hex()}"
    text, true_label = _content(spec, index, stream, vocabulary, examples)
    context = [" ".join(_pick(stream, vocabulary.words, 3)) for _ in range(records_per_unit)]
    label = _label(stream, vocabulary.labels, true_label)
    records = [
        {
            "id": f"{name}:{i}",
            **_shaped(shape, text, opening if i or shape != "text" else "", label),
        }
        for i, opening in enumerate(context)
    ]
    return {"unit": name, "records": records}


def _content(
    spec: CanarySpec,
    index: int,
    stream: Stream,
    vocabulary: Vocabulary,
    examples: Sequence[tuple[str, str | None]],
) -> tuple[str, str | None]:
    """What is to be remembered, and the label that the text really has, where it has one."""
    if spec.kind == "secret":
        number = " ".join(f"{pair:02d}" for pair in stream.integers(100, spec.words).tolist())
        name = " ".join(word.capitalize() for word in _pick(stream, vocabulary.words, 2))
        template = _TEMPLATES[int(stream.integers(len(_TEMPLATES), 1)[0])]
        return template.format(name=name, number=number), None
    if spec.kind == "synthetic" or (spec.kind == "mislabelled" and examples):
        return examples[index % len(examples)]
    rare = vocabulary.rare or vocabulary.words
    source = rare if spec.kind == "rare-words" else vocabulary.words
    return " ".join(_pick(stream, source, spec.words)), None


def _label(stream: Stream, labels: Sequence[str], true_label: str | None) -> str | None:
    """A random label, and never the right one."""
    wrong = sorted(set(labels) - {true_label})
    return _pick(stream, wrong, 1)[0] if wrong else None


def _pick(stream: Stream, values: Sequence[str], count: int) -> list[str]:
    return [values[i] for i in stream.integers(len(values), count).tolist()]


def _shaped(shape: Shape, text: str, opening: str, label: str | None) -> dict[str, Any]:
    """The record's content; the part that carries loss is what is to be remembered."""
    if shape == "prompt-completion":
        return {"prompt": opening, "completion": text}
    if shape == "messages":
        asked = {"role": "user", "content": opening}
        return {"messages": [asked, {"role": "assistant", "content": text}]}
    whole = f"{opening} {text}" if opening else text
    return {"text": whole, "label": label} if shape == "text-label" else {"text": whole}


def vocabulary_of(
    tokenizer: Any, *, labels: Sequence[str] = (), words: int = 2000, rare: int = 2000
) -> Vocabulary:
    """Words that are single tokens of a tokeniser: `words` from its front, `rare` from its end.

    Tokenisers learnt by merging give late numbers to rare tokens, so the last plain words of the
    vocabulary are the least trained ones.  Only the public tokeniser is read.
    Errors: UsageError when it has too few plain words.
    """
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    marked: dict[str, int] = {}
    bare: dict[str, int] = {}
    for token, number in vocabulary.items():
        word = token.lstrip("Ġ▁")
        if 3 <= len(word) <= 14 and word.isascii() and word.isalpha() and word.islower():
            (bare if word == token else marked)[word] = number
    # Where word starts carry a mark, a token without it is the inside of a word.
    plain = marked if len(marked) >= 64 else bare
    ordered = sorted(plain, key=plain.__getitem__)
    if len(ordered) < 64:
        raise UsageError(f"expected a tokeniser with 64 plain words or more, got {len(ordered)}")
    half = len(ordered) // 2
    return Vocabulary(
        words=tuple(ordered[: min(words, half)]),
        rare=tuple(ordered[-min(rare, half) :]),
        labels=tuple(labels),
    )


def sample_texts(
    model: Any,
    tokenizer: Any,
    streams: KeyedStreams,
    *,
    count: int,
    tokens: int = 24,
    temperature: float = 1.5,
) -> list[str]:
    """`count` texts drawn from the base model at high temperature, token by token.

    Draws are Gumbel-max on keyed uniforms, so the same secret gives the same texts on the same
    device.  The model is read, not trained; no private text is involved.
    """
    import torch

    start = tokenizer.bos_token_id
    if start is None:
        start = tokenizer.eos_token_id or 0
    device = next(model.parameters()).device
    ids = torch.full((count, 1), int(start), dtype=torch.long, device=device)
    special = sorted({int(i) for i in tokenizer.all_special_ids} - {-1})
    training = model.training
    model.eval()
    with torch.no_grad():
        for step in range(tokens):
            logits = model(input_ids=ids).logits[:, -1, :].double().cpu()  # (count, vocabulary)
            logits[:, special] = -torch.inf
            uniform = streams.stream("audit.sample", step=step).uniform(logits.numel())
            gumbel = -torch.log(-torch.log(torch.from_numpy(uniform).reshape(logits.shape)))
            chosen = (logits / temperature + gumbel).argmax(dim=1, keepdim=True)
            ids = torch.cat([ids, chosen.to(device)], dim=1)
    model.train(training)
    return [" ".join(str(tokenizer.decode(row[1:])).split()) or "-" for row in ids.tolist()]
