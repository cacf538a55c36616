"""Prompts come in from arguments, files and standard input; every mistake names its place."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from decoder.contracts import UserError
from prompts import builtin, builtin_names
from prompts.reading import MAX_LINE_BYTES, Prompt, from_arguments, from_value, read

USER = {"role": "user", "content": "Hi"}


def written(tmp_path: Path, content: bytes | str, name: str = "prompts.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path | str) -> str:
    """Return the message of the refusal, which is one line."""
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(prompts: list[Prompt]) -> list[str | None]:
    return [prompt.text for prompt in prompts]


def test_plain_text_is_one_prompt_a_line_and_keeps_its_spaces(tmp_path: Path) -> None:
    path = written(tmp_path, "\N{ZERO WIDTH NO-BREAK SPACE}one \r\n  two\r\nthr\u2028ee", "a.txt")
    assert texts(read(path)) == ["one ", "  two", "thr\u2028ee"]
    assert [prompt.id for prompt in read(path)] == ["0", "1", "2"]
    assert read(path)[1].source == f"{path}, line 2"


def test_every_json_form_is_read(tmp_path: Path) -> None:
    records = [
        {"prompt": "a"},
        {"prompt": {"text": "b", "toxicity": 0.3}, "md5_hash": "cafe"},
        {"prompt": [USER], "id": "chat"},
        {"messages": [USER], "id": 7},
        {"prompt": {"messages": [USER]}},
        {"prompt": {"text": "g"}, "id": None, "generations": []},
    ]
    prompts = read(written(tmp_path, "\n".join(map(json.dumps, records)) + "\n\n  \n"))
    assert [prompt.id for prompt in prompts] == ["0", "cafe", "chat", "7", "4", "5"]
    assert texts(prompts) == ["a", "b", None, None, None, "g"]
    assert [prompt.messages for prompt in prompts[2:5]] == [(USER,)] * 3


def test_a_prompt_written_out_reads_back_equal(tmp_path: Path) -> None:
    prompts = [
        Prompt("x", text="one\ntwo"),
        Prompt("y", messages=(USER, {"role": "assistant", "content": "é"})),
    ]
    lines = (json.dumps({"id": prompt.id, "prompt": prompt.record()}) for prompt in prompts)
    assert read(written(tmp_path, "\n".join(lines))) == prompts


@pytest.mark.parametrize(
    ("name", "content", "is_json"),
    [
        ("p.txt", '\n{"prompt": "a"}', True),
        ("p", '  {"prompt": "a"}', True),
        ("p.txt", '"prompt"', False),
        ("P.JSON", '{"prompt": "a"}', True),
    ],
)
def test_json_is_known_by_its_suffix_or_its_first_line(
    tmp_path: Path, name: str, content: str, is_json: bool
) -> None:
    (prompt,) = read(written(tmp_path, content, name))
    assert (prompt.text == "a") == is_json


def test_a_suffix_of_json_lets_no_plain_text_through(tmp_path: Path) -> None:
    assert "line 1: broken JSON" in refusal(written(tmp_path, "plain words"))


def test_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b'{"prompt": "a"}\n{"prompt": ""}\n'))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert "standard input, line 2: empty prompt" in refusal("-")
    stdin.buffer.seek(0)
    stdin.buffer.truncate(16)
    assert texts(read("-")) == ["a"]
    monkeypatch.setattr(sys, "stdin", None)
    assert "closed" in refusal("-")


def test_arguments_are_texts(tmp_path: Path) -> None:
    assert from_arguments(["a", "a"]) == [Prompt("0", text="a"), Prompt("1", text="a")]
    with pytest.raises(UserError, match="prompt argument 2: empty prompt"):
        from_arguments(["a", " "])
    with pytest.raises(UserError, match="argument 1: invalid Unicode"):
        from_arguments(["bad \udcff byte"])


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"prompt": "a"}\n' * 6 + '{"prompt": "b"\n', ["line 7", "broken JSON", "column 15", "b"]),
        ('["a"]', ["line 1", "must be an object", '["a"]', "messages"]),
        ("3", ["line 1", "must be an object, not 3"]),
        ('{"text": "a"}', ["line 1", "neither", '["text"]']),
        ('{"prompt": "a", "messages": []}', ["line 1", "both"]),
        ('{"prompt": 5}', ["line 1", "no prompt: 5", '{"prompt": {"text": "..."}}']),
        ('{"prompt": null}', ["line 1", "no prompt: null"]),
        ('{"prompt": {"text": 5}}', ["line 1", 'no prompt: {"text": 5}']),
        ('{"prompt": {"messages": "a"}}', ["line 1", "no prompt"]),
        ('{"prompt": "a"}\n{"prompt": " "}', ["line 2", "empty prompt", "' '"]),
        ('{"prompt": {"text": ""}}', ["line 1", "empty prompt"]),
        ('{"messages": []}', ["line 1", "list of messages is empty"]),
        ('{"messages": ["a"]}', ["line 1, message 1: a message must be an object, not 'a'"]),
        ('{"messages": [{"role": "user"}]}', ["line 1, message 1", '"content" must be a string, not null']),
        ('{"messages": [{"role": 1, "content": "a"}]}', ["message 1", '"role" must be a string, not 1']),
        ('{"messages": [{"role": "", "content": "a"}]}', ["message 1", 'empty "role"']),
        ('{"messages": [{"role": "user", "content": " "}]}', ["line 1", "empty last message"]),
        ('{"prompt": "a", "id": 1.5}', ["line 1", '"id" must be a string, not 1.5']),
        ('{"prompt": "a", "id": true}', ["line 1", '"id" must be a string, not true']),
        ('{"prompt": "a", "id": ""}', ["line 1", 'empty "id"']),
        ('{"prompt": "a\\ud800"}', ["line 1", "invalid Unicode", "character 1"]),
        ('{"prompt": "a", "id": "x"}\n\n{"prompt": "b", "id": "x"}', ["line 3", "'x'", "line 1", "unique"]),
        ('{"prompt": "a"}\n{"prompt": "b", "id": "0"}', ["line 2", "used before", "line 1"]),
        ("[" * 100_000, ["line 1", "nested"]),
        ('{"prompt": ' + "9" * 5000 + "}", ["line 1", "too long a number"]),
        (b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n', ["line 2", "invalid UTF-8", "0xe9", "offset 15"]),
        ("", ["is empty"]),
        ("\n \n", ["is empty"]),
    ],
)
def test_a_mistake_in_jsonl_is_named_with_its_line(
    tmp_path: Path, content: bytes | str, parts: list[str]
) -> None:
    path = written(tmp_path, content)
    message = refusal(path)
    assert message.startswith(str(path))
    assert [part for part in parts if part not in message] == []
    assert len(message) < 500


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("one\n\n\ntwo\n", ["line 2", "empty prompt"]),
        ("\none\n", ["line 1", "empty prompt"]),
        (b"one\n\xff\xfe\n", ["line 2", "0xff", "offset 0"]),
        ("one\n" + "x" * (MAX_LINE_BYTES + 1) + "\ntwo", ["line 2", "more than 1000000 bytes"]),
    ],
)
def test_a_mistake_in_plain_text_is_named_with_its_line(
    tmp_path: Path, content: bytes | str, parts: list[str]
) -> None:
    message = refusal(written(tmp_path, content, "a.txt"))
    assert [part for part in parts if part not in message] == []


def test_the_longest_line_and_blank_ends_are_fine(tmp_path: Path) -> None:
    longest = "x" * MAX_LINE_BYTES
    assert texts(read(written(tmp_path, longest + "\r\nb\n\n \n", "a.txt"))) == [longest, "b"]


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.txt")
    assert "none.txt" in refusal(tmp_path / "none.txt")
    assert "directory" in refusal(tmp_path).lower()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a")
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        taken = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            self.taken += len(buffer)
            assert self.taken < 3 * MAX_LINE_BYTES, "read on past the limit"
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))  # type: ignore[type-var]
    assert "line 1: more than" in refusal("-")


def test_a_prompt_is_text_or_messages() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Prompt("x")
    with pytest.raises(ValueError, match="exactly one"):
        Prompt("x", text="a", messages=(USER,))
    assert Prompt("x", text="a", source="here") == Prompt("x", text="a", source="there")
    assert from_value([USER], prompt_id="x", source="").record() == {"messages": [USER]}


def test_the_packaged_prompts_are_as_their_datasheet_says() -> None:
    reported = ("negative", "neutral", "positive", "provoking")
    assert builtin_names() == ("demo", "dev_negative", "dev_provoking", *reported)
    assert len(builtin()) == 3
    neutral = builtin("neutral")
    assert [prompt.id for prompt in neutral] == [f"neutral-{i:03}" for i in range(200)]
    assert len(set(texts(neutral))) == 200
    for prompt in neutral + builtin():
        assert prompt.text is not None
        assert prompt.text == prompt.text.strip()
        assert prompt.text[-1] not in ".!?"
        assert 4 <= len(prompt.text.split()) <= 10
    with pytest.raises(UserError, match="'nope'; choose from demo, dev_negative, "):
        builtin("nope")
