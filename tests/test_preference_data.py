"""`rewards.preference_data`: from anybody's preference data to responses, pairs and prompts."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder.contracts import UserError
from prompts.reading import read
from rewards.embed import app as embed_app
from rewards.preference_data import app
from rewards.preference_pairs import TURN, PairColumns, collect, read_comparisons, split_texts
from rewards.store import open_store
from rewards.train_head import app as head_app
from tests.test_train_head import Done, call, refused

ASK = "\n\nHuman: Is the kettle on?"
HELLO = "\n\nHuman: Hello.\n\nAssistant: Good morning."


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def write(path: Path, *rows: Mapping[str, Any]) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def convert(tmp_path: Path, *rows: Mapping[str, Any], options: tuple[object, ...] = ()) -> Done:
    return call(app, write(tmp_path / "d.jsonl", *rows), "--output", tmp_path / "out", *options)


def preferred(folder: Path) -> list[tuple[Any, str, str]]:
    """Return (prompt, chosen text, rejected text) of every pair, looked up in the other two files."""
    responses = {
        (each["prompt_id"], each["sample_index"]): each for each in lines(folder / "responses.jsonl")
    }
    prompts = {each["id"]: each["prompt"] for each in lines(folder / "prompts.jsonl")}
    found = []
    for pair in lines(folder / "pairs.jsonl"):
        chosen, rejected = (responses[pair["prompt_id"], pair[side]] for side in ("chosen", "rejected"))
        assert chosen["prompt"] == rejected["prompt"] == prompts[pair["prompt_id"]]
        found.append((chosen["prompt"], chosen["text"], rejected["text"]))
    return found


CASES = {
    "dialogues": (
        {"chosen": f"{ASK}{TURN} Yes.", "rejected": f"{ASK}{TURN} Go away."},
        (f"{ASK}{TURN}", " Yes.", " Go away."),
    ),
    "several turns": (
        {"chosen": f"{HELLO}{ASK}{TURN} Yes.", "rejected": f"{HELLO}{ASK}{TURN} Yellow."},
        (f"{HELLO}{ASK}{TURN}", " Yes.", " Yellow."),
    ),
    "parted before the last turn": (
        {"chosen": f"{HELLO}{ASK}{TURN} Yes.", "rejected": f"{HELLO}\n\nHuman: Bye.{TURN} Bye."},
        (
            f"\n\nHuman: Hello.{TURN}",
            f" Good morning.{ASK}{TURN} Yes.",
            f" Good morning.\n\nHuman: Bye.{TURN} Bye.",
        ),
    ),
    "one goes on": (
        {"chosen": f"{HELLO}{ASK}{TURN} Yes.", "rejected": HELLO},
        (f"\n\nHuman: Hello.{TURN}", f" Good morning.{ASK}{TURN} Yes.", " Good morning."),
    ),
    "texts with a prompt": (
        {"prompt": "The kettle", "chosen": " sang", "rejected": " fell"},
        ("The kettle", " sang", " fell"),
    ),
    "messages": (
        {"chosen": [user("Hi"), assistant("Hello")], "rejected": [user("Hi"), assistant("What?")]},
        ([user("Hi")], "Hello", "What?"),
    ),
    "messages beside their question": (
        {
            "prompt": "Hi",
            "chosen": [user("Hi"), assistant("Hello")],
            "rejected": [user("Hi"), assistant("No")],
        },
        ([user("Hi")], "Hello", "No"),
    ),
    "answers alone": (
        {"prompt": [user("Hi")], "chosen": [assistant("Hello")], "rejected": [assistant("No")]},
        ([user("Hi")], "Hello", "No"),
    ),
    "answers alone to a text": (
        {"prompt": "Hi", "chosen": [assistant("Hello")], "rejected": [assistant("No")]},
        ([user("Hi")], "Hello", "No"),
    ),
    "texts after messages": (
        {"prompt": [user("Hi")], "chosen": "Hello", "rejected": "No"},
        ([user("Hi")], "Hello", "No"),
    ),
    "messages that part early": (
        {
            "chosen": [user("Hi"), assistant("Hello"), user("Tea?"), assistant("Yes")],
            "rejected": [user("Hi"), assistant("Hello"), user("Milk?"), assistant("No")],
        },
        ([user("Hi")], "Hello\nTea?\nYes", "Hello\nMilk?\nNo"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_form_becomes_prompt_and_responses(tmp_path: Path, name: str) -> None:
    row, expected = CASES[name]
    done = convert(tmp_path, row)
    assert done.code == 0, done.error
    assert preferred(tmp_path / "out") == [expected]
    assert done.out == f"{tmp_path / 'out'}: 1 pairs, 2 responses to 1 prompts; left out: none\n"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("ab|"), max_size=8), st.lists(st.sampled_from("ab|"), max_size=8))
def test_the_prompt_is_the_longest_that_both_share(left: list[str], right: list[str]) -> None:
    """Against a search over every beginning; | is the turn."""
    chosen, rejected = "".join(left), "".join(right)
    shared = [chosen[:n] for n in range(len(chosen) + 1) if rejected.startswith(chosen[:n])]
    expected = max((each for each in shared if each.endswith("|")), key=len, default="")
    found = split_texts(chosen, rejected, "|")
    assert found.prompt == expected
    assert (expected + found.chosen, expected + found.rejected) == (chosen, rejected)


def test_prompts_and_responses_stand_once_and_count_on(tmp_path: Path) -> None:
    texts = [("a", "1", "2"), ("b", "1", "2"), ("a", "3", "1"), ("a", "2", "1"), ("a", "1", "2")]
    done = convert(tmp_path, *({"prompt": p, "chosen": c, "rejected": r} for p, c, r in texts))
    assert "5 pairs, 5 responses to 2 prompts; left out: none" in done.out
    assert preferred(tmp_path / "out") == texts
    found = [
        (each["prompt_id"], each["sample_index"], each["prompt"], each["text"])
        for each in lines(tmp_path / "out" / "responses.jsonl")
    ]
    assert found == [
        ("0", 0, "a", "1"),
        ("0", 1, "a", "2"),
        ("0", 2, "a", "3"),
        ("1", 0, "b", "1"),
        ("1", 1, "b", "2"),
    ]
    assert lines(tmp_path / "out" / "pairs.jsonl")[2] == {"prompt_id": "0", "chosen": 2, "rejected": 0}
    assert [(each.id, each.text) for each in read(tmp_path / "out" / "prompts.jsonl")] == [
        ("0", "a"),
        ("1", "b"),
    ]


def test_what_teaches_nothing_is_left_out_and_counted(tmp_path: Path) -> None:
    good = {"prompt": "a", "chosen": "1", "rejected": "2"}
    bad = [{"rejected": "1"}, {"rejected": " \n"}, {"chosen": None}, {"prompt": ""}, {"prompt": None}]
    done = convert(tmp_path, good, *({**good, **part} for part in (*bad, {"prompt": []})))
    assert "1 pairs, 2 responses to 1 prompts; left out: " in done.out
    for part in ("1 with the same response twice", "2 with an empty response", "3 without a prompt"):
        assert part in done.out
    assert preferred(tmp_path / "out") == [("a", "1", "2")]


def test_messages_without_a_question_are_left_out(tmp_path: Path) -> None:
    sides = {"chosen": [user("Hi"), assistant("a")], "rejected": [user("Bye"), assistant("b")]}
    blank = {"chosen": [user(" "), assistant("a")], "rejected": [user(" "), assistant("b")]}
    refused(convert(tmp_path, sides, blank), "no pair is left (2 without a prompt)", "--turn")


def test_messages_keep_their_chat_form(tmp_path: Path) -> None:
    assert convert(tmp_path, CASES["messages"][0]).code == 0
    (prompt,) = read(tmp_path / "out" / "prompts.jsonl")
    assert prompt.messages == (user("Hi"),)


def test_columns_turn_and_limit(tmp_path: Path) -> None:
    rows = [{"q": "a", "good": f"{i}", "bad": "x", "prompt": "no"} for i in range(5)]
    named = ("--prompt-column", "q", "--chosen-column", "good", "--rejected-column", "bad", "--limit", 3)
    assert convert(tmp_path, *rows, options=named).code == 0
    assert preferred(tmp_path / "out") == [("a", f"{i}", "x") for i in range(3)]
    turned = {"chosen": "Q: a\nA: b", "rejected": "Q: a\nA: c"}
    assert convert(tmp_path, turned, options=("--turn", r"\nA:")).code == 0
    assert preferred(tmp_path / "out") == [("Q: a\nA:", " b", " c")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "pairs.jsonl", "prompts.jsonl", "responses.jsonl",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv", "d.csv.gz", "headerless.csv", "d.parquet", "saved"])
def test_every_kind_of_table(tmp_path: Path, name: str) -> None:
    row, expected = CASES["several turns"]
    path, columns = tmp_path / name, PairColumns()
    if name == "saved":
        datasets = pytest.importorskip("datasets")
        split = datasets.Dataset.from_list([row])
        datasets.DatasetDict({"test": split}).save_to_disk(path)
    elif name == "d.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    elif ".csv" in name:
        opened = gzip.open if name.endswith(".gz") else open
        with opened(path, "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([row, row.values()] if "header" not in name else [row.values()])
        columns = PairColumns(None, "0", "1") if "header" in name else columns
    else:
        write(path, row)
    data = f"{path}::split=test" if name == "saved" else str(path)
    ((_, found),) = read_comparisons(data, columns, TURN)
    assert (found.prompt, found.chosen, found.rejected) == expected


def test_messages_from_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row, expected = CASES["messages beside their question"]
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "d.parquet")
    assert call(app, tmp_path / "d.parquet", "--output", tmp_path / "out").code == 0
    assert preferred(tmp_path / "out") == [expected]


GOOD = {"chosen": f"{ASK}{TURN} Yes.", "rejected": f"{ASK}{TURN} No."}


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ([{"chosen": "a"}], (), ("no column 'rejected'", "chosen", "--rejected-column")),
        ([GOOD], ("--prompt-column", "q"), ("no column 'q'", "--prompt-column")),
        ([GOOD, {**GOOD, "chosen": 3}], (), ("line 2", "not 3", "strings")),
        ([GOOD, {**GOOD, "chosen": [user("a")]}], (), ("line 2", "Human", "messages")),
        ([{"chosen": [{"role": "user"}], "rejected": [user("a")]}], (), ("line 1", "no message", '"role"')),
        ([{"chosen": ["a"], "rejected": ["b"]}], (), ("line 1", "no message")),
        ([{**GOOD, "prompt": 7}], (), ("line 1", "not 7")),
        ([{**GOOD, "chosen": f"{ASK}{TURN} \ud800"}], (), ("line 1", "invalid Unicode")),
        ([{"chosen": f"\ud800{TURN}a", "rejected": f"\ud800{TURN}b"}], (), ("line 1", "invalid Unicode")),
        ([{"chosen": "a", "rejected": "b"}], (), ("no pair is left (1 without a prompt)", "--prompt-column")),
        ([GOOD], ("--turn", ""), ("--turn is empty",)),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, rows: list[dict[str, Any]], options: tuple[object, ...], said: tuple[str, ...]
) -> None:
    refused(convert(tmp_path, *rows, options=options), *said)
    assert not (tmp_path / "out").exists()


def test_settings_of_other_commands_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", GOOD)
    refused(call(app, f"{path}::text=chosen", "--output", tmp_path / "out"), "only split= and subset=")


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    refused(convert(tmp_path, GOOD), "cannot write", "out", "--output")


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="there is no row"):
        collect([])


def test_from_preferences_to_a_head(tmp_path: Path, tiny_dir: Path) -> None:
    """The whole way: every response is embedded once, and every pair is learnt from or judged."""
    pytest.importorskip("pyarrow")
    rows = [
        {
            "chosen": f"{HELLO}\n\nHuman: {i}?{TURN} Good {i}.",
            "rejected": f"{HELLO}\n\nHuman: {i}?{TURN} Bad {i}.",
        }
        for i in range(24)
    ]
    assert convert(tmp_path, *rows, rows[0]).code == 0
    out, store = tmp_path / "out", tmp_path / "store"
    done = call(embed_app, out / "responses.jsonl", "--model", tiny_dir, "--output", store)
    assert done.code == 0, done.error
    assert open_store(store).n_rows == 48
    done = call(
        head_app, store, "--pairs-file", out / "pairs.jsonl", "--output", tmp_path / "head", "--head",
        "bt-linear", "--set", "epochs=1", "--test-share", 0.5,
    )  # fmt: skip
    assert done.code == 0, done.error
    told = json.loads((tmp_path / "head" / "config.json").read_text())
    assert told["training"]["n_pairs_given"] == 25
    assert told["training"]["n_pairs_left_out"] == 0
