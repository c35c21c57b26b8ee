"""What all tests share: where the optional real data lies, and one thread for tiny models."""

from __future__ import annotations

import os
from pathlib import Path

# Tiny models only lose time to a second thread, and lose much of it when tests run beside others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"
