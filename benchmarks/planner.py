"""Is what `privft plan` says of memory and time what a step then takes?

`privft/sizing.py` reckons both from a model's `config.json` and the run's config.  Here models of
made-up weights are saved as folders, loaded the way a run loads them, and trained by privft's own
loop on made-up units that fill each microbatch, every configuration in two processes of its own.
In one, memory: the resident bytes between two steps, above those before the model was loaded, and
the peak in the second step (the kernel's own high-water mark), once all has been done and dropped
before: what libraries then hold of their own (`libraries`) is no part of what a plan reckons.  In
the other, time: the median of the steps after the first, beside the mean of what the rehearsal
says that the same process holds right before and right after them.

    python benchmarks/planner.py                 the table of all configurations; ten minutes
    python benchmarks/planner.py --memory        without time; any machine is quiet enough for it
    python benchmarks/planner.py --only wide     some of them
    python benchmarks/planner.py --devices       the table for 7B and 70B on devices of 80 GB

Predicted before the first run: memory within 15% in every row, above the loaded model alone
(`step`) as well as in all; time within 15% on a quiet machine.  Where memory is measured, a process
gives freed memory back at once (MALLOC_MMAP_THRESHOLD_ of glibc), so that the mark is of what is in
use and not of what the allocator kept for later; a run without that setting can hold more.  It also
makes each allocation slow, so time is measured without.

Prints a table and writes `results/planner.json`.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "planner.json"
WITHIN = 0.15
TIMED_STEPS = 6


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One row.  hidden, inner, layers, heads, keys, vocabulary: the model; units of `records`
    records of `length` tokens, `count` of them in the step, all places labelled."""

    name: str
    model_type: str = "llama"
    hidden: int = 512
    inner: int = 1536
    layers: int = 4
    heads: int = 8
    keys: int = 4
    vocabulary: int = 16000
    dtype: str = "float32"
    rank: int | None = 8
    adapted_layers: tuple[int, ...] | None = None
    freeze_a: bool = False
    dropout: float = 0.0
    again: bool = False
    quantised: str | None = None
    adam: bool = True
    secure: bool = False
    classes: int = 0
    token_budget: int = 1024
    length: int = 128
    records: int = 1
    count: int = 10

    def config(self) -> dict[str, Any]:
        """The model's `config.json`."""
        common = {
            "model_type": self.model_type,
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": 2048,
            "pad_token_id": 0,
        }
        if self.model_type == "bert":
            return {**common, "architectures": ["BertModel"], "type_vocab_size": 2}
        return {
            **common,
            "architectures": ["LlamaForCausalLM"],
            "num_key_value_heads": self.keys,
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


CONFIGURATIONS = (
    Configuration(name="plain"),
    Configuration(name="wide", hidden=1024, inner=2816, layers=2, heads=16, keys=16),
    Configuration(name="deep", hidden=320, inner=960, layers=12, heads=5, keys=5),
    Configuration(name="small budget", token_budget=256, count=3),
    Configuration(name="long records", length=1024, token_budget=2048, count=2),
    Configuration(name="rank 64, short units", rank=64, length=32, count=32),
    Configuration(name="large vocabulary", vocabulary=64000, layers=2, token_budget=512, count=4),
    Configuration(name="bfloat16", dtype="bfloat16"),
    Configuration(name="bfloat16, wide", dtype="bfloat16", hidden=1024, inner=2816, layers=2,
                  heads=16, keys=16, vocabulary=32000),
    Configuration(name="upper layers, A frozen", adapted_layers=(2, 3), freeze_a=True),
    Configuration(name="dropout", dropout=0.1),
    Configuration(name="computed again", again=True, layers=8),
    Configuration(name="subjects", records=4, count=3, adam=False),
    Configuration(name="secure noise", secure=True, rank=16),
    Configuration(name="encoder with a head", model_type="bert", hidden=384, inner=1536,
                  layers=6, heads=12, vocabulary=30522, classes=77, length=64, count=20),
)  # fmt: skip


# ---------------------------------------------------------------------------- measuring


def make_model(configuration: Configuration, folder: Path) -> None:
    """Made-up weights in a folder, as a run would find them."""
    import torch
    import transformers

    torch.manual_seed(0)
    fields = configuration.config()
    name = fields["architectures"][0]
    settings = transformers.AutoConfig.for_model(
        **{key: value for key, value in fields.items() if key != "architectures"}
    )
    model = getattr(transformers, name)(settings)
    if configuration.model_type == "bert":
        model.pooler = None
    model.to(getattr(torch, configuration.dtype)).save_pretrained(folder)


def units_of(configuration: Configuration) -> list[Any]:
    """The units of the step."""
    import numpy as np

    from privft.training.examples import IGNORED, Example, UnitExamples

    rng = np.random.default_rng(0)

    def example() -> Example:
        ids = tuple(int(x) for x in rng.integers(3, configuration.vocabulary, configuration.length))
        if configuration.classes:
            return Example(input_ids=ids, labels=(int(rng.integers(configuration.classes)),))
        return Example(input_ids=ids, labels=(IGNORED, *ids[1:]))

    return [
        UnitExamples(key=f"u{n}", examples=tuple(example() for _ in range(configuration.records)))
        for n in range(configuration.count)
    ]


def base_of(folder: Path) -> Any:
    """The made-up model, as a run knows it."""
    from privft.training import basemodel, modelfolder

    return basemodel.BaseModel(
        name="made-up",
        folder=folder,
        weights_sha256=modelfolder.weights_digest(folder),
        tokenizer_sha256="",
    )


def spec_of(configuration: Configuration) -> Any:
    """Its adapter."""
    from privft.training import adapter

    if configuration.rank is None:
        return None
    return adapter.LoraSpec(
        r=configuration.rank,
        layers_to_transform=configuration.adapted_layers,
        freeze_a=configuration.freeze_a,
        lora_dropout=configuration.dropout,
    )


def train_steps(configuration: Configuration, folder: Path, *, steps: int, begun: Any) -> None:
    """Load, attach, and `steps` steps of privft's own loop.

    begun: called with the number of steps that are done, before each step and after the last.
    """
    from contenders import Given

    from privft.budget.mechanism import Mechanism
    from privft.randomness import KeyedStreams
    from privft.training import adapter, basemodel
    from privft.training.loop import Optimisation, Performance, train
    from privft.training.quantised import quantise

    base = basemodel.load_model(
        base_of(folder),
        task="sequence-classification" if configuration.classes else "causal-lm",
        dtype=configuration.dtype,  # type: ignore[arg-type]
    )
    if configuration.quantised is not None:
        quantise(base, configuration.quantised)  # type: ignore[arg-type]
    spec = spec_of(configuration)
    model: Any
    if configuration.classes:
        model = adapter.attach_classifier(
            base, spec, seed=0, pad_id=0, labels=configuration.classes
        )
    else:
        assert spec is not None
        model = adapter.attach_language_model(base, spec, seed=0, pad_id=0)
    units = units_of(configuration)
    train(
        model,
        units=Given(units),
        canaries=[],
        mechanism=Mechanism(
            unit="subject" if configuration.records > 1 else "record",
            sampling_probability=1.0,
            noise_multiplier=1.0,
            clip_norm=0.3,
            steps=steps,
            noise="discrete-gaussian" if configuration.secure else "gaussian",
            expected_batch_size=float(len(units)),
        ),
        max_records_per_unit=configuration.records,
        optimisation=Optimisation(
            learning_rate=1e-3, optim="adamw_torch" if configuration.adam else "sgd"
        ),
        performance=Performance(
            token_budget=configuration.token_budget,
            gradient_checkpointing=configuration.again,
            checkpoint_every=100,
        ),
        streams=KeyedStreams(bytes(32)),
        context={},
        journal=lambda step, digest: begun(step),
        save=lambda state: None,
        tell=lambda report: begun(steps) if report.step == steps else None,
    )


def memory_of(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Bytes between the first two steps, and at the peak of the second, above what was there when
    the same had been done once before: buffers that libraries keep, of no tensor (`libraries`)."""
    from training_speed import forget_peak, resident

    started = resident()[0]
    train_steps(configuration, folder, steps=1, begun=lambda step: None)
    gc.collect()  # models are cycles
    before = resident()[0]
    seen: dict[str, float] = {"libraries": before - started}

    def begun(step: int) -> None:
        if step == 1:
            forget_peak()
            seen["rest"] = resident()[0] - before
        elif step == 2:
            seen["peak"] = resident()[1] - before

    train_steps(configuration, folder, steps=2, begun=begun)
    return seen


def time_of(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """Seconds of a step, and what rehearsals before and after say."""
    import torch

    before = rehearsed(configuration, folder)
    moments: list[float] = []

    def begun(step: int) -> None:
        if step:
            moments.append(time.perf_counter())

    train_steps(configuration, folder, steps=TIMED_STEPS, begun=begun)
    after = rehearsed(configuration, folder)
    return {
        "seconds": statistics.median(b - a for a, b in itertools.pairwise(moments)),
        "rehearsed": [before, after],
        "threads": torch.get_num_threads(),
    }


def rehearsed(configuration: Configuration, folder: Path) -> dict[str, Any]:
    """The seconds of the step, as a plan would say them, from what, and what it took to say so."""
    import torch

    from privft.training.rehearsal import Rehearsal

    setting, batches = setting_of(configuration), batches_of(configuration)
    started = time.perf_counter()
    pace = Rehearsal(
        base=base_of(folder),
        setting=setting,
        spec=spec_of(configuration),
        batch=max(batches, key=lambda batch: batch.tokens),
        token_budget=configuration.token_budget,
        device=torch.device("cpu"),
    ).pace()
    took = time.perf_counter() - started
    tokens = sum(batch.tokens for batch in batches)
    return {"seconds": pace.seconds(setting, tokens=tokens), "took": took, "pace": vars(pace)}


def child(configuration: Configuration, folder: Path, what: str) -> dict[str, Any]:
    """What one process measures."""
    from privft.training.kernels import use_reproducible_kernels

    use_reproducible_kernels()
    return (memory_of if what == "memory" else time_of)(configuration, folder)


def measure(configuration: Configuration, *, memory_only: bool) -> dict[str, Any]:
    """Resident bytes and seconds of one configuration, each in a process of its own."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_model(configuration, Path(folder))
        for what in ("memory",) if memory_only else ("memory", "time"):
            setting = {"MALLOC_MMAP_THRESHOLD_": "65536"} if what == "memory" else {}
            command = [sys.executable, __file__, "--child", configuration.name, what, folder]
            environment = {**os.environ, **setting, "TRANSFORMERS_VERBOSITY": "error"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            found.update(json.loads(done.stdout))
    return found


# ---------------------------------------------------------------------------- reckoning


def setting_of(configuration: Configuration) -> Any:
    """The configuration, as the formula takes it."""
    from privft.modelshape import shape_of
    from privft.sizing import AdapterShape, Setting

    shape = shape_of(configuration.config(), head=not configuration.classes)
    assert shape is not None
    adapter = configuration.rank and AdapterShape(
        rank=configuration.rank,
        layers=configuration.adapted_layers,
        freeze_a=configuration.freeze_a,
        dropout=configuration.dropout > 0,
    )
    return Setting(
        shape=shape,
        adapter=adapter or None,
        dtype=configuration.dtype,  # type: ignore[arg-type]
        classes=configuration.classes,
        adam=configuration.adam,
        quantised=configuration.quantised,  # type: ignore[arg-type]
        checkpointing=configuration.again,
        discrete=configuration.secure,
    )


def batches_of(configuration: Configuration) -> list[Any]:
    """The microbatches of the step, as privft deals them."""
    from privft.sizing import Microbatch
    from privft.training.examples import microbatches

    labels = 1 if configuration.classes else configuration.length - 1
    return [
        Microbatch(
            units=len(units),
            rows=sum(len(unit.examples) for unit in units),
            length=units[0].bucket,
            labels=labels,
        )
        for units in microbatches(units_of(configuration), token_budget=configuration.token_budget)
    ]


def reckon(configuration: Configuration) -> dict[str, Any]:
    """Predicted bytes between steps and at the peak."""
    from privft.sizing import memory

    setting, batches = setting_of(configuration), batches_of(configuration)
    fullest = max((memory(setting, batch) for batch in batches), key=lambda found: found.peak)
    found: dict[str, Any] = {
        "rest": fullest.at_rest,
        "peak": fullest.peak,
        "moment": max(fullest.moments, key=lambda name: fullest.moments[name]),
        "terms": {**vars(fullest), **fullest.moments},
    }
    found["terms"].pop("moments")
    return found


def row(configuration: Configuration, *, memory_only: bool) -> dict[str, Any]:
    """Predicted beside measured."""
    measured = measure(configuration, memory_only=memory_only)
    predicted = reckon(configuration)
    if "rehearsed" in measured:
        predicted["seconds"] = statistics.mean(each["seconds"] for each in measured["rehearsed"])
    step = (predicted["peak"] - predicted["rest"]) / (measured["peak"] - measured["rest"])
    ratio = {"step": round(step, 3)}
    for name in ("rest", "peak", "seconds"):
        if name in measured:
            ratio[name] = round(predicted[name] / measured[name], 3)
    return {"measured": measured, "predicted": predicted, "ratio": ratio}


# ---------------------------------------------------------------------------- large models

LARGE = {
    "7B (Llama 2)": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "70B (Llama 3)": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}  # fmt: skip
DEVICE_BYTES = 80e9
RANKS = (1, 2, 4, 8, 16)


KINDS: tuple[tuple[str, str | None, bool], ...] = (
    ("bf16", None, False),
    ("bf16, computed again", None, True),
    ("8-bit, computed again", "8-bit", True),
    ("4-bit, computed again", "4-bit", True),
)
"""What stands in the table, how the base is quantised, whether activations are computed again."""


def devices_table() -> str:
    """Gigabytes a device for large models, as a table in Markdown; reckoned, never measured."""
    from privft.modelshape import shape_of
    from privft.sizing import AdapterShape, Microbatch, Setting, memory

    lines = [
        "| GB a device, reckoned | base, activations | "
        + " | ".join(f"{n} rank{'s' * (n > 1)}" for n in RANKS)
        + " |",
        "|---|---|" + "---|" * len(RANKS),
    ]
    batch = Microbatch(units=1, rows=1, length=1024, labels=1023)
    for name, facts in LARGE.items():
        shape = shape_of(facts)
        assert shape is not None
        for words, quantised, again in KINDS:
            cells = []
            for ranks in RANKS:
                setting = Setting(
                    shape=shape,
                    adapter=AdapterShape(rank=16),
                    dtype="bfloat16",
                    ranks=ranks,
                    sharded=ranks > 1,
                    quantised=quantised,  # type: ignore[arg-type]
                    checkpointing=again,
                )
                peak = memory(setting, batch).peak
                fits = peak <= DEVICE_BYTES
                cells.append(f"{peak / 1e9:.0f}" if fits else f"~~{peak / 1e9:.0f}~~")
            lines.append(f"| {name} | {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------- telling


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table; ratios are of predicted to measured."""
    print(f"{'':<26}{'MiB measured':>14}{'predicted':>11}{'ratio':>7}"
          f"{'of which step':>15}{'ratio':>7}{'seconds':>9}{'ratio':>7}")  # fmt: skip
    for name, found in rows.items():
        measured, predicted, ratio = found["measured"], found["predicted"], found["ratio"]
        step = measured["peak"] - measured["rest"]
        line = (
            f"{name:<26}{measured['peak'] / 2**20:>14.0f}{predicted['peak'] / 2**20:>11.0f}"
            f"{ratio['peak']:>7.2f}{step / 2**20:>15.0f}{ratio['step']:>7.2f}"
        )
        if "seconds" in ratio:
            line += f"{measured['seconds']:>9.2f}{ratio['seconds']:>7.2f}"
        print(line)
    for what in ("peak", "step", "seconds"):
        told = {name: found["ratio"] for name, found in rows.items() if what in found["ratio"]}
        far = [name for name, ratio in told.items() if abs(ratio[what] - 1) > WITHIN]
        print(f"{what}: {len(told) - len(far)} of {len(told)} within {WITHIN:.0%}; beyond: {far}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=[each.name for each in CONFIGURATIONS])
    parser.add_argument("--devices", action="store_true", help="the table for large models")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--memory", action="store_true", help="do not measure time")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    by_name = {each.name: each for each in CONFIGURATIONS}
    if options.devices:
        print(devices_table())
        return
    if options.child:
        name, what, folder = options.child
        print(json.dumps(child(by_name[name], Path(folder), what)))
        return
    from training_speed import machine

    rows: dict[str, dict[str, Any]] = {}
    for configuration in CONFIGURATIONS:
        if options.only is None or configuration.name in options.only:
            print(f"{configuration.name} ...", file=sys.stderr, flush=True)
            rows[configuration.name] = row(configuration, memory_only=options.memory)
    known = json.loads(options.out.read_text()) if options.out.exists() else {"rows": {}}
    report = {"rows": {**known["rows"], **rows}, "machine": machine("cpu")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()
