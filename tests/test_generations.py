"""Anybody's generations read as the same records; every mistake names its line."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from decoder.contracts import UserError
from decoder.run_store import RunStore
from eval.generations import PromptSamples, read_generations
from prompts.reading import Prompt

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
BEST = {"prompt": "a", "generations": ["x"]}


def written(tmp_path: Path, *lines: Any, name: str = "g.jsonl") -> Path:
    """Write the lines: objects as JSON, bytes and strings as they are."""
    path = tmp_path / name
    raw = [line if isinstance(line, bytes) else _text(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def _text(line: Any) -> str:
    return line if isinstance(line, str) else json.dumps(line)


def refusal(path: Path | str) -> str:
    """Return the message of the refusal, which is one line."""
    with pytest.raises(UserError) as caught:
        read_generations(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def brief(prompts: list[PromptSamples]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (id, prompt, texts) of each, having checked that records and texts go together."""
    assert all(len(each.texts) == len(each.records) for each in prompts)
    return [(each.id, each.prompt, each.texts) for each in prompts]


def test_dexperts_rad_and_tiller_files(tmp_path: Path) -> None:
    scored = {"text": " b", "toxicity": 0.7}
    path = written(
        tmp_path,
        {
            "prompt": {"text": "a", "toxicity": 0.1},
            "generations": [scored, {"text": None}],
            "md5_hash": "cafe",
        },
        "",
        {"id": 7, "prompt": "c", "generations": [" d", None]},
        {"prompt": {"text": ""}, "generations": [{"text": "\N{LINE SEPARATOR}é"}]},
    )
    prompts = read_generations(path)
    assert brief(prompts) == [
        ("cafe", "a", (" b", "")),
        ("7", "c", (" d", "")),
        ("2", "", ("\N{LINE SEPARATOR}é",)),
    ]
    assert prompts[0].records == (scored, {"text": None})
    assert prompts[1].records == ({"text": " d"}, {"text": None})
    assert [prompt.source for prompt in prompts] == [f"{path}, line {number}" for number in (1, 3, 4)]


def test_what_tiller_writes_reads_back(tmp_path: Path) -> None:
    prompts = [Prompt("a", text='t"w\no'), Prompt("b", messages=tuple(CHAT))]
    with RunStore.open(tmp_path / "g.jsonl", {}, {}, prompts, 2) as store:
        for prompt in range(2):
            for sample in range(2):
                store.add(prompt, sample, {"text": f" {prompt}.{sample}", "token_ids": [prompt, sample]})
    read = read_generations(tmp_path / "g.jsonl")
    assert brief(read) == [
        ("a", 't"w\no', (" 0.0", " 0.1")),
        ("b", "Be kind.\nHi\n", (" 1.0", " 1.1")),
    ]
    assert [record["token_ids"] for record in read[1].records] == [[1, 0], [1, 1]]


def test_real_toxicity_prompts(tmp_path: Path) -> None:
    lines = [
        {
            "filename": "f",
            "prompt": {"text": "a", "toxicity": 0.2},
            "continuation": {"text": " b", "threat": 0.9},
        },
        {
            "filename": "f",
            "prompt": {"text": "a", "toxicity": 0.2},
            "continuation": {"text": " c", "threat": 0.1},
        },
    ]
    prompts = read_generations(written(tmp_path, *lines))
    assert brief(prompts) == [("0", "a", (" b",)), ("1", "a", (" c",))]
    assert prompts[0].records[0]["threat"] == 0.9


def lm_eval(doc: int, texts: list[Any], filter_name: str = "none", **changes: Any) -> dict[str, Any]:
    """A line as lm_eval 0.4.9 logs it for a generation task."""
    line = {
        "doc_id": doc,
        "doc": {"question": f"q{doc}"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": f"Q{doc}:", "arg_1": {"until": ["\n"]}}},
        "resps": [texts],
        "filtered_resps": texts[:1],
        "filter": filter_name,
        "metrics": ["exact_match"],
        "exact_match": 1.0,
    }
    return line | changes


def test_lm_eval_samples(tmp_path: Path) -> None:
    chat = {"gen_args_0": {"arg_0": [json.dumps(CHAT)], "arg_1": {"until": []}}}
    path = written(
        tmp_path,
        lm_eval(0, [" 4", " 5"]),
        lm_eval(1, [" 6"], arguments=[["older ", {"until": []}]]),
        lm_eval(2, [" 7"], arguments=chat),
    )
    assert brief(read_generations(path)) == [
        ("0", "Q0:", (" 4", " 5")),
        ("1", "older ", (" 6",)),
        ("2", "Be kind.\nHi\n", (" 7",)),
    ]


def test_lm_eval_writes_a_line_a_filter_about_the_same_samples(tmp_path: Path) -> None:
    strict = [lm_eval(doc, [f" {doc}"], "strict-match") for doc in range(2)]
    flexible = [lm_eval(doc, [f" {doc}"], "flexible-extract", filtered_resps=["x"]) for doc in range(2)]
    assert brief(read_generations(written(tmp_path, *strict, *flexible))) == [
        ("0", "Q0:", (" 0",)),
        ("1", "Q1:", (" 1",)),
    ]
    assert "line 3: the id '0' was used before" in refusal(written(tmp_path, *strict, strict[0]))
    other = lm_eval(0, [" another task"], "flexible-extract")
    assert "line 3: the id '0' was used before" in refusal(written(tmp_path, *strict, other))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (  # multiple choice and likelihoods, whose numbers lm_eval writes as strings
            {
                "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": " yes"}},
                "resps": [[["-1.5", "False"]]],
            },
            "generates no text",
        ),
        ({"arguments": [["Q", " yes"]], "resps": [[[-1.5, False]]]}, "generates no text"),
        (
            {"arguments": {"gen_args_0": {"arg_0": "Q"}}, "resps": [["-123.4"]]},
            "generates no text",
        ),  # rolling
        ({"resps": [[[-1.5, False]]]}, '"text" must be a string, not [-1.5, false]'),
        ({"resps": "x"}, '"resps" must be a list'),
        ({"resps": [[]]}, "no generations"),
        ({"doc_id": None}, 'missing "doc_id"'),
        ({"arguments": [["Q", {}], ["R", {}]]}, "2 different contexts"),
        ({"arguments": 3}, "generates no text"),
        ({"arguments": {"gen_args_0": {"arg_0": ["Q"], "arg_1": {}}}}, "broken JSON"),
    ],
)
def test_other_lm_eval_lines_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    message = refusal(written(tmp_path, lm_eval(0, ["x"], **changes)))
    assert "line 1" in message
    assert said in message


@pytest.mark.parametrize(
    "key", ["text", "completion", "response", "output", "generation", "generated_text", "continuation"]
)
def test_a_line_a_sample(tmp_path: Path, key: str) -> None:
    lines = [
        {"prompt": "a", key: "1", "score": 0.5},
        {"prompt": {"text": "b"}, key: "2"},
        {"prompt": "a", key: "3"},
        {"prompt": "b", key: None},
    ]
    prompts = read_generations(written(tmp_path, *lines))
    assert brief(prompts) == [("0", "a", ("1", "3")), ("1", "b", ("2", ""))]
    assert prompts[0].records == (lines[0], lines[2])


def test_lines_of_one_id_are_samples_of_one_prompt(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt_id": "p", "id": 1, "prompt": "a", "text": "1"},
        {"prompt_id": "q", "id": 2, "prompt": "a", "text": "2"},
        {"prompt_id": "p", "id": 3, "prompt": "a", "text": "3"},
    )
    assert brief(read_generations(path)) == [("p", "a", ("1", "3")), ("q", "a", ("2",))]
    path = written(tmp_path, {"id": "p", "prompt": "a", "text": "1"}, {"id": "p", "prompt": "b", "text": "2"})
    message = refusal(path)
    assert "line 2: the id 'p' stands for the prompt 'b'" in message
    assert f"'a' at {path}, line 1" in message


@pytest.mark.parametrize("key", ["completions", "responses", "outputs", "samples"])
def test_a_line_a_prompt(tmp_path: Path, key: str) -> None:
    path = written(
        tmp_path,
        {"prompt": "a", key: ["1", "2"], "rewards": [0.1, 0.2]},
        {"prompt": CHAT, key: [{"text": "3", "finish_reason": "stop"}], "id": "c"},
    )
    prompts = read_generations(path)
    assert brief(prompts) == [("0", "a", ("1", "2")), ("c", "Be kind.\nHi\n", ("3",))]
    assert prompts[1].records[0]["finish_reason"] == "stop"


def test_texts_alone_are_each_a_prompt(tmp_path: Path) -> None:
    path = written(
        tmp_path, "\N{ZERO WIDTH NO-BREAK SPACE}" + _text({"text": "a"}), {"text": "a", "label": 1}
    )
    assert brief(read_generations(path)) == [("0", "", ("a",)), ("1", "", ("a",))]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([BEST, '{"prompt": "a"'], ["line 2", "broken JSON", "column 15"]),
        ([b"[" * 100_000], ["line 1", "nested too deeply"]),
        ([BEST, "", [BEST]], ["line 3", "must be an object", "generations"]),
        ([BEST, b'{"prompt": "caf\xe9"}'], ["line 2", "invalid UTF-8", "0xe9", "offset 15"]),
        (
            [{"prompt": "a", "answer": "b"}],
            ["line 1", "missing texts", '["prompt", "answer"]', "generated_text"],
        ),
        ([{"generations": ["b"]}], ["line 1", 'missing "prompt"', '["generations"]']),
        ([{"completion": "b"}], ["line 1", 'missing "prompt"']),
        ([BEST, {"prompt": "b"}], ["line 2", "missing texts"]),
        ([BEST, {"prompt": "b", "text": "c"}], ["mixed formats", "line 2", "line 1", '"prompt" with "text"']),
        ([{"prompt": "b", "text": "c"}, {"prompt": "b", "output": "c"}], ["mixed formats", "line 2"]),
        ([{"text": "b"}, {"prompt": "b", "text": "c"}], ["mixed formats", '"text" without "prompt"']),
        (
            [{"prompt": "b", "continuation": "c"}, {"prompt": "b", "continuation": {"text": "c"}}],
            ["mixed formats", "as an object here"],
        ),
        ([lm_eval(0, ["x"]), BEST], ["mixed formats", 'lm-eval samples ("resps") at']),
        ([{"prompt": "b", "text": "c", "output": "d"}], ["line 1", '["text", "output"]', "keep the field"]),
        ([{"prompt": "b", "samples": ["c"], "outputs": ["d"]}], ['["outputs", "samples"]']),
        ([{"prompt": "b", "generations": []}], ["line 1", "no generations", "take the line out"]),
        ([{"prompt": "b", "generations": "c"}], ["line 1", "must be a list, not 'c'"]),
        ([{"prompt": "b", "generations": None}], ["line 1", "must be a list, not null"]),
        ([{"prompt": "b", "generations": ["c", 5]}], ["line 1, generation 2", "must be a string, not 5"]),
        ([{"prompt": "b", "generations": [{"txt": "c"}]}], ["line 1, generation 1", 'missing "text"', "txt"]),
        ([{"prompt": "b", "response": 5}], ["line 1", '"response" must be a string, not 5']),
        ([{"prompt": "b", "continuation": {"text": ["c"]}}], ["line 1", 'not ["c"]']),
        ([{"prompt": 5, "generations": ["c"]}], ["line 1", "no prompt: 5"]),
        ([{"prompt": {"txt": "b"}, "generations": ["c"]}], ["line 1", "no prompt"]),
        ([{"prompt": [{"role": "user"}], "generations": ["c"]}], ["line 1, message 1", '"content"']),
        ([BEST | {"id": "x"}, BEST, BEST | {"id": "x"}], ["line 3", "'x' was used before", "line 1"]),
        ([BEST | {"id": "1"}, BEST], ["line 2", "'1' was used before", "line 1"]),
        ([BEST | {"id": True}], ["line 1", '"id" must be a string, not true']),
        ([BEST | {"md5_hash": " "}], ["line 1", '"md5_hash"', "' '"]),
        (
            [{"prompt": "b", "generations": ["c\ud800"]}],
            ["line 1, generation 1", "invalid Unicode", "'\\ud800'"],
        ),
        ([{"prompt": "\ud800", "generations": ["c"]}], ["line 1", "invalid Unicode in prompt"]),
        (["", "  "], ["is empty", "no generations in it", "generations"]),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, lines: list[Any], said: list[str]) -> None:
    message = refusal(written(tmp_path, *lines))
    assert str(tmp_path / "g.jsonl") in message
    for words in said:
        assert words in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.jsonl")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "empty").touch()
    assert "empty is empty" in refusal(tmp_path / "empty")


def test_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(BEST).encode() + b"\r\n{")))
    assert "standard input, line 2: broken JSON" in refusal("-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(BEST).encode())))
    (prompt,) = read_generations("-")
    assert (prompt.texts, prompt.source) == (("x",), "standard input, line 1")
    monkeypatch.setattr(sys, "stdin", None)
    assert "closed" in refusal("-")


def test_large_files_are_read_in_linear_time(tmp_path: Path) -> None:
    """20,000 samples of one prompt and of as many: a second at most where a search a line takes minutes."""
    joined = [{"prompt": "one", "text": str(number)} for number in range(20_000)]
    apart = [{"id": number, "prompt": "one", "generations": ["x"]} for number in range(20_000)]
    paths = [written(tmp_path, *lines, name=f"{len(lines[0])}.jsonl") for lines in (joined, apart)]
    began = time.process_time()
    counts = [(len(prompts), len(prompts[0].texts)) for prompts in map(read_generations, paths)]
    assert counts == [(1, 20_000), (20_000, 1)]
    assert time.process_time() - began < 5
