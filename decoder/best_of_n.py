"""Draw N samples a prompt and choose the best, scored by the pass that draws them.

    python -m decoder.best_of_n "The new restaurant is" --n 16 --scorer positive
    python -m decoder.best_of_n --problems arithmetic --n 16 --scorer probes/arithmetic --stop '\\n'
    python -m decoder.best_of_n --prompts prompts.jsonl --scorer logprob --scorer hf:MODEL --combine ranking

Standard output has one JSON line a prompt: the best sample and everybody's scores. With --output FILE all
candidates are kept there, and the winners in FILE's name with .best before its ending; a run that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from decoder.backend_options import Backend, Engine, told
from decoder.cli import make_app, run
from decoder.generate import PromptFile, Text, collect_prompts

if TYPE_CHECKING:
    from prompts.reading import Prompt

RULES = "ranking (worst rank), rank_sum, scaling (min-max), zscore; vote (weighted majority)"
Problems = Annotated[
    str | None,
    typer.Option(help="Problems with answers: arithmetic:SPLIT:N:SEED, a JSONL file, or OWNER/NAME."),
]
Scorer = Annotated[
    list[str] | None,
    typer.Option(
        help="logprob, self-certainty, majority, oracle, hf:MODEL, a shipped reward or a directory; "
        "NAME:WEIGHT; repeat to combine. [logprob]"
    ),
]
Style = Annotated[str | None, typer.Option(help="How problems are asked: chat or plain.")]
N = Annotated[int, typer.Option("--n", "-n", help="Samples a prompt.")]
Combine = Annotated[str, typer.Option(help=f"Of several scorers: {RULES}.")]
DropAt = Annotated[
    list[int] | None,
    typer.Option("--drop-schedule", help="Token counts after which only the best half goes on."),
]
DropKeep = Annotated[float, typer.Option(help="Share that goes on, instead of half.")]
DropMargin = Annotated[float | None, typer.Option(help="Stop a prompt once its leader is ahead by so much.")]
DropFirst = Annotated[int, typer.Option(help="Token count from which --drop-margin looks.")]
Model = Annotated[str, typer.Option(help="Alias, directory, GGUF file or hub id.")]
Reward = Annotated[
    list[str] | None, typer.Option(help="Steer the samples too: name or directory, NAME:BETA; repeat.")
]
Beta = Annotated[float | None, typer.Option(help="Strength of rewards without their own. [1]")]
RewardTopK = Annotated[int, typer.Option(help="Candidates a reward may reorder.")]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option(help="Applied after the rewards.")]
TopK = Annotated[int, typer.Option(help="Keep the k best after the rewards; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Keep this much probability; 1 is off.")]
Stop = Annotated[str, typer.Option(help=r"Characters that end a sample, such as '\n'.")]
Seed = Annotated[int, typer.Option(help="Seed of the samples.")]
Chat = Annotated[bool, typer.Option(help="Put plain prompts through the model's chat template.")]
Output = Annotated[Path | None, typer.Option(help="JSONL of all candidates; the winners go beside it.")]
Overwrite = Annotated[bool, typer.Option(help="Start the output over instead of resuming it.")]
Limit = Annotated[int | None, typer.Option(help="Use the first prompts only.", min=1)]
BatchSize = Annotated[int, typer.Option(help="Rows decoded together.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with a hub model.")]


def best_of_n(
    texts: Text = None,
    prompts: PromptFile = None,
    problems: Problems = None,
    style: Style = None,
    n: N = 16,
    scorer: Scorer = None,
    combine: Combine = "ranking",
    drop_schedule: DropAt = None,
    drop_keep: DropKeep = 0.5,
    drop_margin: DropMargin = None,
    drop_first: DropFirst = 8,
    model: Model = "smollm2-135m",
    reward: Reward = None,
    beta: Beta = None,
    reward_top_k: RewardTopK = 20,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    stop: Stop = "",
    seed: Seed = 0,
    chat: Chat = False,
    output: Output = None,
    overwrite: Overwrite = False,
    limit: Limit = None,
    batch_size: BatchSize = 64,
    dtype: Dtype = "auto",
    device: Device = "auto",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    backend: Backend = "hf",
    engine: Engine = None,
) -> None:
    """Draw N samples a prompt and choose the best by scores read off the same forward pass."""
    asked = _collect(texts, prompts, problems, style)[:limit]
    scorers, rewards = scorer or ["logprob"], reward or []
    _check(n, scorers, combine, rewards, beta, asked)
    from decoder.best_of_run import load, report, write
    from decoder.config import make_config
    from decoder.dropping import DropSchedule

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "reward_top_k": reward_top_k}
    numbers = {"max_new_tokens": max_new_tokens, "num_return_sequences": n, "batch_size": batch_size}
    config = make_config({**sampling, **numbers, "seed": seed, "stop": unescape(stop)})
    schedule = DropSchedule(tuple(drop_schedule or ()), drop_keep, drop_margin, drop_first)
    source = {"dtype": dtype, "device": device, "revision": revision, "trust_remote_code": trust_remote_code}
    place = {"model": model, "backend": backend, "engine": engine, **source}
    job = load(asked, config, scorers, (rewards, beta), schedule, place, chat=chat)
    report(write(job, combine, {"model": model, "chat": chat, **told(backend)}, output, overwrite=overwrite))


def unescape(stop: str) -> str:
    r"""Return the characters of an option in which a line break is spelt \n and a tab \t."""
    return stop.replace("\\n", "\n").replace("\\t", "\t")


def _collect(
    texts: list[str] | None, prompts: str | None, problems: str | None, style: str | None
) -> list[Prompt]:
    from decoder.contracts import UserError
    from prompts.problems import read_problems

    if style not in (None, "chat", "plain"):
        raise UserError(f"style is {style!r}: choose chat or plain")
    if problems is None and style:
        raise UserError(f"style is {style!r}, but there are no --problems to ask: leave out --style")
    if problems is None:
        return collect_prompts(texts, prompts)
    if texts or prompts:
        raise UserError(f"prompts given both as {prompts or 'arguments'} and as problems: choose one")
    return read_problems(problems, style="chat" if style == "chat" else "plain" if style else None)


def _check(
    n: int, scorers: list[str], rule: str, rewards: list[str], beta: float | None, prompts: list[Prompt]
) -> None:
    """Refuse what is wrong before a large model is loaded for it."""
    from decoder.contracts import UserError
    from decoder.models import quiet_transformers
    from rewards.choice import check_rule
    from rewards.scorers import name_scorers

    quiet_transformers()
    if n < 1:
        raise UserError(f"n is {n}: give at least 1 sample a prompt")
    names, weights = name_scorers(scorers)
    check_rule(rule, len(names), weights)
    if beta is not None and not rewards:
        raise UserError(f"beta is {beta}, but there is no --reward: name one, or leave out --beta")
    missing = [prompt for prompt in prompts if prompt.answer is None]
    if "oracle" in names and missing:
        raise UserError(f"prompt {missing[0].id!r} has no answer, which the oracle needs: add one")


app = make_app(best_of_n, lists=["--drop-schedule"])

if __name__ == "__main__":
    run(app)
