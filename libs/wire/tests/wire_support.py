"""What several tests of the wire need."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pyarrow as pa


def same(left: Any, right: Any) -> bool:
    """Equality that looks into dataclasses, arrays and tables, and tells sequences apart by content only. NaN equals NaN."""
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, pa.Table | pa.RecordBatch):
        return bool(left.equals(right))
    if isinstance(left, pa.Buffer):
        return bool(left.equals(right))
    if is_dataclass(left):
        return type(left) is type(right) and all(
            same(getattr(left, field.name), getattr(right, field.name)) for field in fields(left)
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right) or bool(left != left and right != right)
