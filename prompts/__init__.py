"""Prompts that ship with the project, and the reader for everybody else's (`prompts.reading`).

`prompts.builtin()` gives the three prompts of the demo. The others are sets of half-sentences: `neutral`,
`negative` and `positive` by their sentiment, `provoking` where a model is tempted to insult, and
`dev_negative` and `dev_provoking` to tune on. Where they come from is written in `SOURCES.md`.
"""

from __future__ import annotations

from importlib import resources

from decoder.contracts import UserError
from prompts.reading import Prompt, read

__all__ = ["Prompt", "builtin", "builtin_names", "named", "read"]


def builtin_names() -> tuple[str, ...]:
    """Return the names that `builtin` knows, sorted."""
    files = (entry.name for entry in resources.files("prompts").iterdir())
    return tuple(sorted(name.removesuffix(".jsonl") for name in files if name.endswith(".jsonl")))


def builtin(name: str = "demo") -> list[Prompt]:
    """Return the packaged prompts of that name, in file order; an unknown name is a `UserError`."""
    if name not in builtin_names():
        raise UserError(f"there are no built-in prompts {name!r}; choose from {', '.join(builtin_names())}")
    with resources.as_file(resources.files("prompts").joinpath(f"{name}.jsonl")) as path:
        return read(path)


def named(source: str) -> list[Prompt]:
    """Return the packaged prompts of that name, else those of the file; a `UserError` if it is neither."""
    return builtin(source) if source in builtin_names() else read(source)
