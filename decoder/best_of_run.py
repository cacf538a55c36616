"""A Best-of-N run on the command line: candidates to a resumable file, winners beside it, a summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from decoder.backend_options import backend_arguments
from decoder.best_of import BestOf, check_dropping, to_record
from decoder.config import DecodeConfig
from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.dropping import DropSchedule
from decoder.generate import pick_rewards
from decoder.pending import to_json
from decoder.records import about, fingerprint
from decoder.run_store import RunStore, print_line
from decoder.terminal import progress
from prompts.reading import Prompt
from rewards.choice import Candidate, Choice, NoWinnerError, choose
from rewards.scorers import Scorers, has_running_score, load_scorers, name_scorers, running_scorers

Line = Mapping[str, Any]


def load(
    prompts: Sequence[Prompt],
    config: DecodeConfig,
    scorers: Sequence[str],
    steering: tuple[Sequence[str], float | None],
    schedule: DropSchedule,
    model: Mapping[str, Any],
    *,
    chat: bool,
) -> BestOf:
    """Return the job, everything loaded and checked. steering: rewards, and the beta of those without.

    model: as `Decoder.from_pretrained` takes it, and `engine`, options of the command line. A wrong reward is
    found before the model is loaded.
    """
    first = next(iter(name_scorers(scorers)[0]))
    check_dropping(schedule, config, first, runs=has_running_score(first))
    rewards, beta = steering
    pairs = pick_rewards([*rewards], 1.0 if beta is None else beta, prompts)
    decoder = _open(scorers, [name for name, _ in pairs], schedule, model)
    weighted = decoder.weigh([name for name, _ in pairs], [strength for _, strength in pairs], prompts)
    token_ids = decoder.tokenise(prompts, config, chat=chat)
    ends = decoder.backend.endings.ids(config.stop)
    probe = partial(decoder.backend.load_probe, ends=ends)
    loaded = load_scorers(scorers, probe, device=model["device"], dtype=model["dtype"])
    return BestOf(decoder, prompts, token_ids, weighted, config, loaded, schedule)


def _open(
    scorers: Sequence[str], rewards: Sequence[str], schedule: DropSchedule, model: Mapping[str, Any]
) -> Decoder:
    """Return the generator, where the command line wants it."""
    backend, engine = model.get("backend", "hf"), model.get("engine")
    dropping = {"early dropping": schedule.drops}
    place = backend_arguments(backend, engine, rewards, running_scorers(scorers), here=dropping)
    rest = {key: value for key, value in model.items() if key not in ("backend", "engine")}
    return Decoder.from_pretrained(**rest, **place)


def write(
    job: BestOf, rule: str, settings: Mapping[str, Any], output: Path | None, *, overwrite: bool
) -> list[Line]:
    """Draw what is missing, write every candidate and every winner, and return the winners' lines.

    Raises UserError where no sample of a prompt has a score, after the winners of the others are out.
    """
    if output is None:
        lines, failed = _winners(_in_memory(job), job.scorers, rule)
        for line in lines:
            print_line(sys.stdout, to_json(line) + b"\n")
    else:
        _store(job, settings, output, overwrite=overwrite)
        lines, failed = _winners(zip(job.prompts, _stored(output), strict=True), job.scorers, rule)
        _write_winners(output.with_suffix(f".best{output.suffix}"), lines)
    if failed:
        raise UserError(
            f"{failed[0]}; {len(failed)} of {len(job.prompts)} prompts have no winner, all else is written"
        )
    return lines


def _winners(
    groups: Iterable[tuple[Prompt, Sequence[Line]]], scorers: Scorers, rule: str
) -> tuple[list[Line], list[NoWinnerError]]:
    """Return the winners' lines, and what is said of the prompts without one."""
    lines: list[Line] = []
    failed: list[NoWinnerError] = []
    for prompt, records in groups:
        try:
            lines.append(winner_line(prompt, records, scorers, rule))
        except NoWinnerError as error:
            failed.append(error)
    return lines, failed


def _store(job: BestOf, settings: Mapping[str, Any], output: Path, *, overwrite: bool) -> None:
    """Write one JSON line a prompt with all its candidates, going on where an earlier run stopped."""
    samples = job.config.num_return_sequences
    identity = fingerprint(job.decoder, job.rewards, job.config, settings)
    identity |= {"scorers": job.scorers.digests(), "drop": asdict(job.schedule)}
    if job.schedule.drops:
        identity["dropped_by"] = job.scorers.names[0]
    opened = RunStore.open(output, identity, about(), job.prompts, samples, resume=not overwrite)
    with opened as store, progress("drawing", len(job.prompts) * samples, store.done_samples) as advance:
        for batch in job.batches():
            missing = {p: set(store.missing(p)) for p in batch.prompts}
            if not any(sample in missing[batch.prompts[i]] for i, sample in batch.rows):
                continue
            for done in job.draw(batch):
                if done.sample in missing[done.prompt]:
                    record = to_record(done, job.prompts[done.prompt], job.config.seed)
                    store.add(done.prompt, done.sample, record)
                    advance()
        store.finish()


def _in_memory(job: BestOf) -> Iterator[tuple[Prompt, list[Line]]]:
    """Yield prompts, in order, with their candidates' records."""
    found: list[list[Line]] = [[] for _ in job.prompts]
    with progress("drawing", len(job.prompts) * job.config.num_return_sequences) as advance:
        for batch in job.batches():
            for done in job.draw(batch):
                found[done.prompt].append(to_record(done, job.prompts[done.prompt], job.config.seed))
                advance()
    for prompt, records in zip(job.prompts, found, strict=True):
        yield prompt, sorted(records, key=lambda record: record["sample_index"])


def _stored(output: Path) -> Iterator[list[Line]]:
    with output.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["generations"]


def winner_line(prompt: Prompt, records: Sequence[Line], scorers: Scorers, rule: str) -> Line:
    """Return the best of a prompt's candidates and the combined scores of all of them."""
    choice = choose_record(prompt, records, scorers, rule)
    best = records[choice.winner]
    kept = {key: best[key] for key in ("text", "sample_index", "finish_reason") if key in best}
    scores = [None if score != score else score for score in choice.scores.tolist()]
    line = {"id": prompt.id, "prompt": prompt.record(), "best": kept, "scores": scores}
    if prompt.answer is not None:
        line["correct"] = best["correct"]
        line["candidates_correct"] = [record["correct"] for record in records]
    return line | {"tokens": sum(record["num_tokens"] for record in records)}


def choose_record(prompt: Prompt, records: Sequence[Line], scorers: Scorers, rule: str) -> Choice:
    """Return the choice among candidates as a file holds them; a score of null did not come out."""
    candidates = [
        Candidate(
            record["text"],
            {name: float("nan") if v is None else v for name, v in record.get("scores", {}).items()},
            record["finish_reason"] == "dropped",
        )
        for record in records
    ]
    return choose(candidates, prompt, scorers, rule)


def _write_winners(path: Path, lines: Sequence[Line]) -> None:
    """Write one line a prompt, whole or not at all."""
    half = path.with_name(f".{path.name}.tmp")
    try:
        half.write_bytes(b"".join(to_json(line) + b"\n" for line in lines))
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise UserError(f"cannot write {path} ({error.strerror}); the candidates are kept") from None


def report(lines: Sequence[Line]) -> None:
    """Tell on standard error how many prompts were chosen for, and how right the choices are."""
    console = Console(stderr=True, highlight=False)
    tokens = sum(line["tokens"] for line in lines)
    console.print(
        f"{len(lines)} prompts, {sum(len(line['scores']) for line in lines)} samples, {tokens} tokens"
    )
    judged = [line for line in lines if line.get("correct") is not None]
    if judged:
        each = [[c for c in line["candidates_correct"] if c is not None] for line in judged]
        chosen = sum(line["correct"] for line in judged) / len(judged)
        single = sum(sum(found) / len(found) for found in each) / len(judged)
        best = sum(max(found) for found in each) / len(judged)
        console.print(f"right: chosen {chosen:.3f}, a single sample {single:.3f}, at best {best:.3f}")
    sys.stderr.flush()
