"""vLLM's own model classes, with what rewards read of the states handed out by the same forward pass.

`TillerLlamaForCausalLM` is vLLM's `LlamaForCausalLM`, and so for every architecture in `COVERED`: those that
give the states of inner layers by vLLM's interface for EAGLE-3 speculators. The last state leaves `forward`
with the rewards' columns beside it, so that vLLM's own choice of rows picks both, and `compute_logits` parts
them again. All of it is tensor arithmetic outside of the compiled model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.forward_context import get_forward_context
from vllm.model_executor.models import ModelRegistry
from vllm.utils.torch_utils import set_default_torch_dtype

from rewards.arm import TapArm
from rewards.vllm_board import Board
from rewards.vllm_plugin import PREFIX
from rewards.vllm_readout import PagedSums, Placement, Readout, average
from rewards.vllm_spec import WorkerLM


def __getattr__(name: str) -> type[nn.Module]:
    """Return the class of an architecture, "TillerLlamaForCausalLM" and the like, made on first use."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return _tapped(name.removeprefix(PREFIX))


@cache
def _tapped(architecture: str) -> type[nn.Module]:
    base: Any = ModelRegistry.models[architecture].load_model_cls()

    class Tapped(base):  # type: ignore[misc]
        def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
            refuse(vllm_config)
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.tiller = _Taps(vllm_config)
            if self.tiller.inner:
                self.set_aux_hidden_state_layers(self.tiller.inner)  # before compilation, which fixes them

        def forward(self, input_ids: Tensor, positions: Tensor, *rest: Any, **named: Any) -> Tensor:
            return self.tiller.join(super().forward(input_ids, positions, *rest, **named), positions)

        def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
            logits: Tensor | None = super().compute_logits(self.tiller.part(hidden_states))
            return logits

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            loaded: set[str] = super().load_weights(weights)
            self.tiller.load(self.lm_head.weight)
            return loaded

    Tapped.__name__ = Tapped.__qualname__ = PREFIX + architecture
    return Tapped


def refuse(vllm_config: VllmConfig) -> None:
    """Raise RuntimeError for an engine that would leave texts unsteered, however it was configured."""
    found = {
        "vLLM's second model runner (VLLM_USE_V2_MODEL_RUNNER=1)": vllm_config.use_v2_model_runner,
        "speculative decoding": vllm_config.speculative_config is not None,
        "pipeline parallelism": vllm_config.parallel_config.pipeline_parallel_size > 1,
        "LoRA": vllm_config.lora_config is not None,
        "KV transfer": vllm_config.kv_transfer_config is not None,
    }
    for what, there in found.items():
        if there:
            raise RuntimeError(f"rewards cannot be honoured beside {what}: leave it out")


class _Taps:
    """The rewards' side of a model; no `nn.Module`, so that vLLM looks for no weights of it."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._board = Board.of(vllm_config)
        self._identity = self._board.spec.identity
        self._cache, self._dtype = vllm_config.cache_config, vllm_config.model_config.dtype
        self.inner = tuple(i for i in self._board.spec.layers if i < self._identity.num_layers)

    def load(self, unembedding: Tensor) -> None:
        """Bind the rewards to the rows of the unembedding that this worker holds."""
        identity, spec = self._identity, self._board.spec
        lm = WorkerLM(identity, unembedding.device, unembedding)
        with set_default_torch_dtype(torch.float32):  # vLLM makes whatever it loads in the model's own
            arms = {name: self._whole(saved.load(lm)) for name, saved in spec.rewards.items()}
            self._board.readout = Readout(arms, spec.load_probes(lm))

    def _whole(self, arm: TapArm) -> TapArm:
        """Return the reward with the table of all tokens, of which every worker has made a part."""
        table = tensor_model_parallel_all_gather(arm.table, dim=0)
        return replace(arm, table=table[: self._identity.vocab_size].contiguous())

    def join(self, output: Tensor | tuple[Tensor, list[Tensor]], positions: Tensor) -> Tensor:
        """Return (T, d + C) float32: the last state of each token and its columns."""
        hidden, inner = output if isinstance(output, tuple) else (output, [])
        taps = dict(zip(self.inner, inner, strict=True)) | {self._identity.num_layers: hidden}
        readout = self._board.readout
        own, averaged = readout.project(taps)
        own[:, : readout.averaged] += self._means(averaged, positions)
        return torch.cat([hidden.float(), own, positions[:, None].float()], -1)

    def part(self, joined: Tensor) -> Tensor:
        """Return the states (n, d) in the model's dtype, and keep the columns for the logits processor."""
        size = self._identity.hidden_size
        self._board.columns = joined[:, size:]
        return joined[:, :size].to(self._dtype)

    def _means(self, values: Tensor, positions: Tensor) -> Tensor:
        """Return the means (T, averaged) over each text up to and with each token."""
        context = get_forward_context()
        if not context.attn_metadata or not values.shape[1]:  # without: a pass that only measures memory
            return values
        if self._board.sums is None:
            n_slots = self._cache.num_gpu_blocks * self._cache.block_size
            self._board.sums = PagedSums(n_slots, values.shape[1], values.device)
        metadata: Any = next(iter(context.attn_metadata.values()))
        n = metadata.num_actual_tokens
        at = Placement(
            metadata.query_start_loc.long(), metadata.seq_lens.long(), metadata.slot_mapping[:n].long(),
            metadata.block_table, self._cache.block_size, metadata.max_query_len == 1,
        )  # fmt: skip
        means = average(self._board.sums.fold(values[:n], at), positions[:n])
        return torch.cat([means, values[n:]]) if len(values) > n else means  # padding of a captured graph
