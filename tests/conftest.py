"""What all tests share: where the optional real data lies, and nothing else."""

from __future__ import annotations

from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
