"""A reward with a language model of its own on disk: the head, and the backbone that was trained with it.

The backbone is any causal LM with the generator's tokenizer. A LoRA adapter is kept apart from the base
model and merged when it is loaded; a backbone trained whole is kept whole.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from decoder.contracts import ModelIdentity, UserError
from decoder.lm import CausalLM
from decoder.models import load_model
from rewards import artefact
from rewards.arm import Output
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.backbone_session import Backbone

Adaptation = Literal["lora", "full", "none"]
Link = Literal["sigmoid", "clamp"]
DEFAULT_OUTPUT: dict[str, Output] = {"sigmoid": "log_probability", "clamp": "probability"}
SMALLEST = 1e-4  # what a clamped value is raised to before its logarithm is taken

ARM, RAD = KINDS = ("backbone_arm", "rad")
Head = TypeVar("Head", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """What a backbone reward is, beside its weights.

    backbone: the base model before training; its name is what `load_model` takes. revision: of a hub id.
    adaptation: what training changed: a LoRA adapter, all weights, or nothing but the head.
    outputs: the F labels of the head. use: the one that steers.
    link: "sigmoid" where values are log-odds, "clamp" where they were regressed on labels in [0, 1].
    output: what r is, log P(attribute) or P(attribute).
    bos_token_id: what stands before every text, None for nothing. rank: of an ARM's W, None for a full one.
    """

    backbone: ModelIdentity
    adaptation: Adaptation
    outputs: tuple[str, ...]
    use: str
    link: Link
    output: Output
    bos_token_id: int | None
    rank: int | None = None
    revision: str | None = None

    def to_reward(self, values: Tensor, sign: int) -> Tensor:
        """Return r of values of the same shape; sign -1 gives that of the opposite attribute."""
        if self.link == "sigmoid":
            signed = sign * values
            return logsigmoid(signed) if self.output == "log_probability" else signed.sigmoid()
        p = values.clamp(0.0, 1.0)
        p = p if sign > 0 else 1.0 - p
        return p.clamp(min=SMALLEST).log() if self.output == "log_probability" else p


def pick_output(head: nn.Module, one: Head, index: int, device: torch.device) -> Head:
    """Return `one`, frozen, filled with one of the F outputs of `head`, whose tensors are all (F, ...)."""
    one.load_state_dict({name: tensor[index : index + 1] for name, tensor in head.state_dict().items()})
    return one.to(device).eval().requires_grad_(False)


def save_pretrained(
    directory: Path,
    kind: str,
    head: nn.Module,
    config: BackboneConfig,
    *,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    base_model: ModelIdentity,
    about: Mapping[str, Any],
) -> None:
    """Write a trained head (F outputs) with its backbone: `adapter/` for LoRA, `backbone/` for all weights.

    kind: ARM or RAD. model: the trained one, peft's for LoRA. base_model: the generator it was
    made for. about: the training data's fingerprint, metrics and the like.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_backbone(directory, config.adaptation, model, tokenizer)
    told = {**asdict(config), "base_model": asdict(base_model), **about}
    artefact.save(directory, kind, told, head.state_dict())


def save_backbone(
    directory: Path, adaptation: Adaptation, model: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write what was trained of a language model: `adapter/` for lora, `backbone/` for full, else nothing."""
    if adaptation == "lora":
        model.save_pretrained(directory / "adapter", save_embedding_layers=False)
        (directory / "adapter" / "README.md").unlink(missing_ok=True)  # peft's form, with nothing filled in
    elif adaptation == "full":
        model.save_pretrained(directory / "backbone")
        tokenizer.save_pretrained(directory / "backbone")


def load(
    directory: Path, lm: CausalLM, form: str | None = None, *, kind: str | None = None
) -> tuple[ActionValueHead | ValueHead, Backbone, BackboneConfig, str]:
    """Return the head (F outputs), the backbone in the generator's dtype and place, the config, a digest.

    form: takes the place of the declared output. kind: the only one wanted. The digest covers all weights.
    Raises UserError for files that are missing, broken or at odds, and for a backbone whose tokenizer is
    not the generator's.
    """
    raw = artefact.read_config(directory)
    if raw["kind"] not in ((kind,) if kind else KINDS):
        raise UserError(f"{directory} is of kind {raw['kind']!r}, not {kind or ' or '.join(KINDS)}")
    config = parse(directory, raw, form)
    check_tokenizer(directory, config.backbone, lm.identity)
    size, n_outputs = config.backbone.hidden_size, len(config.outputs)
    head = ValueHead(size, n_outputs) if raw["kind"] == RAD else ActionValueHead(size, n_outputs, config.rank)
    digest = artefact.load_weights(head, directory)
    backbone = load_backbone(directory, config, lm)
    check_tokenizer(directory, backbone.identity, lm.identity)
    telling = [digest, *file_digests(directory, config), config.use, config.link, config.output]
    whole = hashlib.sha256(json.dumps([*telling, config.backbone.weights, config.bos_token_id]).encode())
    return head.eval(), Backbone(backbone, config.bos_token_id), config, whole.hexdigest()[:16]


def load_backbone(directory: Path, config: BackboneConfig, generator: CausalLM) -> CausalLM:
    name, whole = config.backbone.name, directory / "backbone"
    if config.adaptation == "full":
        if not whole.is_dir():
            raise UserError(f"{whole} is missing: copy the reward's whole folder, or train it again")
        name = str(whole)
    dtype = str(generator.model.dtype).removeprefix("torch.")
    lm = load_model(name, dtype=dtype, device=str(generator.device), revision=config.revision).lm
    if config.adaptation != "full":
        artefact.check_identity(directory, asdict(config.backbone), lm.identity)
    model = _merge_adapter(lm.model, directory / "adapter") if config.adaptation == "lora" else lm.model
    broken = [key for key, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(f"{directory}: the backbone's {broken[0]} holds NaN or infinity: train it again")
    return replace(lm, model=model.eval().requires_grad_(False))


def _merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Return the model with the adapter's weights added to its own."""
    for path in (folder / "adapter_config.json", folder / "adapter_model.safetensors"):
        if not path.is_file():
            raise UserError(f"{path} is missing: copy the reward's whole folder, or train it again")
    try:
        from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    except ImportError:
        raise UserError(
            f"{folder} is a LoRA adapter, which needs peft: pip install 'tiller-lm[train]'"
        ) from None
    try:
        with warnings.catch_warnings():  # peft asks transformers for an attribute by its old name
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            adapted = get_peft_model(model, PeftConfig.from_pretrained(str(folder)))
        saved = load_file(folder / "adapter_model.safetensors")
        wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        if odd := sorted(saved.keys() ^ wanted):
            raise ValueError(f"{odd[0]} stands in one of adapter and backbone only")
        set_peft_model_state_dict(adapted, saved)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} cannot be read ({reason}): copy or train the reward again") from None
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def file_digests(directory: Path, config: BackboneConfig) -> list[str]:
    """Return digests of every file that holds trained weights of the backbone."""
    folder = {"lora": "adapter", "full": "backbone", "none": None}[config.adaptation]
    paths: Sequence[Path] = [] if folder is None else sorted((directory / folder).glob("*.safetensors"))
    if config.adaptation == "lora":
        paths = [*paths, directory / "adapter" / "adapter_config.json"]  # the scale of the adapter
    found = []
    for path in paths:
        with path.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return found


def check_tokenizer(directory: Path, backbone: ModelIdentity, generator: ModelIdentity) -> None:
    """Refuse a backbone that does not read the generator's tokens, printing both sides."""
    known = generator.tokenizer_hash != ""
    alike = backbone.tokenizer_hash == generator.tokenizer_hash or not known
    # Models pad their vocabularies differently: with one tokenizer, rows to spare in the backbone do no harm.
    fits = (
        backbone.vocab_size >= generator.vocab_size if known else backbone.vocab_size == generator.vocab_size
    )
    if not (alike and fits):
        raise UserError(
            f"reward {directory} reads other tokens than the model: tokenizer {backbone.tokenizer_hash!r} "
            f"with {backbone.vocab_size} rows in its backbone {backbone.name!r}, "
            f"{generator.tokenizer_hash!r} with {generator.vocab_size} in {generator.name!r}. Take a reward "
            "model that reads text (--scorer hf:DIRECTORY), or train on a backbone with this tokenizer"
        )


def parse(directory: Path, raw: Mapping[str, Any], form: str | None) -> BackboneConfig:
    stored: Any = form or raw.get("output")
    try:
        backbone = ModelIdentity(
            **{field.name: raw["backbone"][field.name] for field in fields(ModelIdentity)}
        )
        outputs, link = tuple(map(str, raw["outputs"])), raw["link"]
        config = BackboneConfig(
            backbone, raw["adaptation"], outputs, raw.get("use", outputs[0]), link,
            stored or DEFAULT_OUTPUT[link], raw["bos_token_id"], raw.get("rank"),
            raw.get("revision"),
        )  # fmt: skip
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{directory}/config.json lacks or garbles {error}: train the reward again") from None
    known = (("adaptation", get_args(Adaptation)), ("link", get_args(Link)), ("output", get_args(Output)))
    for name, choices in (*known, ("use", config.outputs)):
        if (value := getattr(config, name)) not in choices:
            raise UserError(f"{directory}/config.json: {name} is {value!r}, not {' or '.join(choices)}")
    for name, least in (("rank", 1), ("bos_token_id", 0)):
        value = getattr(config, name)
        if value is not None and not (isinstance(value, int) and least <= value):
            raise UserError(
                f"{directory}/config.json: {name} is {value!r}, not a number from {least} or null"
            )
    return config
