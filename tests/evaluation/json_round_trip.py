"""A result as another program would write it and read it back."""

import json
from typing import Any

from sureclr.schema import from_json, to_json


def read_back(result: Any) -> Any:
    """The dataclass -> JSON text without NaN -> the dataclass."""
    return from_json(type(result), json.loads(json.dumps(to_json(result), allow_nan=False)))
