"""Tiny random models and a tokenizer, built in code: no hub, no files, the same on every machine.

Weights are drawn wide, so that logits have gaps (standard deviation 2 to 4 rather than 0.1) and a
greedy choice does not hang on the last bit of a float.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCAB = 300
CONTEXT = 128
BOS, EOS, PAD = 0, 1, 2
# The EOS is spelt as Qwen2's loader spells a token it adds of its own accord: the vocabulary stays 300.
SPECIAL = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<pad>"}
SPREAD = 0.4  # standard deviation of the initial weights; the libraries' own 0.02 gives flat logits

SENTENCES = (
    "The kettle sang while the rain went on and on outside the window.",
    "A good morning begins with bread, butter and a quiet street.",
    "The train was late again, and nobody at the station was surprised.",
    "She thought the film was bad, but the music in the end was good.",
)
# It writes the BOS itself, as chat templates do: encoding its output must not add another.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def tiny_tokenizer(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 300 tokens that can spell any text.

    adds_bos: whether encoding puts a BOS in front, as Llama's does and SmolLM2's does not.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CONTEXT, chat_template=CHAT_TEMPLATE, **SPECIAL
    )


def tiny_llama(
    vocab: int = VOCAB, hidden: int = 32, layers: int = 4, *, heads: int = 4, seed: int = 0
) -> LlamaForCausalLM:
    """Return a Llama with grouped key-value heads and tied embeddings, SmolLM2's own shape."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=CONTEXT,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        **_token_ids(),
    )
    return _build(LlamaForCausalLM, config, seed)


def tiny_gpt2(
    vocab: int = VOCAB, hidden: int = 32, layers: int = 4, *, heads: int = 4, seed: int = 0
) -> GPT2LMHeadModel:
    """Return a GPT-2: learnt absolute positions, which left padding must not shift."""
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_positions=CONTEXT,
        initializer_range=SPREAD,
        **_token_ids(),
    )
    return _build(GPT2LMHeadModel, config, seed)


def tiny_qwen2(
    vocab: int = VOCAB, hidden: int = 32, layers: int = 4, *, heads: int = 4, seed: int = 0
) -> Qwen2ForCausalLM:
    """Return a Qwen2: embeddings not tied, a tokenizer class of its own when loaded from a directory."""
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=CONTEXT,
        initializer_range=SPREAD,
        tie_word_embeddings=False,
        **_token_ids(),
    )
    return _build(Qwen2ForCausalLM, config, seed)


def tiny_gpt_neox(
    vocab: int = VOCAB, hidden: int = 32, layers: int = 4, *, heads: int = 4, seed: int = 0
) -> GPTNeoXForCausalLM:
    """Return a GPT-NeoX (Pythia): parallel residual, an unembedding called `embed_out`."""
    config = GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=CONTEXT,
        initializer_range=SPREAD,
        tie_word_embeddings=False,
        **_token_ids(),
    )
    return _build(GPTNeoXForCausalLM, config, seed)


ARCHITECTURES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "qwen2": tiny_qwen2,
    "gpt_neox": tiny_gpt_neox,
}


def save_tiny(directory: Path, architecture: str = "llama", *, adds_bos: bool = False, seed: int = 0) -> Path:
    """Write a tiny model and its tokenizer as `from_pretrained` expects them; return the directory."""
    ARCHITECTURES[architecture](seed=seed).save_pretrained(directory)
    tiny_tokenizer(adds_bos=adds_bos).save_pretrained(directory)
    return directory


def _token_ids() -> dict[str, int]:
    return {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}


def _build(model_class: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config).eval()
    model.generation_config = GenerationConfig(**_token_ids())
    return model
