"""What goes into output files: a sample's record, a run's fingerprint, and facts about the run."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoder.contracts import Completion
from decoder.models import config_digest, versions
from decoder.weighting import WeightedReward

if TYPE_CHECKING:
    from decoder.config import DecodeConfig
    from decoder.decoder import Decoder

DECIMALS = 5  # of a reward in a file: well above float32 noise


def to_record(completion: Completion, seed: int) -> dict[str, Any]:
    """Return a sample as it stands in a file's "generations"."""
    record: dict[str, Any] = {
        "text": completion.text,
        "sample_index": completion.sample,
        "seed": seed,
        "finish_reason": completion.finish_reason,
        "num_tokens": len(completion.token_ids),
        "reward": None if completion.reward is None else round(completion.reward, DECIMALS),
        "rewards": {name: round(value, DECIMALS) for name, value in completion.rewards.items()},
        "token_ids": list(completion.token_ids),
        "token_rewards": {name: _rounded(values) for name, values in completion.token_rewards.items()},
    }
    if completion.scores:
        # Not rounded: only ties must tie. NaN, a score that failed, is null in JSON.
        record["scores"] = {k: v if math.isfinite(v) else None for k, v in completion.scores.items()}
    if completion.trace is not None:
        record["trace"] = [_rounded(step) for step in completion.trace]
    return record


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def fingerprint(
    decoder: Decoder, rewards: Sequence[WeightedReward], config: DecodeConfig, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that changes a sample, as plain JSON values."""
    identity = decoder.lm.identity
    numbers = {k: v for k, v in asdict(config).items() if k not in ("sampling", "batch_size")}
    return {
        **settings,
        "weights": identity.weights,
        "tokenizer": identity.tokenizer_hash,
        "chat_template": config_digest(decoder.tokenizer.chat_template),
        "stop_ids": decoder.backend.endings.stop_ids.tolist(),
        "dtype": str(decoder.lm.dtype).removeprefix("torch."),
        "device": decoder.lm.device.type,
        **asdict(config.sampling),
        **numbers,
        "rewards": {r.name: {"beta": r.beta, "digest": r.reward.digest} for r in rewards},
    }


def about() -> dict[str, Any]:
    """Return facts about a run that do not change its samples."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def git_commit() -> str | None:
    """Return the commit of the source tree this runs from, or None for an installed copy."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def process_peak() -> int:
    """Return the most bytes this process has held; the system counts in KiB, but on a Mac in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
