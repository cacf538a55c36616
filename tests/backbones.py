"""Small rewards with a language model of their own, and what they say by reading every text anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from decoder.contracts import Step, TokenReward
from decoder.lm import CausalLM
from decoder.loop import Rows, decode
from decoder.models import load_model
from decoder.sampling import SamplingConfig
from rewards.backbone import BackboneConfig, save_pretrained
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.backbone_session import Backbone
from tests.heads import as_lm, pad
from tests.tiny import ARCHITECTURES, BOS, save_tiny, tiny_tokenizer

HIDDEN = 40  # not the generator's 32
PROMPTS = [[5, 17, 200], [BOS, 9], [33, 44, 55, 66, 77, 88, 99]]
K = 7


def tiny_backbone(architecture: str = "llama") -> Backbone:
    """Return a random backbone with the tiny tokenizer, other than any generator of the tests."""
    model = ARCHITECTURES[architecture](hidden=HIDDEN, layers=3, seed=7).requires_grad_(False)
    return Backbone(as_lm(model, tiny_tokenizer()), BOS)


def tiny_config(backbone: Backbone, **changes: Any) -> BackboneConfig:
    settings: dict[str, Any] = {
        "backbone": backbone.lm.identity, "adaptation": "none", "outputs": ("good",), "use": "good",
        "link": "sigmoid", "output": "log_probability", "bos_token_id": backbone.bos_token_id,
    }  # fmt: skip
    return BackboneConfig(**{**settings, **changes})


def widen(head: nn.Module, seed: int = 0) -> Any:
    """Return the head with weights so wide that its values are of size 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(std=0.2 if isinstance(head, ValueHead) else 0.1, generator=generator)
    return head


def state(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Return the last state (d,) of one text behind one BOS: no cache, no padding, the plain model."""
    text = list(ids) if ids[0] == BOS else [BOS, *ids]
    output = model(input_ids=torch.tensor([text]), use_cache=False, output_hidden_states=True)
    return output.hidden_states[-1][0, -1]


def decode_steps(lm: CausalLM, reward: TokenReward, rows: Sequence[int] = (0, 0, 1, 2, 2)) -> list[Step]:
    """Return the steps of a sampled decode of PROMPTS, forked into rows that end at different tokens."""
    generator = torch.Generator().manual_seed(5)
    ids, mask = pad(PROMPTS)
    uniforms = torch.rand(len(rows), 8, generator=generator)
    job = Rows(ids, mask, torch.tensor(rows), uniforms, torch.full((len(rows), 1), 2.0))
    sampling = SamplingConfig(reward_top_k=K)
    return list(decode(lm, job, [reward], sampling, stop_ids=torch.arange(0, 300, 9)))


def assert_rewards(
    steps: Sequence[Step], rows: Sequence[int], naive: Callable[[list[int], int], float]
) -> None:
    """Assert that every reward of every step is naive(text, candidate), to 3e-5; some rows must have left."""
    texts = [list(PROMPTS[prompt]) for prompt in rows]
    assert len(steps) > 2
    assert len(steps[-1].rows) < len(rows)
    for step in steps:
        for i, row in enumerate(step.rows.tolist()):
            wanted = torch.tensor([naive(texts[row], v) for v in step.candidate_ids[i].tolist()])
            torch.testing.assert_close(step.rewards[i, :, 0], wanted, rtol=0, atol=3e-5)
        for row, token in zip(step.rows.tolist(), step.token_ids.tolist(), strict=True):
            texts[row].append(token)


def save_reward(
    directory: Path, kind: str, adaptation: str, generator: CausalLM, **changes: Any
) -> tuple[Path, PreTrainedModel, Any]:
    """Write a reward with two outputs and a trained backbone; return its folder, the model as trained (the
    adapter not merged), and the head."""
    from peft import LoraConfig, get_peft_model

    loaded = load_model(str(save_tiny(directory / "base", seed=7)), dtype="float32")
    identity, model = loaded.lm.identity, loaded.lm.model
    if adaptation == "lora":
        with warnings.catch_warnings():  # peft asks transformers for an attribute by its old name
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if adaptation == "full" or "lora_B" in name:
                weight += 0.1 * torch.randn_like(weight)
    backbone = Backbone(CausalLM(model, identity), BOS)
    config = tiny_config(
        backbone, **{"adaptation": adaptation, "outputs": ("bad", "good"), "rank": 4, **changes}
    )
    head = widen(ValueHead(32, 2) if kind == "rad" else ActionValueHead(32, 2, config.rank))
    folder = directory / "reward"
    save_pretrained(
        folder, kind, head, config, model=model, tokenizer=loaded.tokenizer,
        base_model=generator.identity, about={"texts": 12},
    )  # fmt: skip
    return folder, model.eval(), head
