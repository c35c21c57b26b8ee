"""How fast is private training with privft, and how much memory does it take?

Two ratios, side by side, because either alone misleads.  Against a loop *as people run it* (random
batches padded to their longest record, all logits) privft gains by not working on padding; against
a loop that is *given the same microbatches and label-only logits* it pays the price of privacy.
Beside them Opacus (hooks, ghost clipping) and, where it is installed, opake.

Same SmolLM2-135M weights, same LoRA, same records for all, in interleaved rounds (A B C A B C):
machines of this class vary by 13% from run to run, so only ratios within a round are compared.
`contenders/` has the loops.  Records are made-up notes cut to the lengths of

    dialogues    MTS-Dialog under this tokenizer (`_DIALOGUES`), cut at 768; loss on the completion
    reviews      log-normal, cut at 256, mean 122; loss on all tokens

    python benchmarks/training_speed.py [--records 12] [--rounds 5] [--device cpu]
    python benchmarks/training_speed.py --growth     cost by units, record length, rank, batch size

    python benchmarks/training_speed.py --memory     peak memory of each, in processes of their own
    python benchmarks/training_speed.py --details    shares of privft's own step
    python benchmarks/training_speed.py --types      what bfloat16 gains over float32
    python benchmarks/training_speed.py --width      the same in wider models

The default takes half an hour on two cores; more `--records` in a round give steadier figures.
Prints tables and writes `results/training_speed.json` after each part (each mode and workload
replaces its own, under the processor's instructions: AVX2 and AVX-512 have other kernels, and so
other ratios).  On CUDA the same file runs unchanged; where there is none, the result says so.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import CLIP_NORM, NOISE_MULTIPLIER, Bench, Round, make
from transformers import LlamaConfig, LlamaForCausalLM

from privft import synthetic
from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.training import basemodel
from privft.training.adapter import LoraSpec, attach_language_model
from privft.training.examples import (
    IGNORED,
    Example,
    UnitExamples,
    encode_unit,
    microbatches,
)
from privft.training.kernels import widens
from privft.training.losses import LanguageModel
from privft.training.noise import add_noise
from privft.training.sampling import poisson_sample
from privft.training.scoring import unit_losses

RESULTS = Path(__file__).resolve().parent / "results" / "training_speed.json"
TOKEN_BUDGET = 2048
SEED = 20261123

# Tokens of a record (dialogue and note) of MTS-Dialog's training set, quantiles 0, 5, ..., 100%,
# and the median number of tokens of the note in each of the twenty parts between them.
_DIALOGUES = (16, 30, 40, 50, 58, 65, 75, 85, 96, 107, 120, 138, 160, 183, 212, 269, 333, 402,
              509, 684, 1129)  # fmt: skip
_NOTES = (4, 6, 6, 8, 9, 12, 16, 18, 18, 22, 27, 33, 34, 41, 53, 72, 106, 140, 171, 291)
LONGEST = {"dialogues": 768, "reviews": 256}
_REVIEW_MEDIAN, _REVIEW_SPREAD = 108.0, 0.75

CONTENDERS = {
    "dialogues": ("privft", "unbound", "alike", "padded", "hooks", "ghost", "opake"),
    "reviews": ("privft", "alike", "padded"),
}
TYPES = ("privft", "privft-bf16")
WANTED = {
    ("dialogues", "padded"): 1.8,
    ("reviews", "padded"): 1.3,
    ("dialogues", "alike"): 0.95,
    ("reviews", "alike"): 0.95,
    ("dialogues", "hooks"): 2.0,
    ("dialogues", "ghost"): 3.0,
    ("dialogues", "opake"): 1.8,
}
"""privft's real tokens a second over the other's, at least: what was predicted before the first
measurement."""
WORDS = {
    "privft": "privft",
    "unbound": "privft with torch's products: bits depend on companions",
    "alike": "no privacy, privft's microbatches and labels-only logits",
    "padded": "no privacy, as people run it (padded batches of 4 to 8)",
    "hooks": "Opacus hooks, same padded batches",
    "ghost": "Opacus ghost clipping, same padded batches",
    "opake": "opake, same padded batches",
    "privft-bf16": "privft, base in bfloat16",
}


# ---------------------------------------------------------------------------- records


def lengths(workload: str, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(tokens, of them completion) of `count` records: evenly spaced quantiles of the workload,
    each jittered within its own share, in random order, so that a small sample has no luck."""
    at = (np.arange(count) + rng.random(count)) / count
    rng.shuffle(at)
    longest = LONGEST[workload]
    if workload == "dialogues":
        totals = np.interp(at, np.linspace(0, 1, len(_DIALOGUES)), _DIALOGUES)
        parts = [_NOTES[min(int(x * len(_NOTES)), len(_NOTES) - 1)] for x in at]
        cut = [min(int(total), longest) for total in totals]
        return [(total, min(part, total - 4)) for total, part in zip(cut, parts, strict=True)]
    normal = np.array([statistics.NormalDist().inv_cdf(min(max(x, 1e-4), 1 - 1e-4)) for x in at])
    totals = np.clip(_REVIEW_MEDIAN * np.exp(_REVIEW_SPREAD * normal), 8, longest)
    return [(int(total), int(total) - 1) for total in totals]


def token_stream(tokenizer: Any, tokens: int) -> list[int]:
    """Made-up notes, one after the other, as token ids."""
    ids: list[int] = []
    for row in synthetic.generate(SEED, 100_000):
        ids += tokenizer(str(row["text"]), add_special_tokens=False)["input_ids"]
        if len(ids) >= tokens:
            return ids[:tokens]
    return ids


def records(tokenizer: Any, sizes: Sequence[tuple[int, int]]) -> list[UnitExamples]:
    """One unit a size, its tokens the next ones of the stream."""
    ids = token_stream(tokenizer, sum(total for total, _ in sizes))
    units, start = [], 0
    for number, (total, part) in enumerate(sizes):
        own = tuple(ids[start : start + total])
        start += total
        labels = (IGNORED,) * (total - part) + own[total - part :]
        example = Example(input_ids=own, labels=labels)
        units.append(UnitExamples(key=f"r{number}", examples=(example,)))
    return units


def physical(units: Sequence[UnitExamples], number: int) -> list[list[UnitExamples]]:
    """Batches of 4 to 8 in the given (random) order; the sizes differ from round to round."""
    cycle, batches, start = (8, 4, 6, 6, 5, 7), [], 0
    place = 2 * number
    while start < len(units):
        size = cycle[place % len(cycle)]
        batches.append(list(units[start : start + size]))
        start, place = start + size, place + 1
    return batches


def rounds_of(workload: str, tokenizer: Any, *, rounds: int, size: int) -> list[Round]:
    """A warm-up round of four records and `rounds` of `size`."""
    rng = np.random.default_rng(SEED)
    units = records(tokenizer, lengths(workload, rounds * size, rng))
    warm = sorted(units, key=lambda unit: unit.bucket)[: min(4, size)]
    made = [Round(number=0, records=warm, batches=[warm])]
    for number in range(1, rounds + 1):
        own = units[(number - 1) * size : number * size]
        made.append(Round(number=number, records=own, batches=physical(own, number)))
    return made


def padding(workload: str) -> dict[str, float]:
    """Padded over real tokens: random batches of 4 and 8, and privft's microbatches at 16 and 64
    records a step; over 4000 records of these lengths, so free of a small sample's luck."""
    sizes = [total for total, _ in lengths(workload, 4000, np.random.default_rng(SEED))]
    real = sum(sizes)
    found = {}
    for batch in (4, 8):
        parts = [sizes[i : i + batch] for i in range(0, len(sizes), batch)]
        found[f"random batches of {batch}"] = sum(len(p) * max(p) for p in parts) / real
    units = [
        UnitExamples(key="", examples=(Example(input_ids=(0,) * n, labels=(0,) * n),))
        for n in sizes
    ]
    for batch in (16, 64):
        steps = [units[i : i + batch] for i in range(0, len(units), batch)]
        buckets = sum(
            unit.bucket
            for step in steps
            for rows in microbatches(step, token_budget=TOKEN_BUDGET)
            for unit in rows
        )
        found[f"privft, {batch} records a step"] = buckets / real
    return {name: round(value, 3) for name, value in found.items()}


# ---------------------------------------------------------------------------- measuring


def timed(call: Callable[[], Any]) -> float:
    """Seconds, with the device's queue empty before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def give_back() -> None:
    """What a contender left behind, to the system: all share one process, and opake's is beside."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def here(step: Callable[[Round], None]) -> Callable[[Round], float]:
    """The seconds that a step takes; its memory is given back before the next contender's turn."""

    def seconds(given: Round) -> float:
        taken = timed(lambda: step(given))
        give_back()
        return taken

    return seconds


def spread(values: Sequence[float], digits: int = 3) -> dict[str, Any]:
    """Median, least and greatest."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def opake_missing(python: str) -> str | None:
    """Why opake takes no part, or None where `python` can import it."""
    done = subprocess.run(
        [python, "-c", "import opake.dpsgd, opake.patches"], capture_output=True, text=True
    )
    if done.returncode == 0:
        return None
    return "not here: " + (done.stderr.strip().splitlines() or ["?"])[-1]


def elsewhere(name: str, workload: str, options: argparse.Namespace) -> Callable[[Round], float]:
    """What `here` gives, of a contender in a process of its own, which waits between its turns:
    opake rewrites classes of transformers, which would change the others too."""
    command = [options.opake_python, __file__, "--worker", name, "--workload", workload]
    settings = ["--rounds", str(options.rounds), "--records", str(options.records)]
    process = subprocess.Popen(
        [*command, *settings, "--device", options.device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    commands, answers = process.stdin, process.stdout
    if answers.readline() != "ready\n":
        raise SystemExit(f"the process of {name} did not start")

    def seconds(given: Round) -> float:
        commands.write(f"{given.number}\n")
        commands.flush()
        answer = answers.readline()
        if not answer:
            raise SystemExit(f"the process of {name} ended")
        return float(answer)

    return seconds


def work(name: str, options: argparse.Namespace) -> None:
    """The other side of `elsewhere`: the same rounds, one for each number on stdin; seconds are
    answered when memory is given back, so that the next contender has the machine to itself."""
    bench = Bench(device=options.device)
    tokenizer = basemodel.load_tokenizer(bench.found)
    given = rounds_of(options.workload, tokenizer, rounds=options.rounds, size=options.records)
    seconds = here(make(name, bench, expected=options.records, token_budget=TOKEN_BUDGET))
    print("ready", flush=True)
    for line in sys.stdin:
        print(seconds(given[int(line)]), flush=True)


def race(
    workload: str,
    names: list[str],
    bench: Bench | Wide,
    tokenizer: Any,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Interleaved rounds of the contenders; tokens a second, and privft's ratio to each."""
    missing = opake_missing(options.opake_python) if "opake" in names else None
    if missing is not None:
        names.remove("opake")
    given = rounds_of(workload, tokenizer, rounds=options.rounds, size=options.records)
    models = {
        name: bench.model("bfloat16" if name.endswith("bf16") else "float32")
        for name in names
        if name != "opake"
    }
    seconds_of = {
        name: here(
            make(name, bench, expected=options.records, token_budget=TOKEN_BUDGET, model=model)
        )
        for name, model in models.items()
    }
    if "opake" in names:
        seconds_of["opake"] = elsewhere("opake", workload, options)
    probe = records(tokenizer, [(96, 40)] * 12)
    losses: dict[str, list[float]] = {}

    def note_losses() -> None:
        for name in TYPES:
            if name in models:
                loss = unit_losses(models[name], probe).mean()
                losses.setdefault(name, []).append(round(float(loss), 4))

    note_losses()
    rates: dict[str, list[float]] = {name: [] for name in names}
    for each in given:
        for name in names:
            seconds = seconds_of[name](each)
            if each.number > 0:
                rates[name].append(each.tokens / seconds)
                say(f"{workload} round {each.number} {name}: {rates[name][-1]:.0f} tokens/s")
    note_losses()
    rows = {}
    for name in names:
        rows[name] = {"tokens_per_s": spread(rates[name], 1), "rounds": rates[name]}
        if "privft" in names and name != "privft":
            ratios = [a / b for a, b in zip(rates["privft"], rates[name], strict=True)]
            rows[name]["privft_over_it"] = spread(ratios)
            rows[name]["wanted"] = WANTED.get((workload, name))
    if missing is not None:
        rows["opake"] = {"missing": missing}
    tokens = [each.tokens for each in given[1:]]
    return {"contenders": rows, "tokens": tokens, "padding": padding(workload), "losses": losses}


def resident() -> tuple[int, int]:
    """(now, peak since `forget_peak`) in bytes."""
    status = Path("/proc/self/status").read_text()
    found = {line.split(":")[0]: line.split() for line in status.splitlines() if "kB" in line}
    return int(found["VmRSS"][1]) * 1024, int(found["VmHWM"][1]) * 1024


def forget_peak() -> None:
    """Loading the model peaks too, and that peak is not what is asked."""
    Path("/proc/self/clear_refs").write_text("5")


def measure_memory(name: str, options: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: one batch of eight records, the longest of 688 tokens (the 95%
    quantile of dialogues), through one contender; bytes above those after loading the model."""
    bench = Bench(device=options.device)
    tokenizer = basemodel.load_tokenizer(bench.found)
    sizes = [(40, 6), (58, 9), (75, 16), (107, 22), (138, 33), (212, 53), (333, 106), (688, 291)]
    batch = records(tokenizer, sizes)
    tokens = TOKEN_BUDGET
    if name == "privft-equal":  # eight of the longest: as many tokens at once as `padded` has
        batch = records(tokenizer, [(688, 291)] * 8)
        name, tokens = "privft", len(batch) * batch[0].bucket
    elif name in ("privft", "alike"):  # and what fills a whole microbatch
        batch += records(tokenizer, [(128, 33)] * (TOKEN_BUDGET // 128))
    given = Round(number=1, records=batch, batches=[batch])
    step = make(name, bench, expected=8, token_budget=tokens, model=bench.model(options.dtype))
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(given)
        return {"mib": (torch.cuda.max_memory_allocated() - before) / 2**20}
    if sys.platform == "linux":
        forget_peak()
        before = resident()[0]
        step(given)
        return {"mib": (resident()[1] - before) / 2**20}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(given)
    return {"mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20}


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """`measure_memory` of each, one process after the other; null for one that the system ended,
    because there was not enough."""
    names = ["privft", "privft-equal", "alike", "padded", "hooks", "ghost"]
    if opake_missing(options.opake_python) is None:
        names.append("opake")
    found: dict[str, Any] = {}
    for name in names:
        python = options.opake_python if name == "opake" else sys.executable
        done = subprocess.run(
            [python, __file__, "--measure-memory", name, "--device", options.device],
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"measuring the memory of {name} failed")
        found[name] = None if done.returncode else round(json.loads(done.stdout)["mib"])
        say(f"memory {name}: {found[name]} MiB")
    return {
        "peak_mib_above_loaded_model": found,
        "privft_over_padded": round(found["privft"] / found["padded"], 3),
        "privft_over_padded_wanted": 0.7,
        "privft_over_padded_equal_tokens": round(found["privft-equal"] / found["padded"], 3),
        "privft_over_padded_equal_tokens_wanted": 1.05,
        "batch": "8 records of 40 to 688 tokens; for privft and its like 16 of 128 more, which "
        "fill a microbatch; at equal tokens 8 of 688",
    }


# ---------------------------------------------------------------------------- where time goes


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measured GFLOP/s of the fastest of a few matrix products, best of several runs."""
    best = 0.0
    for rows, inner, columns in ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 576, 1536)):
        a = torch.randn(rows, inner, device=device).to(dtype)
        b = torch.randn(inner, columns, device=device).to(dtype)
        a @ b
        seconds = min(timed(lambda a=a, b=b: a @ b) for _ in range(8))  # type: ignore[misc]
        best = max(best, 2.0 * rows * inner * columns / seconds / 1e9)
    return best


FLOP_FORMULA = (
    "real tokens only; frozen linear layers 4 a weight and token (forward 2, backward 2 for the "
    "inputs alone), LoRA 6 a weight and token, causal attention 6 * tokens * hidden a layer and "
    "token, output embedding 4 * vocabulary * hidden a labelled token"
)


def flops(model: Any, units: Sequence[UnitExamples]) -> float:
    """Of one step on `units` by `FLOP_FORMULA`: work that has to be done, padding excluded."""
    linear = [m for m in model.module.modules() if isinstance(m, torch.nn.Linear)]
    head = model.module.get_output_embeddings()
    trained = sum(m.weight.numel() for m in linear if m.weight.requires_grad)
    frozen = sum(m.weight.numel() for m in linear if not m.weight.requires_grad and m is not head)
    config = model.module.config
    hidden, layers = config.hidden_size, config.num_hidden_layers
    total = 0.0
    for unit in units:
        for example in unit.examples:
            n = len(example.input_ids)
            labelled = example.labelled
            total += n * (4.0 * frozen + 6.0 * trained + 6.0 * n * hidden * layers)
            total += 4.0 * labelled * head.weight.numel()
    return total


_GROUPS = (
    ("attention", ("attention", "softmax")),
    ("matrix products", ("mm", "bmm", "linear", "einsum", "matmul", "dot")),
    ("copies and casts", ("copy", "_to_copy", "clone", "contiguous", "cat")),
    ("sums over units", ("index_add", "sum", "norm")),
)


def profile(step: Callable[[Round], None], given: Round) -> dict[str, Any]:
    """Shares of a step's time by groups of kernels, from torch's profiler; what is in no kernel
    is Python, tokens and the keyed noise."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        whole = timed(lambda: step(given))
    on_device = torch.cuda.is_available()
    shares: dict[str, float] = {}
    top: dict[str, float] = {}
    for event in seen.key_averages():
        spent = event.self_device_time_total if on_device else event.self_cpu_time_total
        name = event.key.lower()
        group = next((g for g, marks in _GROUPS if any(m in name for m in marks)), "elementwise")
        shares[group] = shares.get(group, 0.0) + spent / 1e6 / whole
        top[event.key] = spent / 1e6 / whole
    shares["outside torch"] = max(0.0, 1.0 - sum(shares.values()))
    largest = sorted(top.items(), key=lambda item: -item[1])[:12]
    return {
        "shares": {k: round(v, 3) for k, v in sorted(shares.items(), key=lambda i: -i[1])},
        "top_kernels": {k: round(v, 3) for k, v in largest},
    }


def details(bench: Bench, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Share of the machine's peak, of noise and of reading the vault; where the rest goes."""
    model = bench.model()
    step = make("privft", bench, expected=8, token_budget=TOKEN_BUDGET, model=model)
    sizes = lengths("dialogues", 8, np.random.default_rng(SEED + 1))
    given = Round(number=1, records=records(tokenizer, sizes), batches=[])
    step(given)
    seconds = min(timed(lambda: step(given)) for _ in range(2))
    rate = sum(len(unit.examples[0].input_ids) for unit in given.records) / seconds
    peak = matmul_peak(bench.device, torch.float32)
    reached = flops(model, given.records) / seconds / 1e9

    mean = statistics.mean(n for n, _ in lengths("dialogues", 4000, np.random.default_rng(SEED)))
    step_s = 16 * mean / rate
    noise_s = noise_seconds(model)
    vault_s = vault_seconds(tokenizer, sampled=16)
    return {
        "machine": machine(options.device),
        "matmul_peak_gflops": round(peak, 1),
        "matmul_peak_gflops_bfloat16": None  # torch's own product takes minutes then
        if bench.device.type == "cpu" and widens(torch.bfloat16)
        else round(matmul_peak(bench.device, torch.bfloat16), 1),
        "step_gflops": round(reached, 1),
        "fraction_of_peak": round(reached / peak, 3),
        "flop_formula": FLOP_FORMULA,
        "profile": profile(step, given),
        "step_of_16_s": round(step_s, 2),
        "noise_s": round(noise_s, 4),
        "noise_share_of_step_of_16": round(noise_s / step_s, 4),
        "noise_share_wanted": 0.03,
        "vault_s": round(vault_s, 4),
        "vault_share_of_step_of_16": round(vault_s / step_s, 4),
        "vault_share_wanted": 0.02,
    }


def noise_seconds(model: Any) -> float:
    """Drawing and adding the noise of one step, median of five."""
    sums = {
        name: torch.zeros(p.shape, dtype=torch.float64, device=p.device)
        for name, p in model.module.named_parameters()
        if p.requires_grad
    }
    mechanism = Mechanism(
        unit="record",
        sampling_probability=1.0,
        noise_multiplier=NOISE_MULTIPLIER,
        clip_norm=CLIP_NORM,
        steps=1,
        expected_batch_size=16.0,
    )
    streams = KeyedStreams(bytes(32))
    took = [
        timed(lambda s=s: add_noise(sums, mechanism, streams=streams, step=s))  # type: ignore[misc]
        for s in range(6)
    ]
    return statistics.median(took[1:])


def vault_seconds(tokenizer: Any, *, sampled: int) -> float:
    """Opening `sampled` of 400 sealed units of dialogue length and turning them into tokens."""
    from privft.signing import SigningKey
    from privft.vault.fields import FieldMap
    from privft.vault.keys import CHEAP_FOR_TESTS, passphrase_recipient
    from privft.vault.store import create

    rng = np.random.default_rng(SEED + 2)
    texts = (tokenizer.decode(unit.examples[0].input_ids)
             for unit in records(tokenizer, lengths("dialogues", 400, rng)))  # fmt: skip
    signer = SigningKey.from_bytes("bench", bytes(range(32)))
    # the cost of the passphrase is paid once a run, and is not what is asked here
    recipient = passphrase_recipient("bench", b"bench", cost=CHEAP_FOR_TESTS)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        source.write_text(
            "".join(json.dumps({"id": f"{i}", "text": f"{i} {t}"}) + "\n"
                    for i, t in enumerate(texts))
        )  # fmt: skip
        vault = create(
            Path(folder) / "vault", dataset="bench", unit="record", recipients=[recipient],
            fields=FieldMap(text="text", id="id"), checkpoint="bench", signer=signer,
        )  # fmt: skip
        vault.add([source], who="bench", signer=signer, checkpoint="bench")

        def read() -> None:
            chosen = sorted(rng.choice(len(vault), sampled, replace=False).tolist())
            for unit in vault.read_many(chosen):
                encode_unit(unit.to_dict(), tokenizer, task="causal-lm", max_length=768)

        took = [timed(read) for _ in range(8)]
        vault.close()
    return statistics.median(took[1:])


# ---------------------------------------------------------------------------- growth


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """How cost grows: the sampler with the units in the vault, a step with record length, LoRA
    rank and batch size."""
    sampler = {}
    for units in (10**4, 10**6, 10**8):
        streams = KeyedStreams(bytes(32))
        draw = lambda n=units, s=streams: poisson_sample(  # noqa: E731
            s, step=0, units=n, probability=64 / n, population="units"
        )
        sampler[str(units)] = round(timed(draw), 4)
        say(f"sampler, {units:,} units: {sampler[str(units)]} s")
    bench = Bench(device=options.device)
    tokenizer = basemodel.load_tokenizer(bench.found)

    def rate(bench: Bench, sizes: Sequence[tuple[int, int]]) -> float:
        given = Round(number=1, records=records(tokenizer, sizes), batches=[])
        step = make("privft", bench, expected=len(sizes), token_budget=TOKEN_BUDGET)
        step(Round(number=0, records=given.records[:1], batches=[]))
        return round(given.tokens / statistics.median(timed(lambda: step(given)) for _ in "123"), 1)

    def tell(what: str, found: dict[str, float]) -> dict[str, float]:
        say(f"{what}, tokens/s: {found}")
        return found

    return {
        "sampler_s_by_units": sampler,
        "tokens_per_s_by_record_length": tell(
            "by record length",
            {str(n): rate(bench, [(n, n // 4)] * (1024 // n)) for n in (64, 128, 256, 512, 1024)},
        ),
        "tokens_per_s_by_lora_rank": tell(
            "by LoRA rank",
            {str(r): rate(Bench(rank=r, device=options.device), [(128, 32)] * 8)
             for r in (1, 8, 32, 64)},
        ),
        "tokens_per_s_by_batch_size": tell(
            "by batch size",
            {str(b): rate(bench, lengths("reviews", b, np.random.default_rng(SEED)))
             for b in (1, 4, 16, 32)},
        ),
    }  # fmt: skip


# ---------------------------------------------------------------------------- width


@dataclass(frozen=True)
class Wide:
    """Models like SmolLM2's of another width, few layers and made-up weights."""

    hidden: int
    layers: int

    def model(self, dtype: str) -> LanguageModel:
        """One of them with LoRA, as the contenders have it."""
        torch.manual_seed(SEED)
        config = LlamaConfig(
            vocab_size=49152,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 64,
            num_key_value_heads=self.hidden // 192,
            tie_word_embeddings=True,
        )
        base = LlamaForCausalLM(config).to(getattr(torch, dtype))
        return attach_language_model(base, LoraSpec(r=8), seed=0, pad_id=0)


def types(bench: Bench | Wide, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What bfloat16 gains: the two types take turns with nobody between them."""
    found = race("dialogues", list(TYPES), bench, tokenizer, options)
    rows = found["contenders"]
    ratios = [a / b for a, b in zip(*(rows[n]["rounds"] for n in reversed(TYPES)), strict=True)]
    return {
        "bfloat16_over_float32": spread(ratios),
        "wanted": 1.3,
        "rounds": options.rounds,
        "records_per_round": options.records,
        "tokens_per_s": {name: rows[name]["tokens_per_s"] for name in TYPES},
        "loss_before_and_after_float32": found["losses"]["privft"],
        "loss_before_and_after_bfloat16": found["losses"]["privft-bf16"],
    }


def width(tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What bfloat16 gains, by the width of a model."""
    return {
        f"hidden {wide.hidden}, {wide.layers} layers": types(wide, tokenizer, options)
        for wide in (Wide(576, 10), Wide(1152, 4), Wide(2304, 2))
    }


# ---------------------------------------------------------------------------- telling


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def instructions(device: str) -> str:
    """What figures are kept apart by: of the CPU, or the name of another device."""
    if device != "cpu":
        return device
    tiles = torch.cpu._is_amx_tile_supported()
    return torch.backends.cpu.get_cpu_capability() + ("+AMX" if tiles else "")


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in found.items()}
    flags = facts.get("flags", "").split()
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none on this machine"
    return {
        "processor": facts.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": instructions(device),
        "bf16_instructions": sorted(f for f in flags if f in ("avx512_bf16", "amx_bf16")),
        "device": device,
        "cuda": cuda,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "opacus", "peft", "transformers")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def show(report: dict[str, Any]) -> None:
    """The tables."""
    for workload, result in report.get("workloads", {}).items():
        print(f"\n{workload}: {sum(result['tokens'])} tokens in {len(result['tokens'])} rounds")
        print(f"{'':<58}{'tokens/s (min-max)':>20}{'privft is':>12}{'(min-max)':>14}{'wanted':>9}")
        for name, row in result["contenders"].items():
            if "missing" in row:
                print(f"{WORDS[name]:<58}{row['missing']}")
                continue
            rate = row["tokens_per_s"]
            line = f"{rate['median']:.0f} ({rate['min']:.0f}-{rate['max']:.0f})"
            end = ""
            if "privft_over_it" in row:
                ratio = row["privft_over_it"]
                wanted = "" if row["wanted"] is None else f"{row['wanted']:.2f} x"
                between = f"{ratio['min']:.2f}-{ratio['max']:.2f}"
                end = f"{ratio['median']:.2f} x".rjust(12) + f"{between:>14}{wanted:>9}"
            print(f"{WORDS[name]:<58}{line:>20}{end}")
        if {"padded", "alike"} <= result["contenders"].keys():
            removed, price = (
                result["contenders"][name].get("privft_over_it", {}).get("median")
                for name in ("padded", "alike")
            )
            print(f"padding removed: {removed} times as fast; price of privacy: {price} times")
        print("padded over real tokens: " + ", ".join(
            f"{name} {value:.2f}" for name, value in result["padding"].items()
        ))  # fmt: skip
    for part in ("bfloat16", "memory", "details", "growth", "width"):
        if report.get(part):
            print(f"\n{part}")
            for key, value in report[part].items():
                print(f"  {key}: {json.dumps(value) if isinstance(value, dict) else value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", type=int, default=12, help="in a round")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=CONTENDERS["dialogues"],
        help="contenders; all by default",
    )
    parser.add_argument("--workload", choices=sorted(CONTENDERS), help="by default both")
    parser.add_argument("--growth", action="store_true", help="how cost grows, and nothing else")
    parser.add_argument("--memory", action="store_true", help="peak memory, and nothing else")
    parser.add_argument("--types", action="store_true", help="bfloat16 against float32 alone")
    parser.add_argument("--width", action="store_true", help="bfloat16 by width, and nothing else")
    parser.add_argument("--no-details", action="store_true", help="the races alone")
    parser.add_argument("--details", action="store_true", help="of privft's step, without a race")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--opake-python", default=sys.executable, help="a Python that has opake as well"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # what deterministic products want on CUDA, read when it starts
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if options.measure_memory:
        print(json.dumps(measure_memory(options.measure_memory, options)))
        return
    if options.worker:
        work(options.worker, options)
        return
    reports = json.loads(options.out.read_text()) if options.out.exists() else {}
    report = reports.setdefault(instructions(options.device), {})

    def keep() -> None:  # after each part, for a later one may end the process
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")

    if options.growth:
        report["growth"] = {**growth(options), "machine": machine(options.device)}
    elif options.types:
        bench = Bench(device=options.device)
        found = types(bench, basemodel.load_tokenizer(bench.found), options)
        report["bfloat16"] = {**found, "machine": machine(options.device)}
    elif options.width:
        tokenizer = basemodel.load_tokenizer(Bench(device="cpu").found)
        report["width"] = {**width(tokenizer, options), "machine": machine(options.device)}
    elif options.details:
        bench = Bench(device=options.device)
        report["details"] = details(bench, basemodel.load_tokenizer(bench.found), options)
    elif options.memory:
        report["memory"] = {**memory(options), "machine": machine(options.device)}
    else:
        bench = Bench(device=options.device)
        tokenizer = basemodel.load_tokenizer(bench.found)
        for workload in [options.workload] if options.workload else CONTENDERS:
            names = [n for n in CONTENDERS[workload] if options.only is None or n in options.only]
            found = race(workload, names, bench, tokenizer, options)
            found["rounds"], found["records_per_round"] = options.rounds, options.records
            report.setdefault("workloads", {})[workload] = found
            report["settings"] = {
                "model": "SmolLM2-135M-Instruct, LoRA r=8 on all linear layers, float32",
                "tokens_per_microbatch": TOKEN_BUDGET,
                "longest": LONGEST,
            }
            found["machine"] = machine(options.device)
            keep()
            if workload == "dialogues" and not options.no_details:
                report["details"] = details(bench, tokenizer, options)
                keep()
    keep()
    show(report)


if __name__ == "__main__":
    main()
