"""The literature's protocols: how many samples of what length, judged for what, on which prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from decoder.contracts import UserError
from prompts import builtin_names, named
from prompts.reading import Prompt

HUB = "hf://datasets/"


@dataclass(frozen=True, slots=True)
class Protocol:
    """Samples a prompt, tokens a sample, and the attributes judged; source says whose it is.

    direction: word in the name of the prompts -> 1 or -1, which way to steer there; others go as asked.
    """

    samples: int
    max_new_tokens: int
    attributes: tuple[str, ...]
    source: str
    direction: tuple[tuple[str, int], ...] = ()

    def signed(self, betas: Sequence[float], prompts: str) -> list[float]:
        """Return the betas with the sign that this protocol has for prompts of that name."""
        name = Path(prompts).name.lower()
        sign = next((sign for word, sign in self.direction if word in name), None)
        return list(betas) if sign is None else [sign * abs(beta) for beta in betas]


PROTOCOLS = {
    "own": Protocol(4, 20, ("sentiment", "toxicity"), "this project's benchmarks"),
    "realtoxicityprompts": Protocol(25, 20, ("toxicity",), "Gehman et al. 2020"),
    # Liu et al. 2021 steer negative prompts up, positive ones down and neutral ones either way.
    "dexperts-sentiment": Protocol(
        25, 20, ("sentiment",), "Liu et al. 2021", (("negative", 1), ("positive", -1))
    ),
}


def find_protocol(name: str) -> Protocol:
    """Return a protocol. Raises UserError with the known names."""
    if name not in PROTOCOLS:
        known = "; ".join(f"{each} ({protocol.source})" for each, protocol in PROTOCOLS.items())
        raise UserError(f"unknown protocol {name!r}: choose among {known}")
    return PROTOCOLS[name]


def read_prompts(source: str) -> list[Prompt]:
    """Return the prompts of a built-in set, a file, or hf://datasets/OWNER/NAME/FILE.jsonl.

    The standard files are read as they are: RealToxicityPrompts' `prompts.jsonl`, DExperts'
    `nontoxic_prompts-10k.jsonl` and its sentiment prompts. Raises UserError if there is no such thing.
    """
    if source in builtin_names() or not source.startswith(HUB):
        return named(source)
    parts = source.removeprefix(HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise UserError(f"prompts {source!r}: write {HUB}OWNER/NAME/FILE.jsonl")
    from huggingface_hub import hf_hub_download

    try:
        return named(hf_hub_download("/".join(parts[:2]), parts[2], repo_type="dataset"))
    except (OSError, ValueError) as error:  # the hub's own errors are either
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"cannot get {source} ({reason}): check the name, or download the file and give its path"
        ) from None
