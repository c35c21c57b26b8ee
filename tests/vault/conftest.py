"""Hypothesis without deadlines: the tests' machine may be busy with other work."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
