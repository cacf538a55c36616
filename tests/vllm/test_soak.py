"""The soak itself, short: it asks in every way, finds nothing wrong, and would find it."""

from __future__ import annotations

import pytest

from eval import bench_soak
from eval.bench_soak import WAYS, SoakPlan


def test_a_short_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_soak, "PROMPTS", 3)  # each is asked alone first, with every wish
    rows, checks, _ = bench_soak.bench_soak(SoakPlan(requests=96, clients=16, tokens=8))
    figures = {row["figure"]: row["value"] for row in rows}
    assert sum(figures[f"requests, {way}"] for way in WAYS) == 96
    assert all(figures[f"requests, {way}"] > 0 for way in WAYS)
    assert figures["wrong answers"] == 0
    assert checks["share of answers as alone"].measured.value == 1.0
    assert figures["MiB at the end"] > 500
