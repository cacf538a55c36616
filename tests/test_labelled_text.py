"""Labelled texts from files of every kind: what comes out, and what is said of a broken one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from decoder.contracts import UserError
from rewards.arm_material import DataOptions, check_classes, gather, split_texts, take_spaced, without
from rewards.clean_text import clean_social, make_cleaner, normalise
from rewards.labelled_text import LabelledTexts, Source, parse_source, read_labelled
from rewards.output_folder import safe_name
from rewards.tables import open_table

PLAIN = make_cleaner(detokenize=False, social=False)


def read(path: Path | str, text: str | None = None, *labels: str, positive: str = "") -> LabelledTexts:
    """Read one file with nothing cleaned."""
    values = frozenset(positive.split()) if positive else frozenset()
    return read_labelled([Source(str(path), text, labels, values)], PLAIN)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("headerless.tsv", 'A "good film\t1\nA bad one\t0\n', ()),
        ("positions.tsv", '1\tA "good film\n0\tA bad one\n', ("1", "0")),
        ("header.tsv", 'label\tsentence\n1\tA "good film\n0\tA bad one\n', ()),
        ("quoted.csv", 'text,label\n"A ""good film",1\nA bad one,0\n', ()),
        ("named.csv", 'n,say,is\n7,"A ""good film",1.0\n8,A bad one,0.0\n', ("say", "is")),
        ("bom.csv", '\ufefftext,label\n"A ""good film",True\nA bad one,False\n', ()),
        (
            "lines.jsonl",
            '{"text": "A \\"good film", "label": true}\n\n{"text": "A bad one", "label": 0}\n',
            (),
        ),
        (
            "deep.jsonl",
            '{"a": {"b": "A \\"good film"}, "y": 1}\n{"a": {"b": "A bad one"}, "y": 0}',
            ("a.b", "y"),
        ),
    ],
)
def test_formats(tmp_path: Path, name: str, content: str, columns: tuple[str, ...]) -> None:
    """The same two texts from every kind of file, with as few options as it needs."""
    found = read(write(tmp_path, name, content), *columns)
    assert found.texts == ('A "good film', "A bad one")
    assert found.labels.tolist() == [[1.0], [0.0]]
    assert found.files == (name,)


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["good", "bad"], "label": [1.0, 0.25], "other": [[1], [2]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert found.texts == ("good", "bad")
    assert found.labels.tolist() == [[1.0], [0.25]]
    with pytest.raises(UserError, match="text, label, other"):
        read(tmp_path / "a.parquet", "words")
    with pytest.raises(UserError, match="not a readable Parquet"):
        read(write(tmp_path, "b.parquet", "no"))


def test_saved_data_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]})
    datasets.DatasetDict({"dev": split}).save_to_disk(tmp_path / "saved")
    found = read_labelled([parse_source(f"{tmp_path / 'saved'}::split=dev", Source(""))], PLAIN)
    assert found.texts == ("good", "bad")
    with pytest.raises(UserError, match="no split 'train', it has dev"):
        read(tmp_path / "saved")


@pytest.mark.parametrize(("name", "module"), [("a.parquet", "pyarrow"), ("folder", "datasets")])
def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.touch()
    with pytest.raises(UserError, match=rf"needs {module}: pip install 'tiller-lm\[train\]'"):
        open_table(str(path))


def test_missing_nltk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk.tokenize.treebank", None)
    with pytest.raises(UserError, match=r"needs nltk: pip install 'tiller-lm\[train\]'"):
        make_cleaner(detokenize=True, social=False)


def test_several_label_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "many.csv", "text,toxic,insult\na,1,0\nb,0,.5\n")
    found = read(path, "text", "toxic", "insult")
    assert found.columns == ("toxic", "insult")
    assert found.labels.tolist() == [[1, 0], [0, 0.5]]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_positive_labels(tmp_path: Path, name: str) -> None:
    """Values named positive count as 1, whether the file has them as strings or numbers."""
    rows = [("a", "2"), ("b", "neither"), ("c", "0")]
    csv = "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)
    lines = '{"text": "a", "label": 2.0}\n{"text": "b", "label": "neither"}\n{"text": "c", "label": 0}\n'
    path = write(tmp_path, name, csv if name == "a.csv" else lines)
    assert read(path, positive="2 neither").labels.tolist() == [[1], [1], [0]]


def test_same_text_once(tmp_path: Path) -> None:
    """Spelt alike but for case and spaces, a text counts once, with the mean of its labels."""
    found = read(write(tmp_path, "a.csv", "text,label\nA  film,1\na film,0\n ,1\nother,1\nother,1\n"))
    assert found.texts == ("A  film", "other")
    assert found.labels.tolist() == [[0.5], [1.0]]
    assert (found.n_rows, found.n_empty, found.n_repeated) == (5, 1, 2)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", "\n", "empty.csv is empty"),
        ("none.csv", "text,label\n ,1\n", "no texts in 1 rows"),
        ("columns.csv", "words,mood\na,1\n", "has the columns words, mood"),
        ("label.csv", "text,mood\na,1\n", "--label-column"),
        ("ragged.tsv", "a\t1\nb\n", "line 2: 1 columns where 2"),
        ("word.csv", "text,label\na,1\nb,nice\n", "line 3: label 'nice' is no number"),
        ("blank.csv", "text,label\na,1\nb,\n", "line 3: label '' is no number"),
        ("stars.csv", "text,label\na,1\nb,5\n", r"line 3: label 5 is outside \[0, 1\]"),
        ("nan.csv", "text,label\na,1\nb,nan\n", r"line 3: label nan is outside \[0, 1\]"),
        ("utf8.csv", b"text,label\na,1\n\xff,0\n", "line 3: invalid UTF-8 .0xff"),
        ("broken.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: not valid JSON"),
        ("array.jsonl", "[1, 2]\n", "line 1: a JSON list, not an object"),
        (
            "lacks.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b"}\n',
            "line 2: no column 'label', it has text",
        ),
        ("number.jsonl", '{"text": 7, "label": 1}\n', "line 1: the text is 7, no string"),
        ("a.xlsx", "", "ends in '.xlsx': it must be one of"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'no\.tsv' does not exist"):
        read("no.tsv")
    path = write(tmp_path, "a.csv", "text,label\na,1\n")
    with pytest.raises(UserError, match="no column 'mood': it has text, label"):
        read(path, "text", "mood")


def test_sources() -> None:
    """A file may differ from the options; what it does not say stays."""
    default = Source("", "tweet", ("class",), frozenset("2"))
    assert parse_source("a.csv", default) == Source("a.csv", "tweet", ("class",), frozenset("2"))
    assert parse_source("b.csv::text=comment,label=toxic,positive=False", default) == Source(
        "b.csv", "comment", ("toxic",), frozenset({"False"})
    )
    with pytest.raises(UserError, match="'colour=red' is none of"):
        parse_source("a.csv::colour=red", default)


def test_sources_must_agree_on_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,a,b\nx,1,0\n")
    with pytest.raises(UserError, match="1 label columns where 2 are expected"):
        read_labelled([Source(str(path), "text", ("a", "b")), Source(str(path), "text", ("a",))], PLAIN)


def test_detokenize() -> None:
    pytest.importorskip("nltk")
    clean = make_cleaner(detokenize=True, social=False)
    assert clean("it 's not what i wanted , i.e. a -lrb- good -rrb- film") == (
        "It's not what I wanted, i.e. a (good) film."
    )
    assert clean("is this it ?") == "Is this it?"
    assert clean("  ") == ""


def test_clean_social() -> None:
    assert (
        clean_social('!!! RT @a_b: "See &amp; hear it http://t.co/x &#8230; #wow') == "See & hear it … #wow"
    )
    assert clean_social("@you") == ""


def test_normalise() -> None:
    assert normalise(" A\tFilm ") == "a film"


def labelled(labels: list[float]) -> LabelledTexts:
    return LabelledTexts(
        tuple(f"text {i}" for i in range(len(labels))), np.array(labels)[:, None], ("y",), ("f",), 0, 0, 0
    )


def test_split_is_by_class_and_seeded() -> None:
    """An eighth of each class is held out, no text twice, another seed gives another split."""
    labels = np.array([1.0] * 16 + [0.0] * 64)[:, None]
    train, held_out = split_texts(labels, 0)
    assert sorted([*train, *held_out]) == list(range(80))
    assert labels[held_out].sum() == 2
    assert len(held_out) == 10
    assert held_out.tolist() == split_texts(labels, 0)[1].tolist()
    assert held_out.tolist() != split_texts(labels, 1)[1].tolist()


def test_limit_covers_a_sorted_file() -> None:
    few = take_spaced(labelled([0.0] * 50 + [1.0] * 50), 10)
    assert few.labels.sum() == 5
    assert take_spaced(few, 99) is few


def test_classes() -> None:
    with pytest.raises(UserError, match="one class only, 0"):
        check_classes(labelled([0.0] * 20), 1)
    with pytest.raises(UserError, match="has 3 texts of one class: at least 8"):
        check_classes(labelled([0.0] * 20 + [1.0] * 3), 8)


def test_fingerprint_sees_texts_and_labels() -> None:
    prints = {labelled(labels).fingerprint() for labels in ([0.0, 1.0], [1.0, 0.0], [0.0, 1.0, 1.0])}
    assert len(prints) == 3
    assert labelled([0.0, 1.0]).fingerprint() in prints


def rows(texts: range, column: str = "label") -> str:
    return f"text,{column}\n" + "".join(f"text {i},{i % 2}\n" for i in texts)


def test_no_text_in_two_parts(tmp_path: Path) -> None:
    """Texts of the test and validation files are not trained on."""
    data = write(tmp_path, "data.csv", rows(range(100)))
    chosen_on = write(tmp_path, "valid.csv", rows(range(90, 130)))
    judged_by = write(tmp_path, "test.csv", rows(range(120, 140), "y"))
    tests = (f"{judged_by}::label=y",)
    found = gather(DataOptions((str(data),), Source(""), validation=str(chosen_on), tests=tests))
    assert len(found.train) == 90
    assert len(found.validation) == 30
    assert len(found.tests["test.csv"].texts) == 20
    parts = [found.labelled.take(part) for part in (found.train, found.validation)]
    assert len(without(parts[0], parts[1], found.tests["test.csv"]).texts) == 90
    assert found.labelled.files == ("data.csv", "valid.csv")


def test_other_number_of_columns_in_the_test(tmp_path: Path) -> None:
    data, test = write(tmp_path, "data.csv", "text,a,b\nx,1,0\n"), write(tmp_path, "test.csv", rows(range(9)))
    with pytest.raises(UserError, match=r"test\.csv gives 1 label columns where the data gives 2"):
        gather(DataOptions((str(data),), Source("", "text", ("a", "b")), tests=(f"{test}::label=label",)))


def test_safe_name() -> None:
    assert safe_name("is it/bad?") == "is_it_bad_"
    assert safe_name("..") == "_"


def test_jsonl_keeps_unusual_line_breaks(tmp_path: Path) -> None:
    line = json.dumps({"text": "one\u2028two\x85", "label": 1}, ensure_ascii=False)
    assert read(write(tmp_path, "a.jsonl", line)).texts == ("one\u2028two",)
