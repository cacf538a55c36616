"""Generate text steered by rewards.

    python -m decoder.generate --beta 10
    python -m decoder.generate "The new phone is" --reward positive:4 --reward nontoxic:2
    python -m decoder.generate --prompts prompts.jsonl --num-return-sequences 25 --output generations.jsonl

On a terminal the plain and the steered text appear side by side; with --output, on a pipe, or where prompts
have betas of their own ({"prompt": "...", "betas": {"positive": 2.0}}), one JSON line a prompt. A run that
was interrupted goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoder.backend_options import Backend, Engine, backend_arguments, told
from decoder.cli import make_app, run

if TYPE_CHECKING:
    from decoder.config import DecodeConfig
    from decoder.decoder import Decoder
    from decoder.weighting import WeightedReward
    from prompts.reading import Prompt

Text = Annotated[list[str] | None, typer.Argument(help="Prompts to continue.", show_default=False)]
PromptFile = Annotated[
    str | None, typer.Option("--prompts", help="File of prompts, text or JSONL; - for standard input.")
]
Reward = Annotated[
    list[str] | None,
    typer.Option(help="Shipped name or directory, with its own beta as NAME:BETA; repeat to mix. [positive]"),
]
Beta = Annotated[float, typer.Option(help="Strength of rewards without their own; below 0: the opposite.")]
Schedule = Annotated[
    str, typer.Option("--beta-schedule", help="constant, or linear:START:END:STEPS: beta along the text.")
]
Samples = Annotated[int, typer.Option("--num-return-sequences", "-n", help="Samples a prompt.")]
Embed = Annotated[
    Path | None, typer.Option(help="Store that takes each sample's embedding, at no second pass.")
]
Output = Annotated[Path | None, typer.Option(help="JSONL file; run.json is kept beside it.")]


def generate(
    texts: Text = None,
    prompts: PromptFile = None,
    model: Annotated[str, typer.Option(help="Alias, directory, GGUF file or hub id.")] = "smollm2-135m",
    reward: Reward = None,
    beta: Beta = 1.0,
    beta_schedule: Schedule = "constant",
    reward_top_k: Annotated[int, typer.Option(help="Candidates a reward may reorder.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 32,
    do_sample: Annotated[bool, typer.Option(help="Sample, or take the best token.")] = True,
    temperature: Annotated[float, typer.Option(help="Applied after the rewards.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep the k best after the rewards; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep this much probability; 1 is off.")] = 1.0,
    num_return_sequences: Samples = 1,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    chat: Annotated[bool, typer.Option(help="Put plain prompts through the model's chat template.")] = False,
    output: Output = None,
    overwrite: Annotated[bool, typer.Option(help="Start the output over instead of resuming it.")] = False,
    embed: Embed = None,
    trace: Annotated[bool, typer.Option(help="Write every step's candidates, rewards and ranks.")] = False,
    limit: Annotated[int | None, typer.Option(help="Use the first prompts only.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Rows decoded together.")] = 32,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with a hub model.")] = False,
    backend: Backend = "hf",
    engine: Engine = None,
) -> None:
    """Generate text steered by rewards that are read off the model's own forward pass."""
    asked = collect_prompts(texts, prompts)[:limit]  # before the imports that take seconds

    from decoder.config import make_config
    from decoder.decoder import Decoder

    numbers = {
        "max_new_tokens": max_new_tokens, "do_sample": do_sample, "temperature": temperature, "top_k": top_k,
        "top_p": top_p, "num_return_sequences": num_return_sequences, "seed": seed, "batch_size": batch_size,
        "reward_top_k": reward_top_k, "beta_schedule": beta_schedule,
    }  # fmt: skip
    config = make_config(numbers)
    pairs = pick_rewards(reward or ["positive"], beta, asked)
    names = [name for name, _ in pairs]
    source = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust_remote_code}
    source |= backend_arguments(backend, engine, names, here={"--trace": trace, "--embed": embed})
    decoder = Decoder.from_pretrained(model, **source)  # type: ignore[arg-type]
    weighted = decoder.weigh(names, [strength for _, strength in pairs], asked)
    settings = {"model": model, "chat": chat, "trace": trace, **told(backend)}
    deliver(decoder, asked, weighted, config, settings, output, embed=embed, overwrite=overwrite)


def deliver(
    decoder: Decoder,
    prompts: list[Prompt],
    rewards: list[WeightedReward],
    config: DecodeConfig,
    settings: dict[str, Any],
    output: Path | None,
    *,
    embed: Path | None,
    overwrite: bool,
) -> None:
    """Show plain and steered text side by side on a terminal, or write records, as `write` does."""
    from decoder.terminal import show_side_by_side

    plain = output is None and embed is None and not settings["trace"]
    if plain and sys.stdout.isatty() and not any(each.betas for each in prompts):
        show_side_by_side(decoder, prompts, rewards, config, chat=settings["chat"], title=settings["model"])
    else:
        write(decoder, prompts, rewards, config, settings, output, embed=embed, overwrite=overwrite)


def pick_rewards(rewards: list[str], beta: float, prompts: Sequence[Prompt] = ()) -> list[tuple[str, float]]:
    """Return (name, beta) pairs; a wrong name is found here, before a large model is loaded."""
    from decoder.models import quiet_transformers
    from decoder.weighting import label_rewards, pair_betas
    from rewards.load import find

    quiet_transformers()
    pairs = [(str(name), strength) for name, strength in pair_betas(rewards, beta)]
    for name, _ in pairs:
        find(name)
    label_rewards(pairs, prompts)
    return pairs


def collect_prompts(texts: list[str] | None, file: str | None) -> list[Prompt]:
    """Return the prompts asked for, or the built-in ones. Raises UserError for both kinds at once."""
    from decoder.contracts import UserError
    from prompts import builtin
    from prompts.reading import from_arguments, read

    if texts and file:
        raise UserError(f"prompts given both as arguments and in {file}: choose one")
    if texts:
        return from_arguments(texts)
    return read(file) if file else builtin()


def write(
    decoder: Decoder,
    prompts: list[Prompt],
    rewards: list[WeightedReward],
    config: DecodeConfig,
    settings: dict[str, Any],
    output: Path | None,
    *,
    embed: Path | None = None,
    overwrite: bool,
) -> None:
    """Write one JSON line a prompt to the output, resuming it, or to standard output.

    embed: the store that takes the samples' embeddings. Raises UserError for prompts with betas of their own,
    where the rewards were weighed without them, and for a store of other embeddings.
    """
    from decoder.batching import plan_batches
    from decoder.models import LoadedModel
    from decoder.records import about, fingerprint, to_record
    from decoder.run_store import RunStore, StdoutStore
    from decoder.terminal import progress
    from decoder.weighting import require_own_betas
    from rewards.embed_decoding import open_sink

    require_own_betas(prompts, rewards)
    token_ids = decoder.tokenise(prompts, config, chat=settings["chat"])
    samples = config.num_return_sequences
    if output is None:
        opened: RunStore | StdoutStore = StdoutStore(sys.stdout, prompts, samples)
    else:
        identity = fingerprint(decoder, rewards, config, settings)
        opened = RunStore.open(output, identity, about(), prompts, samples, resume=not overwrite)
    loaded, ends = LoadedModel(decoder.lm, decoder.tokenizer), decoder.backend.endings.ids(config.stop)
    with (
        opened as store,
        open_sink(embed, loaded, ends, chat=settings["chat"]) as sink,
        progress("generating", len(prompts) * samples, store.done_samples) as advance,
    ):
        for batch in plan_batches([len(ids) for ids in token_ids], samples, config.batch_size):
            missing = {p: set(store.missing(p)) for p in batch.prompts}
            written = not any(sample in missing[batch.prompts[i]] for i, sample in batch.rows)
            if written and not [*sink.lacking([batch], prompts)]:
                continue
            # A batch that an interrupted run had begun is decoded whole: its numbers come out the same.
            draw = partial(decoder.complete, batch, token_ids, rewards, config, trace=settings["trace"])
            for done in sink.complete(batch, prompts, token_ids, draw):
                if done.sample in missing[done.prompt]:
                    store.add(done.prompt, done.sample, to_record(done, config.seed))
                    advance()
        store.finish()


app = make_app(generate)

if __name__ == "__main__":
    run(app)
