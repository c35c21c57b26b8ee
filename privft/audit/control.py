"""The negative control: a leaky twin on which the same attacks must succeed.

An attack that finds nothing says something only if it would have found something.  So every suite
also attacks a model that leaks on purpose: a tiny Llama with random weights, trained for many
epochs without clipping and without noise on generated text with the suite's own kinds of canary
in it (200 a kind at most, to stay within half a minute), in memory, never written.  The same code
makes the canaries, scores, guesses and bounds.  An audit whose control fails proves nothing, and
its verdict says so.

The twin depends on the code, the suite and the task alone, not on any run, so its result is kept
as a small JSON file in a folder of the caller's, named after all three:

    {"format": "privft-control-v1", "privft": "0.1.0", "torch": "2.13.0", "suite_sha256": "...",
     "task": "causal-lm", "result": {"what": "...", "canaries": 64, "guesses": 64, "correct": 63,
     "ok": true, "epsilon_lower": 2.3, "epsilon_lower_needed": 0.5, "kinds": {...}}}

A file that is not exactly of this form, or of other versions, is made again and replaced.

What it does not show: that the attacks would succeed on a large model trained privately with
fewer steps.  It shows that canaries, scores, guesses and bounds are wired up the right way round.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

import privft
from privft.audit.attacks import Claim, attack_canaries, scores_from_losses
from privft.audit.canaries import Shape, Vocabulary, make_canaries
from privft.audit.suite import METHODS, Suite, Task
from privft.randomness import KeyedStreams
from privft.training.examples import IGNORED, Example, bucket_of
from privft.training.losses import LanguageModel

_FORMAT = "privft-control-v1"
_SECRET = b"privft's leaky twin: not secret."  # 32 bytes; the twin holds nothing to protect
_SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "pi", "ro", "su", "ta", "ve", "wi", "zo")
_LABELS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
_DELTA = 1e-5
_LEARNING_RATE = 3e-3
_MOST_CANARIES = 200


@dataclass(frozen=True, kw_only=True)
class Control:
    """What the attacks achieved on the leaky twin.

    canaries, guesses, correct: of the attack with the highest bound.
    kinds: the lower bound that each kind of canary reached; `ok` asks it of every kind.
    """

    what: str
    canaries: int
    guesses: int
    correct: int
    ok: bool
    epsilon_lower: float
    epsilon_lower_needed: float
    kinds: dict[str, float]

    def facts(self) -> dict[str, Any]:
        """The fields that a report shows."""
        whole = asdict(self)
        return {key: whole[key] for key in ("what", "canaries", "guesses", "correct", "ok")}


def control(suite: Suite, suite_sha256: str, *, task: Task, folder: Path | None) -> Control:
    """The control of a suite: from `folder` when it is there, else made, and kept there.

    folder: exists already; None keeps nothing.
    """
    key = {
        "format": _FORMAT,
        "privft": privft.__version__,
        "torch": torch.__version__,
        "suite_sha256": suite_sha256,
        "task": task,
    }
    path = None if folder is None else folder / f"control-{suite_sha256[:16]}-{task}.json"
    kept = None if path is None else _read(path, key)
    if kept is not None:
        return kept
    result = leaky_twin(suite, task=task)
    if path is not None:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(json.dumps({**key, "result": asdict(result)}, indent=1) + "\n")
        os.replace(beside, path)
    return result


def _read(path: Path, key: Mapping[str, str]) -> Control | None:
    """A kept result, if it is whole and of exactly this version, suite and task."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if {name: body[name] for name in key} != key or set(body) != {*key, "result"}:
            return None
        result = Control(**body["result"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (
        result if result.ok is (min(result.kinds.values()) > result.epsilon_lower_needed) else None
    )


def leaky_twin(suite: Suite, *, task: Task) -> Control:
    """Train the twin and attack it.  Deterministic up to the device's floating point."""
    suite = _at_most(suite, task, _MOST_CANARIES)
    streams = KeyedStreams(_SECRET)
    shape: Shape = "text" if task == "causal-lm" else "text-label"
    words = _made_up_words(streams, 600)
    vocabulary = Vocabulary(words=words[:300], rare=words[300:], labels=_LABELS)
    canaries = make_canaries(
        suite,
        streams,
        task=task,
        shape=shape,
        vocabulary=vocabulary,
        examples=_sentences(streams, words[:300], 1 + max(s.count for s in suite.specs(task))),
    )
    others = _sentences(streams, words[:300], suite.control.others)
    texts = [canary.unit["records"][0] for canary in canaries]
    texts += [{"text": text, "label": label} for text, label in others]
    examples = _encode(texts, labelled=task == "sequence-classification")
    included = np.array([canary.included for canary in canaries], dtype=np.bool_)
    inside = [examples[i] for i in np.flatnonzero(included)] + examples[len(canaries) :]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only loses time to more
    try:
        base, trained = _train_and_score(
            inside, examples[: len(canaries)], epochs=suite.control.epochs
        )
    finally:
        torch.set_num_threads(threads)
    return _judge(suite, task, [canary.kind for canary in canaries], included, base, trained)


def _at_most(suite: Suite, task: Task, count: int) -> Suite:
    """The suite with at most `count` canaries a kind, four fifths of them guessed at most."""
    specs = []
    for spec in suite.specs(task):
        most = count * 4 // 5 // 2 * 2
        guesses = sorted({min(number, most) for number in spec.guesses})
        small = {"count": count, "guesses": guesses}
        specs.append(spec if spec.count <= count else spec.model_copy(update=small))
    field = {"causal-lm": "causal_lm", "sequence-classification": "sequence_classification"}[task]
    return suite.model_copy(update={"canaries": suite.canaries.model_copy(update={field: specs})})


def _judge(
    suite: Suite,
    task: Task,
    kinds: Sequence[str],
    included: NDArray[np.bool_],
    base: NDArray[np.float64],
    trained: NDArray[np.float64],
) -> Control:
    """Attack as in a real audit, against a claim of perfect privacy."""
    tests = []
    for spec in suite.specs(task):
        here = np.array([kind == spec.kind for kind in kinds])
        tests += attack_canaries(
            spec.kind,
            scores_from_losses(base[here], trained[here], spec.score),
            included[here],
            guesses=spec.guesses,
            claim=Claim(epsilon=0.0, delta=_DELTA),
            significance=suite.test_significance(task),
        )
    plain = [test for test in tests if test.method == METHODS[0]]
    best = max(plain, key=lambda test: test.epsilon_lower)
    reached: dict[str, float] = {}
    for test in plain:
        reached[test.kind] = max(reached.get(test.kind, 0.0), test.epsilon_lower)
    needed = suite.control.epsilon_lower_at_least
    return Control(
        what=(
            f"a small model trained without privacy for {suite.control.epochs} epochs on generated "
            f"text; each kind of attack must show an epsilon above {needed:g} on it"
        ),
        canaries=best.canaries,
        guesses=best.guesses,
        correct=best.correct,
        ok=min(reached.values()) > needed,
        epsilon_lower=best.epsilon_lower,
        epsilon_lower_needed=needed,
        kinds=reached,
    )


def _made_up_words(streams: KeyedStreams, count: int) -> tuple[str, ...]:
    stream = streams.stream("control.words")
    made: dict[str, None] = {}
    while len(made) < count:
        parts = stream.integers(len(_SYLLABLES), 3).tolist()
        made["".join(_SYLLABLES[i] for i in parts)] = None
    return tuple(made)


def _sentences(
    streams: KeyedStreams, words: Sequence[str], count: int
) -> list[tuple[str, str | None]]:
    """Generated sentences of nine words with a label each."""
    stream = streams.stream("control.sentences", step=count)
    picked = stream.integers(len(words), 9 * count).reshape(count, 9).tolist()
    labels = stream.integers(len(_LABELS), count).tolist()
    return [
        (" ".join(words[i] for i in row), _LABELS[label])
        for row, label in zip(picked, labels, strict=True)
    ]


def _encode(records: Sequence[Mapping[str, Any]], *, labelled: bool) -> list[Example]:
    """Words as tokens; loss on every word, or on the label at the end alone."""
    numbers: dict[str, int] = {"": 0}

    def number(word: str) -> int:
        return numbers.setdefault(word, len(numbers))

    encoded = []
    for record in records:
        ids = [0, *(number(word) for word in record["text"].split())]
        labels = [IGNORED, *ids[1:]]
        if labelled:
            ids.append(number(f"label {record['label']}"))
            labels = [IGNORED] * (len(ids) - 1) + [ids[-1]]
        encoded.append(Example(input_ids=tuple(ids), labels=tuple(labels)))
    return encoded


def _train_and_score(
    inside: Sequence[Example], attacked: Sequence[Example], *, epochs: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Losses of the attacked examples before and after plain AdamW on those inside."""
    every = [*inside, *attacked]
    length = bucket_of(max(len(example.input_ids) for example in every))
    vocabulary = 1 + max(max(example.input_ids) for example in every)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=length,
                initializer_range=0.1,  # the frozen output layer needs some scale
                tie_word_embeddings=False,
            )
        )
        order = [torch.randperm(len(inside)).tolist() for _ in range(epochs)]
    model.lm_head.requires_grad_(False)
    wrapped = LanguageModel(model, pad_id=0)

    def losses() -> NDArray[np.float64]:
        with torch.no_grad():
            found = [
                wrapped.record_losses(attacked[start : start + 64], length)
                for start in range(0, len(attacked), 64)
            ]
        return torch.cat(found).double().numpy()

    before = losses()
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=_LEARNING_RATE, weight_decay=0.0)
    for epoch in order:
        for start in range(0, len(epoch), 32):
            batch = [inside[i] for i in epoch[start : start + 32]]
            optimizer.zero_grad()
            wrapped.record_losses(batch, length).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return before, losses()
