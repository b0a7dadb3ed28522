"""Columns as a text table, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_CELL_WIDTH = 40
_NUMBERS = 3


def render_table(columns: Mapping[str, Sequence[Any]]) -> str:
    """Lines of aligned cells under their names; long cells are cut."""
    cells = {name: [_cell(value) for value in values] for name, values in columns.items()}
    widths = {name: max(map(len, [name, *values])) for name, values in cells.items()}
    lines = ["  ".join(name.ljust(widths[name]) for name in cells)]
    lines += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths.values(), strict=True))
        for row in zip(*cells.values(), strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, np.ndarray):
        numbers = ", ".join(f"{number:.3g}" for number in value[:_NUMBERS])
        return f"[{numbers}{', …' if len(value) > _NUMBERS else ''}]"
    if isinstance(value, float | np.floating):
        return f"{float(value):.4g}"
    text = _pairs(value) if isinstance(value, Mapping) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= _CELL_WIDTH else text[: _CELL_WIDTH - 1] + "…"


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_scalar(item)}" for key, item in mapping.items())


def _scalar(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
