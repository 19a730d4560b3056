"""Runs with torch and without: `make test`, `make test-runtime`."""

from __future__ import annotations

import hypothesis

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")
