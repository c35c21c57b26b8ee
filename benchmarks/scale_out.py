"""What do several ranks cost, on one machine and on the wire?

Two ranks of one thread each against one process with two threads: the same two cores, the same
steps of privft's own loop, in interleaved rounds (A B A B).  Both are processes that stay, so that
a round is steps and nothing else.  Predicted before the first measurement: the ranks reach 0.95 to
1.2 times the real tokens per second of the threads (matrix products of this size do not use a
second thread fully; against it stand the work that every rank does anew, digest, sample and noise,
and the wait for the slower share).  Wanted: at least 0.85.

On the wire a step: the sum of the adapter's gradients in float64, once round a ring, and a digest
of 32 bytes from each rank to each other.  Counted by the system on the loopback device, where the
ranks of one host meet; beside it what the ring needs by reckoning, 2 (N - 1) / N times 8 bytes a
number from each of N ranks.

    python benchmarks/scale_out.py [--units 16] [--rounds 5]
    python benchmarks/scale_out.py --curves     over ranks, units and adapter size
    python benchmarks/scale_out.py --tiny       a made-up model: shows that it runs, and no more

The default takes about ten minutes on two cores.  Prints tables and writes
`results/scale_out.json` (each mode replaces its own part; `--tiny` writes nothing).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contenders import CLIP_NORM, NOISE_MULTIPLIER, PAD_ID, Bench, Given
from real_text import machine
from training_speed import lengths, records
from transformers import LlamaConfig, LlamaForCausalLM

from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.sizing import reduction_bytes
from privft.training import basemodel
from privft.training.adapter import LoraSpec, attach_language_model
from privft.training.examples import IGNORED, Example, UnitExamples
from privft.training.kernels import use_reproducible_kernels
from privft.training.loop import Optimisation, Performance, train
from privft.training.losses import LanguageModel, trained_parameters
from privft.training.ranks import ALONE, joined

RESULTS = Path(__file__).resolve().parent / "results" / "scale_out.json"
TOKEN_BUDGET = 2048
WANTED = 0.85
SEED = 20261124


def model_and_units(tiny: bool, units: int, lora_rank: int) -> tuple[LanguageModel, Any]:
    """The model with a fresh adapter, and `units` dialogues of the lengths of MTS-Dialog."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    if not tiny:
        bench = Bench(rank=lora_rank)
        return bench.model(), records(
            basemodel.load_tokenizer(bench.found), lengths("dialogues", units, rng)
        )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    module = LlamaForCausalLM(config)
    made = []
    for number in range(units):
        ids = tuple(int(x) for x in rng.integers(3, 99, int(rng.integers(8, 100))))
        example = Example(input_ids=ids, labels=(IGNORED, *ids[1:]))
        made.append(UnitExamples(key=f"r{number}", examples=(example,)))
    return attach_language_model(module, LoraSpec(r=lora_rank), seed=0, pad_id=PAD_ID), made


def serve(
    asked: Connection, *, rank: int, size: int, threads: int, place: str, task: dict[str, Any]
) -> None:
    """A process of an arm: trains `steps` steps whenever it is asked to, and says how long they
    took; the first answer is the number of trained numbers."""
    torch.set_num_threads(threads)
    use_reproducible_kernels()
    model, units = model_and_units(**task)
    numbers = sum(p.numel() for p in trained_parameters(model).values())
    if size > 1:
        store = dist.FileStore(place, size)
        group: Any = joined(store, rank=rank, size=size, hosts=1, local_rank=0, timeout_s=600)
    else:
        group = nullcontext(ALONE)
    with group as ranks:
        asked.send(numbers)
        while steps := asked.recv():
            started = time.perf_counter()
            train(
                model,
                units=Given(units),
                canaries=[],
                mechanism=Mechanism(
                    unit="record",
                    sampling_probability=1.0,
                    noise_multiplier=NOISE_MULTIPLIER,
                    clip_norm=CLIP_NORM,
                    steps=steps,
                    expected_batch_size=float(len(units)),
                ),
                max_records_per_unit=1,
                optimisation=Optimisation(learning_rate=1e-3),
                performance=Performance(token_budget=TOKEN_BUDGET),
                streams=KeyedStreams(bytes(32)),
                context={},
                journal=lambda step, digest: None,
                save=lambda state: None,
                ranks=ranks,
            )
            tokens = steps * sum(len(e.input_ids) for unit in units for e in unit.examples)
            asked.send((time.perf_counter() - started, tokens))


class Arm:
    """Processes that take steps together when they are asked."""

    def __init__(self, *, size: int, threads: int, folder: Path, task: dict[str, Any]) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        os.environ["OMP_NUM_THREADS"] = str(threads)
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            settings = {
                "rank": rank,
                "size": size,
                "threads": threads,
                "place": str(folder / f"store-{size}-{threads}-{id(self)}"),
                "task": task,
            }
            context.Process(target=serve, args=(theirs,), kwargs=settings, daemon=True).start()
            theirs.close()
            self.pipes.append(ours)
        self.numbers = max(pipe.recv() for pipe in self.pipes)

    def round(self, steps: int) -> dict[str, float]:
        """Seconds a step of the slowest process, real tokens a second, bytes on the wire a step."""
        before = loopback_bytes()
        for pipe in self.pipes:
            pipe.send(steps)
        answers = [pipe.recv() for pipe in self.pipes]
        seconds = max(answer[0] for answer in answers)
        return {
            "step_s": seconds / steps,
            "tokens_per_s": answers[0][1] / seconds,
            "wire_bytes": (loopback_bytes() - before) / steps,
        }

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(0)


def loopback_bytes() -> int:
    """What the loopback device has carried so far."""
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    return 0


@contextmanager
def arms(*wanted: dict[str, Any], folder: Path) -> Iterator[list[Arm]]:
    started = [Arm(folder=folder, **each) for each in wanted]
    try:
        yield started
    finally:
        for arm in started:
            arm.end()


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Two ranks of one thread beside one process of two threads."""
    task = {"tiny": options.tiny, "units": options.units, "lora_rank": 8}
    rows: dict[str, list[dict[str, float]]] = {"two ranks": [], "two threads": []}
    with arms(
        {"size": 2, "threads": 1, "task": task},
        {"size": 1, "threads": 2, "task": task},
        folder=folder,
    ) as both:
        for arm in both:
            arm.round(1)  # warm
        for _ in range(options.rounds):
            for name, arm in zip(rows, both, strict=True):
                rows[name].append(arm.round(options.steps))
        numbers = both[0].numbers
    ratios = [
        ranks["tokens_per_s"] / threads["tokens_per_s"]
        for ranks, threads in zip(rows["two ranks"], rows["two threads"], strict=True)
    ]
    found = {
        "units": options.units,
        "trained_numbers": numbers,
        "rounds": rows,
        "ratio_median": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        "wanted": WANTED,
        "wire_bytes_a_step": statistics.median(row["wire_bytes"] for row in rows["two ranks"]),
        "wire_bytes_reckoned": 2 * reduction_bytes(numbers, 2),
    }
    print(f"{'':12} {'s a step':>9} {'tokens/s':>9} {'bytes on the wire a step':>25}")
    for name, measured in rows.items():
        middle = {key: statistics.median(row[key] for row in measured) for key in measured[0]}
        print(
            f"{name:12} {middle['step_s']:9.3f} {middle['tokens_per_s']:9.1f} "
            f"{middle['wire_bytes']:25,.0f}"
        )
    print(
        f"two ranks to two threads: {found['ratio_median']:.2f} (wanted {WANTED}; "
        f"{min(ratios):.2f} to {max(ratios):.2f}); reckoned on the wire "
        f"{found['wire_bytes_reckoned']:,.0f} for {numbers:,} trained numbers"
    )
    return found


def curves(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A step over ranks, units and adapter size, one thread a rank."""
    cells = [(ranks, options.units, 8) for ranks in (1, 2, 4)]
    cells += [(2, units, 8) for units in (options.units // 4, options.units * 4)]
    cells += [(2, options.units, lora_rank) for lora_rank in (2, 32)]
    print(
        f"{'ranks':>5} {'units':>6} {'r':>3} {'numbers':>10} {'s a step':>9} {'wire bytes':>12} "
        f"{'reckoned':>12}"
    )
    found = []
    for ranks, units, lora_rank in cells:
        task = {"tiny": options.tiny, "units": units, "lora_rank": lora_rank}
        with arms({"size": ranks, "threads": 1, "task": task}, folder=folder) as (arm,):
            arm.round(1)
            rounds = [arm.round(options.steps) for _ in range(options.rounds)]
        row = {
            "ranks": ranks,
            "units": units,
            "lora_rank": lora_rank,
            "trained_numbers": arm.numbers,
            "step_s": statistics.median(each["step_s"] for each in rounds),
            "wire_bytes": statistics.median(each["wire_bytes"] for each in rounds),
            "wire_bytes_reckoned": ranks * reduction_bytes(arm.numbers, ranks),
        }
        found.append(row)
        print(
            f"{ranks:5} {units:6} {lora_rank:3} {arm.numbers:10,} {row['step_s']:9.3f} "
            f"{row['wire_bytes']:12,.0f} {row['wire_bytes_reckoned']:12,}"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--units", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--curves", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    part = "curves" if options.curves else "two_cores"
    with tempfile.TemporaryDirectory(prefix="privft-ranks-") as folder:
        measured = (curves if options.curves else compare)(options, Path(folder))
    if options.tiny:
        return
    report = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    report[part] = {"measured": measured, "machine": machine()}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
