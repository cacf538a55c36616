"""Any transformers reward model that reads whole texts: the second forward pass that probes do without.

A text is never cut: what a reward model cannot read whole has no score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor, nn

from decoder.contracts import UserError
from decoder.lm import hash_weights
from decoder.models import pick_device, pick_dtype, resolve
from decoder.replay import batches_by_length
from prompts.reading import Prompt

PromptLike = str | Sequence[Mapping[str, Any]] | Prompt  # messages are a conversation
REWARD_LABELS = ("reward", "score")  # names that say by themselves which of several labels to read
ALONE = ("regression", "multi_label_classification")  # problem types whose logits do not compete


@dataclass(frozen=True, slots=True)
class TextReward:
    """A sequence classifier whose logit is the reward of prompt and completion; higher is better.

    With one label, its logit as it is. With several, the log-odds of `label` against the rest, or its logit
    alone where the model is for regression or multi-label. max_tokens: the longest text it can read.
    """

    model: Any
    tokenizer: Any
    source: str
    label: int
    max_tokens: int

    @property
    def name(self) -> str:
        """Return "hf:", where the model is from, and the label where there are several."""
        label = f"#{self.label}" if self.model.config.num_labels > 1 else ""
        return f"hf:{self.source}{label}"

    @property
    def digest(self) -> str:
        """Return a digest of the weights, with the label."""
        return f"{hash_weights(self.model)}#{self.label}"

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[PromptLike], completions: Sequence[str], *, max_tokens: int = 4096
    ) -> list[float]:
        """Return the reward of each completion after its prompt; NaN, a failed score, where there is none.

        A conversation passes the reward model's own chat template, with the completion as the assistant's
        answer. Without a template its contents, each ended by a line break, are the text before the
        completion; a prompt that is a text is that text. NaN: a text that exceeds the model's length or
        gives no token, and what the model itself calls NaN.
        max_tokens: padded positions of a batch. Raises ValueError if there is not one prompt a completion,
        UserError if the template refuses a conversation.
        """
        rows = [self._encode(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        readable = [i for i, row in enumerate(rows) if 0 < len(row) <= self.max_tokens]
        scores = [float("nan")] * len(rows)
        for batch in batches_by_length([len(rows[i]) for i in readable], self._batch_limit(max_tokens)):
            chosen = [readable[i] for i in batch]
            found = self._score_ids([rows[i] for i in chosen])
            for i, score in zip(chosen, found.tolist(), strict=True):
                scores[i] = score
        return scores

    def _encode(self, prompt: PromptLike, completion: str) -> list[int]:
        """Return the token ids of prompt and completion, whole."""
        said = (prompt.messages or prompt.text or "") if isinstance(prompt, Prompt) else prompt
        if isinstance(said, str):
            return list(self.tokenizer(said + completion, verbose=False)["input_ids"])
        if self.tokenizer.chat_template is None:
            text = "".join(f"{message['content']}\n" for message in said) + completion
            return list(self.tokenizer(text, verbose=False)["input_ids"])
        messages = [*map(dict, said), {"role": "assistant", "content": completion}]
        try:
            ids = self.tokenizer.apply_chat_template(messages, return_dict=False)
        except TemplateError as error:
            where = prompt.source if isinstance(prompt, Prompt) and prompt.source else "a conversation"
            raise UserError(
                f"{where}: the chat template of reward model {self.source!r} refuses it ({error}): "
                "change its messages"
            ) from None
        return list(ids)

    def _batch_limit(self, max_tokens: int) -> int:
        """Return the padded positions of a batch: one text where the model could not tell its padding."""
        return 1 if self.model.config.get_text_config().pad_token_id is None else max_tokens

    def _score_ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return (B,) float32 of rows of token ids, padded on the right."""
        # Decoders find a text's end by the model's own pad id, whatever the tokenizer's may be.
        pad = self.model.config.get_text_config().pad_token_id or 0
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        return self._to_reward(logits)

    def _to_reward(self, logits: Tensor) -> Tensor:
        """Return (B,) float32 from logits (B, L)."""
        wanted = logits[:, self.label]
        if logits.shape[1] == 1 or self.model.config.problem_type in ALONE:
            return wanted
        others = torch.arange(logits.shape[1], device=logits.device) != self.label
        return wanted - logits[:, others].logsumexp(-1)


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> TextReward:
    """Return the reward model of "MODEL" or "MODEL#LABEL", with or without "hf:" in front.

    MODEL is a directory or hub id; LABEL a number or a name. In bfloat16, which "auto" may choose, close
    rewards tie. Raises UserError if the model cannot be loaded, lacks weights (a language model has no
    score head), or has several labels of which none is named and none is called reward or score.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source, wanted = _split(name)
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    path = resolve(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=kind, output_loading_info=True, **options
        )
    except (OSError, ValueError, SafetensorError, KeyError, RuntimeError) as error:
        raise _cannot_load(source, str(error)) from None
    if absent := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise _cannot_load(source, f"weights are missing, {absent[-1]} among them")
    label = find_label(model.config.id2label, wanted, source)
    model = model.eval().to(place)
    return TextReward(model, tokenizer, source, label, longest(model, tokenizer))


def find_label(names: Mapping[int, str], wanted: str, source: str) -> int:
    """Return the index of the label that is the reward; `wanted`, a number or a name, says it outright."""
    lower = {str(name).lower(): int(index) for index, name in names.items()}
    if wanted:
        found = lower.get(wanted.lower(), int(wanted) if wanted.isdecimal() else len(names))
        if found < len(names):
            return found
    elif len(names) == 1:
        return 0
    elif known := [lower[name] for name in REWARD_LABELS if name in lower]:
        return known[0]
    seen = f"no label {wanted!r} among its" if wanted else "several labels, and none is named of its"
    labels = ", ".join(f"{index} {name}" for index, name in names.items())
    raise UserError(
        f"reward model {source!r}: {seen} {len(names)} ({labels}): "
        f"say which is the reward, as in hf:{source}#{len(names) - 1}"
    )


def longest(model: Any, tokenizer: Any) -> int:
    """Return the most tokens that model and tokenizer both allow."""
    allowed = [int(tokenizer.model_max_length)]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and positions > 0:
        allowed.append(positions)
    for name, module in model.named_modules():
        # RoBERTa and its kin number positions from one past a padding position, so fewer are left.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            allowed.append(module.num_embeddings - skipped)
    return min(allowed)


def _split(name: str) -> tuple[str, str]:
    """Return model and label of "hf:MODEL#LABEL"; a path that exists is left whole."""
    source = name.removeprefix("hf:")
    if "#" not in source or Path(source).exists():
        return source, ""
    model, _, label = source.rpartition("#")
    return model, label


def _cannot_load(source: str, why: str) -> UserError:
    reason = " ".join(why.split())[:200]
    return UserError(
        f"cannot load reward model {source!r} ({reason}): give a directory or hub id of a model for sequence "
        "classification, with its trained head"
    )
