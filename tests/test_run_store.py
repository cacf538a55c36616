"""Output survives anything: whatever the interruption, a rerun ends with the same bytes."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder import run_record, run_store
from decoder.append_file import AppendFile
from decoder.contracts import UserError
from decoder.run_store import RunStore, StdoutStore
from prompts.reading import Prompt

FINGERPRINT = {"beta": 1.0, "reward": {"name": "positive", "rank": 8}}
ABOUT = {"version": "0.1"}
N = 2
PROMPTS = [
    Prompt("a", text="one é"),
    Prompt("b\N{CJK UNIFIED IDEOGRAPH-4E00}", text='t"w\no'),
    Prompt("c", messages=({"role": "user", "content": "three"},)),
    Prompt("d", text="four"),
]
IN_ORDER = list(itertools.product(range(len(PROMPTS)), range(N)))
MIXED = [(1, 0), (0, 1), (2, 1), (2, 0), (0, 0), (3, 1), (1, 1), (3, 0)]  # 2 waits for 0 and 1


def record(prompt: int, sample: int) -> dict[str, Any]:
    """What a decode would give for that sample: depends on nothing else."""
    text = f" text {prompt}.{sample}\n\u2028 \ud83d\ude00" + "x" * (7 * prompt)
    return {"text": text, "sample_index": sample, "reward": prompt / 3, "rewards": {"p": [0.1, 1e-9]}}


def expected(prompts: list[Prompt] = PROMPTS, samples: int = N) -> bytes:
    """The finished file, written the plainest way."""
    lines = []
    for index, prompt in enumerate(prompts):
        generations = [record(index, sample) for sample in range(samples)]
        line = {"id": prompt.id, "prompt": prompt.record(), "generations": generations}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


def opened(path: Path, **changes: Any) -> RunStore:
    given: dict[str, Any] = {"fingerprint": FINGERPRINT, "about": ABOUT, "prompts": PROMPTS, "num_samples": N}
    return RunStore.open(path, **(given | changes))


def work(path: Path, order: list[tuple[int, int]] = IN_ORDER, **changes: Any) -> int:
    """Do what is missing in that order and finish; return the number of samples done now."""
    done = 0
    with opened(path, **changes) as store:
        for prompt, sample in order:
            if sample in store.missing(prompt):
                store.add(prompt, sample, record(prompt, sample))
                done += 1
        store.finish()
    return done


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def refusal(path: Path, **changes: Any) -> str:
    """Return the one line with which the file is refused."""
    with pytest.raises(UserError) as caught:
        opened(path, **changes).close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("order", [IN_ORDER, IN_ORDER[::-1], MIXED])
def test_the_file_is_in_prompt_order_whatever_order_samples_finish_in(
    tmp_path: Path, order: list[tuple[int, int]]
) -> None:
    path = tmp_path / "new" / "folder" / "gens.jsonl"
    assert work(path, order) == 8
    assert path.read_bytes() == expected()
    assert sorted(os.listdir(path.parent)) == ["gens.jsonl", "run.json"]
    entry = json.loads((path.parent / "run.json").read_text())["gens.jsonl"]
    assert entry == {"fingerprint": FINGERPRINT | {"num_samples": N}, "about": ABOUT}


def test_a_line_reads_back_as_the_prompt_and_its_samples(tmp_path: Path) -> None:
    work(tmp_path / "g.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "g.jsonl").read_bytes().split(b"\n")[:-1]]
    assert list(lines[0]) == ["id", "prompt", "generations"]
    assert lines[1]["prompt"] == {"text": 't"w\no'}
    assert [one["sample_index"] for one in lines[3]["generations"]] == [0, 1]


def test_missing_and_done_samples_follow_every_step(tmp_path: Path) -> None:
    with opened(tmp_path / "g.jsonl") as store:
        assert (store.missing(0), store.missing(3), store.done_samples) == ((0, 1), (0, 1), 0)
        store.add(1, 1, record(1, 1))
        assert (store.missing(1), store.done_samples) == ((0,), 1)
        store.add(1, 0, record(1, 0))
        store.add(0, 0, record(0, 0))
        with pytest.raises(ValueError, match="sample 0 of prompt 0 is not missing"):
            store.add(0, 0, record(0, 0))
        with pytest.raises(ValueError, match="0 of 4 prompts"):
            store.finish()
    with opened(tmp_path / "g.jsonl") as store:
        assert ([store.missing(i) for i in range(3)], store.done_samples) == ([(1,), (), (0, 1)], 3)


def test_a_finished_file_is_left_alone(tmp_path: Path) -> None:
    work(tmp_path / "g.jsonl")
    before = (tmp_path / "run.json").read_bytes()
    assert work(tmp_path / "g.jsonl") == 0
    assert (tmp_path / "g.jsonl").read_bytes() == expected()
    assert (tmp_path / "run.json").read_bytes() == before
    assert not journal_of(tmp_path / "g.jsonl").exists()


def test_more_prompts_may_follow_the_finished_ones(tmp_path: Path) -> None:
    work(tmp_path / "g.jsonl", IN_ORDER[:4], prompts=PROMPTS[:2])
    assert work(tmp_path / "g.jsonl") == 4
    assert (tmp_path / "g.jsonl").read_bytes() == expected()


@settings(deadline=None, max_examples=80)
@given(st.randoms(use_true_random=False), st.data())
def test_files_cut_anywhere_end_the_same(rng: random.Random, data: st.DataObject) -> None:
    """Stop after some samples, cut both files at any byte, go on in another order; three times over."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.jsonl"
        for _ in range(3):
            order = rng.sample(IN_ORDER, len(IN_ORDER))
            with opened(path) as store:
                todo = [(p, s) for p, s in order if s in store.missing(p)]
                for p, s in todo[: rng.randrange(len(todo) + 1)]:
                    store.add(p, s, record(p, s))
            for file in (path, journal_of(path)):
                if file.exists():
                    size = data.draw(st.integers(0, file.stat().st_size))
                    os.truncate(file, rng.choice([size, file.stat().st_size]))
        work(path, rng.sample(IN_ORDER, len(IN_ORDER)))
        assert path.read_bytes() == expected()


class Killer:
    """Kills this process before its n-th change on disk; an append is also cut in the middle."""

    def __init__(self, patch: pytest.MonkeyPatch, before: int = 10**9, half: bool = False) -> None:
        self.count, self.before, self.half = 0, before, half
        append = AppendFile.append
        patch.setattr(
            AppendFile, "append", self.counted(append, lambda f, line: append(f, line[: len(line) // 2]))
        )
        patch.setattr(AppendFile, "truncate", self.counted(AppendFile.truncate))
        patch.setattr(os, "replace", self.counted(os.replace))
        patch.setattr(Path, "unlink", self.counted(Path.unlink))

    def counted(
        self, change: Callable[..., Any], torn: Callable[..., Any] | None = None
    ) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.before:
                if self.half and torn:
                    torn(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return wrapper


def killed_work(path: Path, before: int, half: bool) -> bool:
    """Work in a process that is killed at that change; return whether it was."""
    child = os.fork()
    if child == 0:  # leave by the kill or by _exit: never back into pytest
        try:
            Killer(pytest.MonkeyPatch(), before, half)
            work(path, MIXED)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), "the interrupted run failed by itself"
    return status != 0


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("compact_bytes", [0, run_store.COMPACT_BYTES])
def test_kill_9_between_any_two_changes_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool, compact_bytes: int
) -> None:
    monkeypatch.setattr(run_store, "COMPACT_BYTES", compact_bytes)
    with monkeypatch.context() as patch:
        killer = Killer(patch)
        work(tmp_path / "whole.jsonl", MIXED)
    for before in range(1, killer.count + 1):
        path = tmp_path / f"{before}" / "g.jsonl"
        assert killed_work(path, before, half), f"change {before} never came"
        if before % 3 == 0:
            killed_work(path, 4, half)  # and again soon after the restart
        work(path, MIXED)
        assert path.read_bytes() == expected(), f"killed before change {before}"
        assert sorted(os.listdir(path.parent)) == ["g.jsonl", "run.json"]


def test_a_sample_is_on_disk_when_add_returns(tmp_path: Path) -> None:
    """A copy of the folder, taken after each `add`, is what a kill would leave."""
    folder = tmp_path / "run"
    with opened(folder / "g.jsonl") as store:
        for done, (prompt, sample) in enumerate(MIXED, 1):
            store.add(prompt, sample, record(prompt, sample))
            shutil.copytree(folder, tmp_path / f"copy{done}")
            with opened(tmp_path / f"copy{done}" / "g.jsonl") as copy:
                assert copy.done_samples == done


@pytest.mark.parametrize("compact_bytes", [0, 2000])
def test_the_journal_stays_small_although_a_prompt_always_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compact_bytes: int
) -> None:
    monkeypatch.setattr(run_store, "COMPACT_BYTES", compact_bytes)
    prompts = [Prompt(str(i), text="t") for i in range(100)]
    path, largest = tmp_path / "g.jsonl", 0
    with opened(path, prompts=prompts) as store:
        store.add(0, 0, {"text": ""})
        for prompt in range(1, 100):
            store.add(prompt, 0, {"text": ""})
            store.add(prompt - 1, 1, {"text": ""})
            largest = max(largest, journal_of(path).stat().st_size)
        assert largest < compact_bytes + 500
        store.add(99, 1, {"text": ""})
        assert journal_of(path).stat().st_size == 0


def test_a_whole_entry_without_its_line_end_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    with opened(path) as store:
        store.add(2, 0, record(2, 0))
    os.truncate(journal_of(path), journal_of(path).stat().st_size - 1)
    assert work(path) == 8
    assert path.read_bytes() == expected()


def test_a_torn_entry_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    for sample in [(2, 0), (2, 1), (3, 0)]:
        with opened(path) as store:
            store.add(*sample, record(*sample))
        with journal_of(path).open("ab") as journal:
            journal.write(b'{"prompt_index": 3, "sample')
    with opened(path) as store:
        assert store.done_samples == 3


def test_a_rewrite_of_the_journal_that_was_cut_short_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl.partial.tmp").write_text("half")
    work(tmp_path / "g.jsonl")
    assert sorted(os.listdir(tmp_path)) == ["g.jsonl", "run.json"]


def test_a_journal_damaged_in_the_middle_is_good_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    with opened(path) as store:
        for sample in MIXED[:4]:
            store.add(*sample, record(*sample))
    lines = journal_of(path).read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * 10 + b"\n"
    journal_of(path).write_bytes(b"".join(lines))
    assert work(path) == 6
    assert path.read_bytes() == expected()


def test_other_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    with opened(path) as store:
        store.add(0, 0, record(0, 0))
    other = {"beta": 2.0, "reward": {"name": "positive", "rank": 4}, "seed": 3}
    message = refusal(path, fingerprint=other, num_samples=3)
    for part in (
        "beta: 1.0 in the file, 2.0 now",
        "reward.rank: 8 in the file, 4 now",
        "seed: absent in the file, 3 now",
        "num_samples: 2 in the file, 3 now",
        "--overwrite",
    ):
        assert part in message
    assert "reward.name" not in message
    assert work(path) == 7  # and nothing was lost
    assert path.read_bytes() == expected()


def test_overwrite_starts_over_with_the_new_settings(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    work(path)
    assert work(path, fingerprint={"beta": 2.0}, resume=False) == 8
    assert work(path, fingerprint={"beta": 2.0}) == 0
    assert "beta: 2.0 in the file, 1.0 now" in refusal(path)


def test_overwrite_forgets_the_samples_that_waited(tmp_path: Path) -> None:
    """Killed right after the restart, the journal must not hand old samples to the new settings."""
    path = tmp_path / "g.jsonl"
    with opened(path) as store:
        store.add(2, 0, record(2, 0))
    with opened(path, fingerprint={"beta": 2.0}, resume=False) as store:
        store.add(3, 0, record(3, 0))
    with opened(path, fingerprint={"beta": 2.0}) as store:
        assert (store.missing(2), store.done_samples) == ((0, 1), 1)


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    with opened(path) as store:
        for sample in [(0, 0), (0, 1), (2, 0)]:
            store.add(*sample, record(*sample))
    before = path.read_bytes(), journal_of(path).read_bytes()
    renamed, reworded = list(PROMPTS), list(PROMPTS)
    renamed[0], reworded[0] = Prompt("z", text="one é"), Prompt("a", text="one e")
    for prompts in (renamed, reworded):
        assert "line 1 is" in refusal(path, prompts=prompts)
    waiting = [*PROMPTS[:2], Prompt("c", text="three"), PROMPTS[3]]
    assert "belongs to another prompt 3" in refusal(path, prompts=waiting)
    assert "belongs to another prompt 3" in refusal(path, prompts=PROMPTS[:2])
    assert "more lines than the 0 prompts" in refusal(path, prompts=[])
    assert (path.read_bytes(), journal_of(path).read_bytes()) == before


def test_a_file_of_somebody_else_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text("precious\n")
    assert "does not say how it was made" in refusal(path)
    assert path.read_text() == "precious\n"
    assert os.listdir(tmp_path) == ["g.jsonl"]
    work(path, resume=False)
    assert path.read_bytes() == expected()


def test_an_empty_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "g.jsonl").touch()
    assert work(tmp_path / "g.jsonl") == 8


def test_outputs_of_one_folder_share_its_run_record(tmp_path: Path) -> None:
    work(tmp_path / "one.jsonl")
    work(tmp_path / "two.jsonl", fingerprint={"beta": 2.0})
    assert list(json.loads((tmp_path / "run.json").read_text())) == ["one.jsonl", "two.jsonl"]
    assert work(tmp_path / "one.jsonl") == work(tmp_path / "two.jsonl", fingerprint={"beta": 2.0}) == 0


def test_a_resumed_run_is_noted(tmp_path: Path) -> None:
    with opened(tmp_path / "g.jsonl") as store:
        store.add(0, 0, record(0, 0))
    work(tmp_path / "g.jsonl", about={"version": "0.2"})
    entry = json.loads((tmp_path / "run.json").read_text())["g.jsonl"]
    assert (entry["about"], entry["resumed"]) == (ABOUT, [{"version": "0.2"}])


@pytest.mark.parametrize("content", ["{", "[]", '{"g.jsonl": 3}', "\xff"])
def test_a_broken_run_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, "latin-1")
    assert f"{tmp_path / 'run.json'} is no run record" in refusal(tmp_path / "g.jsonl")


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    with opened(path) as store:
        store.add(0, 0, record(0, 0))
        assert "another process is writing" in refusal(path)
        assert "another process is writing" in refusal(path, resume=False)
        store.add(0, 1, record(0, 1))
    assert work(path) == 6
    assert path.read_bytes() == expected()


def test_without_locks_everything_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoder.append_file.fcntl", None)
    monkeypatch.setattr("decoder.run_record.fcntl", None)
    work(tmp_path / "g.jsonl")
    assert (tmp_path / "g.jsonl").read_bytes() == expected()


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "directory" in refusal(tmp_path).lower()
    assert "file" in refusal(tmp_path / "file" / "g.jsonl")
    assert "is the name of the run record" in refusal(tmp_path / "run.json")
    assert "not a regular file" in refusal(Path(os.devnull))
    assert "too long" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "g.jsonl.partial").mkdir()
    assert "g.jsonl.partial: Is a directory" in refusal(tmp_path / "g.jsonl")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "Permission denied" in refusal(tmp_path / "g.jsonl")
    tmp_path.chmod(0o700)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "far" / "g.jsonl")
    work(tmp_path / "link.jsonl")
    assert (tmp_path / "far" / "g.jsonl").read_bytes() == expected()
    assert (tmp_path / "far" / "run.json").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond that size, which is how a full disk looks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", range(300, 1200, 100))
def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, size: int) -> None:
    """The write may fail half-way in the journal or in the file; each is rolled back to a whole line."""
    path = tmp_path / "g.jsonl"
    assert len(expected()) > 1200
    with largest_file(size), pytest.raises(UserError, match=r"File too large; finished samples are kept"):
        work(path, MIXED)
    for file in (path, journal_of(path)):
        assert not file.exists() or file.read_bytes()[-1:] in (b"", b"\n")
    assert 0 < work(path, MIXED) < 8
    assert path.read_bytes() == expected()


def test_after_a_failed_write_the_same_store_can_go_on(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    with opened(path) as store:
        for prompt, sample in MIXED:
            if sample in store.missing(prompt):
                with largest_file(10), pytest.raises(UserError, match="File too large"):
                    store.add(prompt, sample, record(prompt, sample))
                store.add(prompt, sample, record(prompt, sample))
        store.finish()
    assert path.read_bytes() == expected()


def test_a_full_disk_before_the_start_is_a_user_error(tmp_path: Path) -> None:
    with largest_file(10):
        assert "File too large" in refusal(tmp_path / "g.jsonl")
    assert work(tmp_path / "g.jsonl") == 8


def test_a_lone_surrogate_and_nan_are_written_as_json(tmp_path: Path) -> None:
    path, prompts = tmp_path / "g.jsonl", [Prompt("x\udc80", text="t")]
    with opened(path, prompts=prompts, num_samples=1) as store:
        store.add(0, 0, {"text": "\ud800é", "reward": float("nan"), "list": [float("inf"), (1.5,)]})
        store.finish()
    (line,) = path.read_bytes().splitlines()
    assert b"\\ud800\xc3\xa9" in line
    read_back = json.loads(line)
    assert read_back["id"] == "x\udc80"
    assert read_back["generations"] == [{"text": "\ud800é", "reward": None, "list": [None, [1.5]]}]


def test_the_fingerprint_may_hold_what_json_does_not(tmp_path: Path) -> None:
    fingerprint = {"path": Path("a"), "layers": (1, 2), "limit": float("inf")}
    work(tmp_path / "g.jsonl", fingerprint=fingerprint)
    assert work(tmp_path / "g.jsonl", fingerprint=fingerprint) == 0
    changed = fingerprint | {"layers": (1, 3)}
    assert "layers: [1, 2] in the file, [1, 3] now" in refusal(tmp_path / "g.jsonl", fingerprint=changed)


def test_many_differences_are_cut_short() -> None:
    entry = {"fingerprint": {f"k{i}": i for i in range(9)}}
    with pytest.raises(UserError, match=r"k4: 4 in the file, absent now; and 4 more"):
        run_record.require_same(Path("g.jsonl"), entry, {})


def stream_work(stream: Any, order: list[tuple[int, int]] = MIXED) -> None:
    with StdoutStore(stream, PROMPTS, N) as store:
        for prompt, sample in order:
            assert sample in store.missing(prompt)
            store.add(prompt, sample, record(prompt, sample))
        assert store.done_samples == len(order)
        store.finish()


def test_a_stream_gets_the_same_lines_as_a_file() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n")
    stream_work(stream)
    assert stream.buffer.getvalue() == expected()


def test_a_line_is_printed_as_soon_as_it_can_be() -> None:
    stream = io.StringIO()
    store = StdoutStore(stream, PROMPTS, N)
    printed = []
    for prompt, sample in MIXED:
        store.add(prompt, sample, record(prompt, sample))
        printed.append(stream.getvalue().count("\n"))
    assert printed == [0, 0, 0, 0, 1, 1, 3, 4]


def test_a_stream_that_is_not_utf_8_gets_escapes() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    stream_work(stream)
    lines = stream.buffer.getvalue().splitlines()
    assert [json.loads(line) for line in lines] == [json.loads(line) for line in expected().split(b"\n")[:-1]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_stream_on_a_full_disk_is_a_user_error() -> None:
    stream = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(
        UserError, match=r"cannot write standard output: No space left on device; use --output"
    ):
        stream_work(stream)
    with pytest.raises(OSError, match="No space left"):
        stream.close()


def test_a_closed_pipe_passes_through_and_a_short_run_is_noticed() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        stream_work(Closed())
    with pytest.raises(ValueError, match="3 of 4 prompts"):
        stream_work(io.StringIO(), MIXED[:7])
