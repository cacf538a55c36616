"""`Decoder`: a model that generates text under rewards, from Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from decoder.backend import Backend
from decoder.batching import Batch, plan_batches
from decoder.best_of import BestOf, Selection
from decoder.best_of import run as run_best_of
from decoder.config import DecodeConfig, make_config
from decoder.contracts import Completion, Probe, TokenEvent, TokenReward, UserError
from decoder.dropping import DropSchedule
from decoder.hf_backend import HFBackend
from decoder.job import Job
from decoder.loop import Referee
from decoder.models import DEFAULT_MODEL, LoadedModel, load_model
from decoder.tokenise import as_prompts, tokenise
from decoder.weighting import RewardLike, Rewards, WeightedReward, pair_betas, weigh_rewards
from prompts.reading import Prompt

if TYPE_CHECKING:
    from decoder.vllm_backend import VLLMBackend


@dataclass(frozen=True, slots=True)
class Generation:
    """A prompt and its samples. `text` is the first sample's continuation."""

    prompt: Prompt
    samples: tuple[Completion, ...]

    @property
    def text(self) -> str:
        """Return the first sample's continuation."""
        return self.samples[0].text


class Decoder:
    """A generator with its tokenizer; rewards are loaded once and shared by all calls.

    >>> decoder = Decoder.from_pretrained()
    >>> decoder.generate("The new restaurant is", reward="positive", beta=10)[0].text
    """

    def __init__(self, loaded: LoadedModel | Backend) -> None:
        """Take a model that is loaded, or an engine that runs."""
        self.backend: Backend = (
            HFBackend(loaded.lm, loaded.tokenizer) if isinstance(loaded, LoadedModel) else loaded
        )
        self.lm, self.tokenizer = self.backend.lm, self.backend.tokenizer
        self._rewards: dict[str, TokenReward] = {}

    @classmethod
    def from_pretrained(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        dtype: str = "auto",
        device: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        backend: str = "hf",
        rewards: Sequence[str | Path] | None = None,
        probes: Sequence[str | Path] = (),
        **engine: Any,
    ) -> Decoder:
        """Load a generator by alias, directory, GGUF file or hub id. Raises UserError if it cannot.

        backend: "hf", transformers in this process, or "vllm", an engine of vLLM's. The latter needs to know
        when it starts which rewards and probes its calls may name (rewards: those that ship with the project
        and fit the model, unless some are given) and takes vLLM's own arguments as `engine`.
        """
        if backend == "vllm":
            place = {"revision": revision, "trust_remote_code": trust_remote_code}
            return cls(_start_vllm(model, rewards, probes, dtype, device, {**place, **engine}))
        if backend != "hf":
            raise UserError(f"unknown backend {backend!r}: choose hf or vllm")
        if engine:
            raise UserError(f"unknown argument {next(iter(engine))!r}: backend='vllm' alone takes more")
        return cls(
            load_model(
                model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
            )
        )

    def generate(
        self,
        prompts: Any,
        *,
        reward: Rewards = None,
        beta: float | Sequence[float] | None = None,
        chat: bool = False,
        trace: bool = False,
        **generation: Any,
    ) -> list[Generation]:
        """Return a `Generation` a prompt, in order.

        prompts: a text, a list of texts, one conversation (list of {"role", "content"}), a list of
            conversations, or `Prompt`s.
        reward: a shipped name, "name:beta", a directory, a `TokenReward`, several of these, or
            {name: beta}. beta: one number or one a reward, 1 by default; negative asks for the opposite.
            A prompt with betas of its own uses those.
        chat: put plain texts through the model's chat template; conversations always are.
        trace: keep every step's candidates in the completions.
        generation: max_new_tokens, do_sample, temperature, top_k, top_p, num_return_sequences, seed, stop,
            batch_size, reward_top_k, beta_schedule, or generation_config=; a name given here wins over it.
        Raises UserError for anything that cannot be honoured.
        """
        config = self._configure(generation)
        texts = as_prompts(prompts)
        token_ids = self.tokenise(texts, config, chat=chat)
        rewards = self.weigh(reward, beta, texts)
        samples: list[list[Completion]] = [[] for _ in texts]
        for batch in plan_batches(
            [len(ids) for ids in token_ids], config.num_return_sequences, config.batch_size
        ):
            for completion in self.complete(batch, token_ids, rewards, config, trace=trace):
                samples[completion.prompt].append(completion)
        return [
            Generation(prompt, tuple(sorted(found, key=lambda completion: completion.sample)))
            for prompt, found in zip(texts, samples, strict=True)
        ]

    def best_of_n(
        self,
        prompts: Any,
        *,
        scorer: Any = "logprob",
        n: int = 16,
        combine: str = "ranking",
        reward: Rewards = None,
        beta: float | Sequence[float] | None = None,
        drop: DropSchedule = DropSchedule(),
        chat: bool = False,
        **generation: Any,
    ) -> list[Selection]:
        """Return a `Selection` a prompt: n samples, their scores, the best. Other arguments as in `generate`.

        Drawn as the command does it, at temperature 0.7 and with 64 tokens, unless numbers are given.
        scorer: one or several names, directories, `Probe`s, `TokenReward`s or `TextReward`s, as in
            `rewards.scorers`; combine: the rule for several. drop: when weak samples are given up.
        """
        from rewards.scorers import load_scorers

        if n < 1:
            raise UserError(f"n is {n}: give at least 1 sample a prompt")
        usual = {} if "generation_config" in generation else {"temperature": 0.7, "max_new_tokens": 64}
        config = self._configure({"batch_size": 64, **usual, **generation, "num_return_sequences": n})
        texts = as_prompts(prompts)
        token_ids = self.tokenise(texts, config, chat=chat)
        probe = partial(self.backend.load_probe, ends=self.backend.endings.ids(config.stop))
        scorers = load_scorers(scorer, probe)
        job = BestOf(self, texts, token_ids, self.weigh(reward, beta, texts), config, scorers, drop)
        return run_best_of(job, combine)

    def stream(
        self,
        prompt: Any,
        *,
        reward: Rewards = None,
        beta: float | Sequence[float] | None = None,
        chat: bool = False,
        unsteered: bool = False,
        **generation: Any,
    ) -> Iterator[TokenEvent]:
        """Yield the tokens of one prompt's samples as they are drawn; arguments as in `generate`.

        Event.row is the sample's number. With `unsteered`, rows 0..N-1 are plain and N..2N-1 steered,
        over the same candidates and with the same random numbers: the reward is the only difference.
        """
        config = self._configure(generation)
        asked = as_prompts(prompt)
        if len(asked) > 1:
            raise UserError(f"stream was given {len(asked)} prompts: give one, or take generate")
        (ids,) = self.tokenise(asked, config, chat=chat)
        yield from self.stream_tokens(ids, self.weigh(reward, beta, asked), config, unsteered=unsteered)

    def stream_tokens(
        self,
        token_ids: Sequence[int],
        rewards: Sequence[WeightedReward],
        config: DecodeConfig,
        *,
        unsteered: bool,
    ) -> Iterator[TokenEvent]:
        """Yield the tokens of one tokenised prompt's samples; rows as in `stream`."""
        samples = list(range(config.num_return_sequences))
        own = [reward.strength(0) for reward in rewards]
        betas = [[0.0] * len(own) for _ in samples] * unsteered + [own for _ in samples]
        rows = [(0, sample) for sample in samples] * (1 + unsteered)
        numbers = config.sampling, config.max_new_tokens, config.seed
        job = Job([token_ids], rows, [0], rewards, *numbers, betas=betas, stop=config.stop)
        yield from self.backend.stream(dataclasses.replace(job, beta_schedule=config.beta_schedule))

    def complete(
        self,
        batch: Batch,
        token_ids: Sequence[Sequence[int]],
        rewards: Sequence[WeightedReward],
        config: DecodeConfig,
        *,
        trace: bool = False,
        probes: Mapping[str, Probe] = MappingProxyType({}),
        referee: Referee | None = None,
    ) -> Iterator[Completion]:
        """Yield the completions of one planned batch, each as its row ends, scored by the probes."""
        ids = [token_ids[prompt] for prompt in batch.prompts]
        numbers = config.sampling, config.max_new_tokens, config.seed
        yield from self.backend.complete(
            Job(
                ids, batch.rows, batch.prompts, rewards, *numbers, trace=trace, stop=config.stop,
                probes=probes, referee=referee, beta_schedule=config.beta_schedule,
            )
        )  # fmt: skip

    def tokenise(self, prompts: Sequence[Prompt], config: DecodeConfig, *, chat: bool) -> list[list[int]]:
        """Return each prompt's token ids. Raises UserError for a prompt that leaves no room to generate, and
        for more candidates than there are tokens."""
        size, limit = self.lm.identity.vocab_size, self.lm.context_length()
        for name in ("top_k", "reward_top_k"):
            asked = getattr(config.sampling, name)
            if asked > size:
                raise UserError(f"{name} is {asked}: the model has {size} tokens, give at most that")
        return tokenise(self.tokenizer, prompts, chat=chat, room=config.max_new_tokens, context_length=limit)

    def weigh(
        self, reward: Rewards, beta: float | Sequence[float] | None = None, prompts: Sequence[Prompt] = ()
    ) -> list[WeightedReward]:
        """Return the rewards that act in a call, loaded and checked; prompts: those of the call, in order."""
        return weigh_rewards(pair_betas(reward, beta), self.load_reward, prompts)

    def load_reward(self, reward: RewardLike) -> TokenReward:
        """Return a reward ready for this model, by shipped name or directory (kept), or the object itself."""
        if isinstance(reward, TokenReward):
            return reward
        if str(reward) not in self._rewards:
            self._rewards[str(reward)] = self.backend.load_reward(reward)
        return self._rewards[str(reward)]

    def _configure(self, generation: Mapping[str, Any]) -> DecodeConfig:
        """Return the numbers of a call; refuse a generation_config whose texts end elsewhere than ours."""
        config, base = make_config(generation), generation.get("generation_config")
        ends, own = getattr(base, "eos_token_id", None), set(self.backend.endings.stop_ids.tolist())
        if ends is not None and ({ends} if isinstance(ends, int) else set(ends)) != own:
            raise UserError(
                f"generation_config ends texts at {ends}, the model at {sorted(own)}: set eos_token_id in "
                "the model's own generation_config instead"
            )
        return config


def _start_vllm(
    model: str,
    rewards: Sequence[str | Path] | None,
    probes: Sequence[str | Path],
    dtype: str,
    device: str,
    engine: Mapping[str, Any],
) -> VLLMBackend:
    from decoder.vllm_backend import VLLMBackend
    from decoder.vllm_engine import plan_engine

    if device != "auto":
        raise UserError(f"device is {device!r}: vLLM runs on the device it was built for; leave it out")
    return VLLMBackend(plan_engine(model, rewards, probes, dtype=dtype, **engine))
