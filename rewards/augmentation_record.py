"""The files that an augmented store has beside its own, and what they tell of the pairs to learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from decoder.contracts import UserError

PAIRS, STOP, ABOUT = "pairs.jsonl", "stop.jsonl", "augmentation.json"
TOLD = ("method", "combine", "ratio", "n_original")  # to whoever learns from the pairs


def augmentation_of(pairs: Path) -> dict[str, Any]:
    """Return how a file of pairs was augmented, by the record in its folder; {} where there is none.

    Raises UserError for a broken record.
    """
    path = pairs.parent / ABOUT
    if pairs.name != PAIRS or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"augmentation": {name: found[name] for name in TOLD}}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is broken: augment the store again") from None
