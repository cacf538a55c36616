"""What every command shares: how it ends, and `tiller`, which runs them all by name."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn

import typer

from decoder.contracts import UserError

# name -> (module with `app`, what it does). Imported only when run, so that --help stays quick.
COMMANDS = {
    "generate": ("decoder.generate", "Generate text steered by rewards."),
    "best-of-n": ("decoder.best_of_n", "Draw N samples a prompt and choose the best."),
    "serve": ("decoder.serve", "Serve a model that any OpenAI client steers (vLLM)."),
    "check": ("decoder.check", "Check a model and a reward: batching, caching, beta 0, vocabulary."),
    "train-arm": ("rewards.train_arm", "Train a steering reward from your labels."),
    "train-rad": (
        "rewards.train_rad",
        "Train a RAD reward: it reads every candidate, with a model of its own.",
    ),
    "train-expert": ("rewards.train_expert", "Train an expert and an anti-expert (DExperts)."),
    "train-elhsr": ("rewards.train_elhsr", "Train a Best-of-N probe from labelled samples."),
    "embed": ("rewards.embed", "Embed texts or samples into a store."),
    "relabel": ("rewards.relabel", "Give rows of a store more labels."),
    "merge": ("rewards.merge", "Several stores as one, their files shared."),
    "preference-data": ("rewards.preference_data", "Public preference data as responses and pairs."),
    "lens": ("rewards.lens", "Augment preference pairs in the space of their embeddings."),
    "train-head": ("rewards.train_head", "Train a reward head on stored embeddings."),
    "score": ("rewards.score", "Score texts or a store with a saved head."),
    "sweep": ("rewards.sweep", "Train and measure thousands of reward heads from one store."),
    "measure": ("eval.run", "Measure generations: toxicity, sentiment, perplexity, diversity."),
    "compare": ("eval.compare", "Compare two evaluations, paired over prompts."),
    "tradeoff": ("eval.tradeoff", "Attribute against perplexity over beta: table, picture, HTML report."),
    "bench": ("eval.bench", "Benchmarks: decoding, steering, choosing, judges."),
}

# Newer typer carries its own copy of click and exports this class only as a base.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
CONTEXT: dict[str, Any] = {
    "token_normalize_func": lambda name: name.replace("_", "-"),  # it sees names without their dashes
    "help_option_names": ["-h", "--help"],
}


def make_app(command: Callable[..., Any], lists: Sequence[str] = ()) -> typer.Typer:
    """Return a one-command typer app; options may be spelled with `_` or `-` alike.

    lists: options that take several values in a row, `--betas 0 1 2`, beside being repeatable.
    """
    app = typer.Typer(**SETTINGS)
    app.command(context_settings=CONTEXT | {"obj": tuple(lists)})(_ending_quietly(command))
    return app


def make_group(
    commands: Mapping[str, Callable[..., Any]], lists: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> typer.Typer:
    """Return a typer app with a subcommand for each function; lists: for each, as in `make_app`."""
    app = typer.Typer(**SETTINGS, context_settings=CONTEXT)
    app.callback()(lambda: None)
    for name, command in commands.items():
        settings = CONTEXT | {"obj": tuple(lists.get(name, ()))}
        app.command(name, context_settings=settings)(_ending_quietly(command))
    return app


def _ending_quietly(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command, but ending well when the reader of its output leaves, as `| head` does."""

    @functools.wraps(command)  # typer reads the signature through it
    def wrapped(*arguments: Any, **options: Any) -> Any:
        try:
            code = command(*arguments, **options)
            sys.stdout.flush()
        except BrokenPipeError:  # typer itself would exit with 1, which means a failed check here
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return code

    return wrapped


def run(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run an app and exit: 0, 1 for a check that failed, 2 with one line for bad input, 130 for Ctrl-C."""
    code: Any = 0
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = app(args=_repeat_lists(app, given), standalone_mode=False)
    except UsageError as error:
        _complain(error.format_message())  # type: ignore[attr-defined]
        code = 2
    except UserError as error:
        _complain(str(error))
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:  # typer may have turned the interrupt into this code already
        _complain("interrupted; what was finished is kept")
    sys.exit(code if isinstance(code, int) else 0)


def _repeat_lists(app: typer.Typer, arguments: Sequence[str]) -> list[str]:
    """Return `--betas 0 -1` as `--betas 0 --betas -1`, up to the next option, for options that are lists."""
    declared = [command.context_settings or {} for command in app.registered_commands]
    lists = {name for settings in declared for name in settings.get("obj") or ()}
    spread: list[str] = []
    current: str | None = None
    for argument in arguments:
        if argument.startswith("-") and not _is_number(argument):
            option = argument.replace("_", "-")
            current = option if option in lists else None
            if current is None:
                spread.append(argument)
        else:
            spread += [current, argument] if current else [argument]
    return spread


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _complain(message: str) -> None:
    print("error:", " ".join(message.split()), file=sys.stderr)


def main() -> None:
    """Entry point of the console command `tiller`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [f"tiller {name}"]
        run(importlib.import_module(COMMANDS[sys.argv[0].split()[1]][0]).app)
    listing = "\n".join(f"  {name:<15} {about}" for name, (_, about) in COMMANDS.items())
    usage = f"usage: tiller COMMAND [OPTIONS]\n\n{listing}\n\ntiller COMMAND --help tells the options."
    if name in ("-h", "--help"):
        print(usage)
        return
    _complain(f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}")
    sys.exit(2)


if __name__ == "__main__":
    main()
