"""What may import what, how heavy an import may be, how long a file may grow, what the map must name."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source import FILES, MODULES, PACKAGES, ROOT, module_name

HEAVY = {"torch", "transformers", "vllm", "lightgbm", "ray", "sklearn", "datasets", "peft", "pyarrow"}
COMMANDS = sorted(name for name, path in MODULES.items() if '__name__ == "__main__"' in path.read_text())

# Those parts of decoder/ that a person calls, and that therefore load rewards by name.
FRONT = ("best_of", "best_of_n", "best_of_run", "check", "cli", "hf_generate", "decoder", "generate")
BACKENDS = ("hf_backend", "vllm_backend", "vllm_engine")  # what a model runs on also holds its rewards
DECODER_FRONT = {f"decoder.{name}" for name in FRONT + BACKENDS}
# Commands of rewards/ that say what a head is worth, in the measures of eval/.
REWARDS_FRONT = {"rewards.head_run", "rewards.sweep"}


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of every module a file imports, also inside functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the full name, not a relative import"
            base = str(node.module)
            yield from {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}


def allowed(importer: str, imported: str) -> bool:
    """The import arrow: contracts <- decoder <- rewards, prompts <- what a person calls <- eval."""
    target = imported.split(".")[0]
    if target == "tests":
        return False
    if target not in PACKAGES:
        return True
    if importer == "decoder.contracts":
        return False
    source = importer.split(".")[0]
    if source == "decoder":
        return target in ("decoder", "prompts") or importer in DECODER_FRONT
    if source == "prompts":
        return target == "prompts" or imported in ("decoder.contracts", "decoder.cli")
    if source == "rewards":  # a reward must not know who runs it; its commands share the way commands end
        runs = {"decoder", "decoder.loop", *DECODER_FRONT} - {"decoder.cli"}
        return (target != "eval" or importer in REWARDS_FRONT) and imported not in runs
    return True


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_imports_follow_the_arrow(path: Path) -> None:
    name = module_name(path)
    wrong = [imported for imported in imports(path) if not allowed(name, imported)]
    assert not wrong, f"{name} may not import {wrong}"


def test_the_arrow_forbids() -> None:
    """The rule itself, on imports it exists to refuse."""
    assert not allowed("decoder.contracts", "decoder.lm")
    assert not allowed("decoder.loop", "rewards.arm")
    assert not allowed("rewards.arm", "decoder.loop")
    assert not allowed("prompts.reading", "decoder.lm")
    assert not allowed("eval.bench", "tests.tiny")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would: without the coverage of this test run, which costs time of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ["decoder", "rewards", "eval", "prompts", *COMMANDS])
def test_importing_is_light(name: str) -> None:
    done = python("-c", f"import sys, {name}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = HEAVY & set(done.stdout.split())
    assert not loaded, f"import {name} loads {sorted(loaded)}; import them where they are used"


def test_every_command_is_there() -> None:
    assert {"decoder.generate", "decoder.check", "rewards.train_arm", "eval.bench"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick(name: str) -> None:
    """Best of two, because the first run may have to compile the bytecode."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        done = python("-m", name, "--help")
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
        assert "usage" in done.stdout.lower()
    assert min(seconds) < 2.0, f"{min(seconds):.2f} s"


@pytest.mark.parametrize("path", FILES, ids=ids(FILES))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300, "split the file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 50, f"{node.name} has {length} lines"


def test_architecture_names_every_file() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"\w+\.py\b", page))
    assert {path.name for path in FILES} - {"__init__.py"} <= named


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_pages_name_modules_that_exist(page: str) -> None:
    named = set(re.findall(r"python3? -m ([\w.]+)", (ROOT / page).read_text()))
    missing = [name for name in named if name not in MODULES and not importlib.util.find_spec(name)]
    assert not missing
