"""Plain values for programs."""

from __future__ import annotations

import json
import math
from typing import Any


def as_json(values: Any) -> str:
    """JSON text with null where a number is not finite: NaN and Infinity are no JSON."""
    return json.dumps(_finite(values), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
