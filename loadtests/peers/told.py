"""Comparisons as JSON, for results that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from loadtests.peers.goals import FIGURES, Cell
from loadtests.peers.rounds import Comparison
from loadtests.ratios import spread


def comparison_told(found: Comparison) -> Mapping[str, Any]:
    """*found* as JSON."""
    return {
        "form": found.form,
        "servers": [server.name for server in found.servers],
        "idle_cpu": found.idle_cpu,
        "paused_while_idle": found.paused,
        "cells": [_cell(cell) for cell in found.cells],
    }


def _cell(cell: Cell) -> Mapping[str, Any]:
    loop = {"clients": cell.clients} if cell.offered is None else {"offered_rate": cell.offered}
    return {**loop, "servers": {name: _summary(cell, name) for name in cell.samples}}


def _summary(cell: Cell, name: str) -> Mapping[str, Any]:
    samples = cell.samples[name]
    figures = {
        figure: asdict(spread([getattr(sample, figure) for sample in samples], 3))
        for figure in (*FIGURES, "generator_busy")
    }
    late = sum(sample.is_late for sample in samples)
    return {**figures, "errors": sum(sample.errors for sample in samples), "rounds_of_a_late_generator": late}
