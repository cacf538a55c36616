"""What an embedding store holds, `manifest.json`, and whether two stores hold the same kind of embeddings.

Written once, when the store is made. Embeddings that differ in any fact of a manifest but the labels must
never meet: a head trained on one kind reads noise in the other.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from decoder.contracts import UserError
from rewards.durable import sync_folder, write_temporary

FILE_NAME = "manifest.json"
KIND = "embedding store"
FORMAT_VERSION = 1
FIXED_COLUMNS = ("prompt_id", "sample_index", "text")  # names that no label may have
Pooling = Literal["last", "mean"]
DType = Literal["float16", "bfloat16", "float32"]
DIGESTS = ("encoder weights", "encoder tokenizer")
READING = ("layers", "pooling", "template", "max_tokens", "dimension")
_SOFT = ("encoder name", "encoder revision", "encoder weights")


@dataclass(frozen=True, slots=True)
class Encoder:
    """The model whose states were pooled.

    name: as it was loaded. weights, tokenizer: their digests, as in `ModelIdentity`; "" where unknown.
    revision: of the hub, "" where there is none.
    """

    name: str
    weights: str = ""
    tokenizer: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What every embedding of a store is. Raises UserError for a value that cannot be.

    dimension: D. layers: numbered as in `Reading.taps`; of L of them, the one at place i fills the columns
    from i * D / L on. pooling: over the text's tokens, the last one's state alone or the mean. template:
    "plain", or what names the chat template. max_tokens: where texts were cut, None for nowhere. dtype:
    on disk. labels: the names of the label columns.
    """

    encoder: Encoder
    dimension: int
    layers: tuple[int, ...]
    pooling: Pooling = "last"
    dtype: DType = "float16"
    labels: tuple[str, ...] = ()
    template: str = "plain"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        choices = (("pooling", self.pooling, get_args(Pooling)), ("dtype", self.dtype, get_args(DType)))
        for name, value, allowed in choices:
            if value not in allowed:
                raise UserError(f"{name} {value!r} is not known: choose one of {', '.join(allowed)}")
        if self.dimension < 1 or not self.layers or self.dimension % len(self.layers):
            raise UserError(
                f"dimension {self.dimension} cannot be that of {len(self.layers)} layers side by side: "
                "name the layers, and give their number times the hidden size"
            )
        bad = [name for name in self.labels if not name or name in FIXED_COLUMNS]
        if bad or len(set(self.labels)) < len(self.labels):
            raise UserError(
                f"labels {list(self.labels)} cannot be columns: give each its own name, "
                f"none of {', '.join(FIXED_COLUMNS)}"
            )

    @property
    def digest(self) -> str:
        """Return a short digest of all that the manifest says."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(f"{KIND} {FORMAT_VERSION} {text}".encode()).hexdigest()[:16]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into the folder, whole or not at all. May raise OSError."""
    about = {"kind": KIND, "format_version": FORMAT_VERSION}
    text = json.dumps({**about, **asdict(manifest), "digest": manifest.digest}, indent=2, ensure_ascii=False)
    path = folder / FILE_NAME
    write_temporary(path, f"{text}\n".encode()).replace(path)
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a store. Raises UserError if it is missing, broken, too new or was edited."""
    path = folder / FILE_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{folder} is no embedding store: cannot read {FILE_NAME} ({error.strerror}): "
            "give the folder of one"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): copy the store again") from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise UserError(f"{path} does not describe an embedding store: give a store's folder")
    if found.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {found.get('format_version')!r}; this version of tiller reads "
            f"{FORMAT_VERSION}: embed again or install a matching version"
        )
    manifest = _from_json(found, path)
    if found.get("digest") != manifest.digest:
        raise UserError(
            f"{path} was changed after it was written (digest {manifest.digest}, written as "
            f"{found.get('digest')}): put it back, since the embeddings did not change with it"
        )
    return manifest


def check_same(folder: Path, found: Manifest, wanted: Manifest) -> None:
    """Refuse a store whose embeddings are of another kind, printing both sides; warn of other names.

    Layers, pooling, template, cut, dimension, dtype and the encoder's weights and tokenizer must agree
    (UserError). Weights or a tokenizer unknown on one side cannot be compared; without the weights, the
    encoder's name must agree. Only another name or revision costs one warning. Labels are not compared.
    """
    ours, asked = facts_of(found), facts_of(wanted)
    if differing := differing_facts(ours, asked, (*DIGESTS, *READING, "dtype")):
        sides = "; ".join(f"{k} {ours[k]!r} in the store, {asked[k]!r} asked for" for k in differing)
        raise UserError(
            f"store {folder} holds embeddings of {found.encoder.name!r} that do not fit what was asked for, "
            f"those of {wanted.encoder.name!r}: {sides}. Give another store, or embed the texts again"
        )
    soft = [name for name in _SOFT if ours[name] != asked[name]]
    if soft:
        sides = "; ".join(f"{k} {ours[k]!r} in the store, {asked[k]!r} asked for" for k in soft)
        warnings.warn(f"store {folder}: {sides}; all else agrees, so it is used as it is", stacklevel=2)


def facts_of(manifest: Manifest) -> dict[str, Any]:
    """Return all that a manifest says, by the names that messages give it."""
    facts = {f.name: getattr(manifest, f.name) for f in fields(manifest) if f.name != "encoder"}
    return facts | {f"encoder {name}": value for name, value in asdict(manifest.encoder).items()}


def differing_facts(ours: Mapping[str, Any], theirs: Mapping[str, Any], compared: Sequence[str]) -> list[str]:
    """Return which of the facts compared differ.

    Digests unknown on one side cannot be compared; without the weights, the encoder's name must agree.
    """
    unknown = {name for name in DIGESTS if not (ours[name] and theirs[name])}
    facts = [name for name in compared if name not in unknown]
    if "encoder weights" in unknown:
        facts = ["encoder name", *facts]
    return [name for name in facts if ours[name] != theirs[name]]


def _from_json(found: Mapping[str, Any], path: Path) -> Manifest:
    try:
        known = {f.name: found[f.name] for f in fields(Manifest)}
        lists = {name: tuple(known[name]) for name in ("layers", "labels")}
        return Manifest(**{**known, **lists, "encoder": Encoder(**known["encoder"])})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks or misnames {error}: copy the store again") from None
