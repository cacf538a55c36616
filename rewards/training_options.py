"""What the commands that train token rewards share: records of options that a command line takes whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from decoder.contracts import UserError

if TYPE_CHECKING:
    from rewards.arm_material import DataOptions

Command = TypeVar("Command", bound=Callable[..., Any])
Record = TypeVar("Record")

Data = Annotated[
    list[str],
    typer.Argument(
        help="CSV, TSV, JSONL or Parquet files, data set folders or hub ids (owner/name). "
        "FILE::text=COLUMN,label=COLUMN,positive=VALUE overrides the options for one of them.",
        metavar="DATA...",
    ),
]


@dataclass(frozen=True, slots=True)
class TextOptions:
    """Which texts and labels to learn from."""

    text_column: Annotated[
        str | None, typer.Option(help="Name, or position from 0 in a file without a header.")
    ] = None
    label_column: Annotated[
        list[str] | None,
        typer.Option(help="As --text-column. Several times: a reward, or an output of one, for each."),
    ] = None
    positive_label: Annotated[
        list[str] | None, typer.Option(help="A value that counts as 1, all others as 0. May be repeated.")
    ] = None
    detokenize: Annotated[bool, typer.Option(help="Undo the spacing of tokenised corpora (SST-2).")] = False
    clean_social: Annotated[bool, typer.Option(help="Strip RT, @names, links and the like.")] = False
    validation: Annotated[
        str | None, typer.Option(help="Choose and calibrate on this file instead of an eighth of DATA.")
    ] = None
    test: Annotated[list[str] | None, typer.Option(help="Only report on this file. May be repeated.")] = None
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most this many texts of DATA.")] = None
    max_length: Annotated[int, typer.Option(min=2, help="Tokens read of a text.")] = 256
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of the fit.")] = 0

    def data(self, arguments: list[str]) -> DataOptions:
        """Return these options for files given as arguments."""
        from rewards.arm_material import DataOptions
        from rewards.labelled_text import Source

        columns = Source(
            "", self.text_column, tuple(self.label_column or ()), frozenset(self.positive_label or ())
        )
        return DataOptions(
            tuple(arguments), columns, self.detokenize, self.clean_social,
            self.validation, tuple(self.test or ()), self.limit, self.seed,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class GeneratorOptions:
    """The generator that a reward is made for, as `load_model` takes it."""

    model: Annotated[str, typer.Option(help="Alias, folder, GGUF file or hub id.")] = "smollm2-135m"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto"
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto"
    revision: Annotated[str | None, typer.Option(help="Of a hub model.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False

    def values(self) -> tuple[str, str, str, str | None, bool]:
        """Return model, dtype, device, revision and whether remote code is trusted."""
        return self.model, self.dtype, self.device, self.revision, self.trust_remote_code


@dataclass(frozen=True, slots=True)
class TapOptions:
    """What only a tap ARM has."""

    layers: Annotated[
        str | None, typer.Option(help="Taps to read, as 15,21. Default: the best one or two of five.")
    ] = None
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Default: 1 or 10, chosen.")] = None
    summary: Annotated[
        Literal["text", "generated", "none", "mean"],
        typer.Option(
            help="Running mean of the states over the whole text, over the generated part (works where an "
            "engine skips cached prompts), or none; mean is that over the text without the last state."
        ),
    ] = "text"
    cache: Annotated[Path | None, typer.Option(help="Folder to keep the states read in.")] = None


@dataclass(frozen=True, slots=True)
class BackboneOptions:
    """What only a reward with its own backbone has. What is None is decided by the rest."""

    backbone: Annotated[
        str | None,
        typer.Option(help="Base of the backbone: alias, folder or hub id. Default: that of --model."),
    ] = None
    adapt: Annotated[
        Literal["lora", "full", "none"],
        typer.Option(help="Train low-rank adapters, all weights, or the head alone."),
    ] = "lora"
    lora_rank: Annotated[int, typer.Option(min=1, help="Of the adapters, on every linear layer.")] = 16
    freeze_embeddings: Annotated[
        bool,
        typer.Option(
            "--freeze-embeddings/--train-embeddings",
            help="Keep the output embeddings, and the input ones tied to them. To train: --adapt full.",
        ),
    ] = True
    loss: Annotated[
        Literal["ce", "mse"] | None,
        typer.Option(help="Cumulative cross-entropy (default), or the papers' squared error, on labels."),
    ] = None
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: 2e-4 for lora, 2e-5 for full, 1e-3 for none.")
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Texts a step.")] = 32
    accumulate: Annotated[int, typer.Option(min=1, help="Read a batch in so many parts.")] = 1
    warmup: Annotated[float, typer.Option(min=0, max=1, help="Share of the steps.")] = 0.06
    eval_every: Annotated[int | None, typer.Option(min=1, help="Steps. Default: ten times a run.")] = None
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Steps from checkpoint to checkpoint. Default: ten times a run.")
    ] = None
    mixed_precision: Annotated[
        Literal["no", "bf16"], typer.Option(help="Compute in bfloat16; weights stay float32.")
    ] = "no"


@dataclass(frozen=True, slots=True)
class TeacherOptions:
    """What an ARM learns besides labels, or in their place."""

    teacher: Annotated[
        list[Path] | None,
        typer.Option(
            help="Saved RAD or ARM whose values are learnt in place of the labels. Several times: their mean."
        ),
    ] = None
    distil: Annotated[
        Literal["plain", "delta", "candidates"],
        typer.Option(
            help="The teacher's values of the texts, what each token changed them by, or its values of "
            "tokens the generator might have said too."
        ),
    ] = "plain"
    candidates: Annotated[int, typer.Option(min=1, help="Tokens of the generator a position.")] = 20
    candidate_positions: Annotated[int, typer.Option(min=1, help="Positions a text and step.")] = 4
    regularise: Annotated[
        float, typer.Option(min=0, help="Coefficient that draws random tokens' share of the reward to 0.")
    ] = 0.0

    def check(self) -> None:
        """Raise UserError for options about a teacher without one."""
        for name in () if self.teacher else ("distil", "candidates", "candidate_positions"):
            value, default = getattr(self, name), getattr(TeacherOptions(), name)
            if value != default:
                raise UserError(
                    f"--{name.replace('_', '-')} {value} is about a teacher: name one with --teacher"
                )


def takes(*records: type) -> Callable[[Command], Command]:
    """Return a decorator: a command's `**options` become the fields of those records on its command line."""

    def add(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [parameter for parameter in own if parameter.kind is not parameter.VAR_KEYWORD]
        kept += [parameter for record in records for parameter in _parameters(record)]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
        command.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
        return command

    return add


def _parameters(record: type) -> list[inspect.Parameter]:
    hints = get_type_hints(record, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(field.name, kind, default=field.default, annotation=hints[field.name])
        for field in fields(record)
    ]


def pick(record: type[Record], options: Mapping[str, Any]) -> Record:
    """Return a record of those options that are its fields."""
    return record(**{field.name: options[field.name] for field in fields(record)})  # type: ignore[arg-type]


def refuse_given(form: str, record: Any) -> None:
    """Raise UserError for an option, other than at its default, of a record that this form does not take."""
    for field in fields(record):
        if getattr(record, field.name) != field.default:
            name = "train_embeddings" if field.name == "freeze_embeddings" else field.name
            raise UserError(f"--{name.replace('_', '-')} is not for --form {form}: leave it out")
