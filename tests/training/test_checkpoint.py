"""What must be equal for a step to give the same bits again."""

from __future__ import annotations

import pytest
import torch

from privft.training.checkpoint import platform_facts


def test_processors_of_one_capability_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two with AVX-512 of which one has AMX, or another cache, choose other kernels; the number of
    cores changes nothing beside the number of threads."""
    known, seen = platform_facts(), dict(torch.cpu.get_capabilities())
    assert {"cpu_name", "architecture"} <= known["processor"].keys()
    for other in (
        {"cpu_name": "another"},
        {"amx_tile": not seen.get("amx_tile", False)},
        {"l2_cache_size": 1},
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda other=other: {**seen, **other})
        facts = platform_facts()
        assert facts["processor"] != known["processor"]
        assert {**facts, "processor": known["processor"]} == known
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**seen, "num_logical_cores": 999})
    assert platform_facts() == known


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "MKL_CBWR"])
def test_so_are_settings_that_choose_kernels(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    known = platform_facts()
    monkeypatch.setenv(name, "AVX2")
    assert platform_facts() == known | {"kernel_settings": {name: "AVX2"}}
