"""What a text answers and whether that is right: by hand-written cases, by exact arithmetic, by threads."""

from __future__ import annotations

import random
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest

from decoder.contracts import UserError
from prompts import answers
from prompts.answers import extract, is_correct, majority, number, require_checker, weighted_vote

CASES = [
    # the order of the marks
    (r"first \boxed{1}, then \boxed{2}. The answer is 3. #### 4", "2"),
    ("The answer is 3.\n#### 4\nand 5", "4"),
    ("The answer is 3. No: the Answer IS 4. 5 left", "4"),
    ("Final answer: 12\n7 of them", "12"),
    ("It was 3, now it is 4", "4"),
    (r"\boxed{\frac{1}{2} \boxed{3", "3"),
    (r"4 \boxed{\{1, 2\}} and \boxed{5", r"\{1, 2\}"),
    (r"\boxed{} so the answer is 6", "6"),
    ("4 * 3 = 12. The answer is", "12"),
    # numbers, however they are written
    ("1,000", "1000"),
    ("1,000.0", "1000"),
    ("$5", "5"),
    ("-$5", "-5"),
    ("\N{MINUS SIGN}5", "-5"),
    ("it fell to -3.50.", "-7/2"),
    ("10-3", "3"),
    (".5", "1/2"),
    ("50%", "50"),
    ("2/4", "1/2"),
    ("1 1/2 cups", "3/2"),
    (r"so it is $\frac{3}{4}$", "3/4"),
    (r"\boxed{-\dfrac{2}{4}}", "-1/2"),
    (r"\boxed{2\frac12}", "5/2"),
    (r"\boxed{10{,}000}", "10000"),
    (r"\boxed{10,\! 000}", "10000"),
    ("1,2345", "2345"),
    ("007", "7"),
    # what stands around the answer
    ("The answer is: **42**.", "42"),
    ("The answer is $1,200. Bye", "1200"),
    ("The answer is 42 apples, I think", "42"),
    ("The answer is that Tom has 12 pens left.", "12"),
    ("The answer is 12 + 5 = 17.", "17"),
    ("The answer is $x = 5$.", "5"),
    ("The answer is 5!", "5"),
    ("The answer is 50km", "50"),
    (r"\boxed{5 \text{ cm}^2}", "5"),
    (r"\boxed{90^\circ}", "90"),
    # answers that are no number
    ("The answer is Paris, France.", "Paris, France"),
    (r"\boxed{\text{east}}", "east"),
    (r"\boxed{\text{(C)}}", "C"),
    ("The answer is (B) because of it", "B"),
    (r"The answer is \(p - q\), as we saw.", "p - q"),
    (r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"(3, \frac{\pi}{2})"),
    ("The answer is 2, 3 and 5.", "2, 3 and 5"),
    ("The answer is 3 pm.", "3 pm"),
    ("The answer is 5 million.", "5 million"),
    # nothing
    ("", None),
    ("I do not know", None),
    ("5/0", None),
    ("H2O", None),
    ("9" * 5000, None),
    ("####", None),
    # a base model that asks itself the next question
    (" 3 + 4 = 7. The answer is 7.\n\nQuestion: What is 1 + 1?\nAnswer: The answer is 2.", "7"),
    ("7\n Q: and 8?", "7"),
]


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_the_answer_of_a_text(text: str, answer: str | None) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize("answer", sorted({answer for _, answer in CASES if answer}))
def test_an_answer_in_a_box_stays_what_it_is(answer: str) -> None:
    assert extract(rf"\boxed{{{answer}}}") == answer
    assert is_correct(rf"It is \boxed{{{answer}}}.", answer) is True


def test_numbers_are_read_exactly() -> None:
    """Against values drawn first and written in several ways."""
    rng = random.Random(0)
    for _ in range(300):
        cents = rng.randrange(-(10**9), 10**9)
        value = Fraction(cents, 100)
        whole, part = divmod(abs(cents), 100)
        sign = "-" if cents < 0 else ""
        for said in (f"{sign}{whole:,}.{part:02}", f"{sign}{whole}.{part:02}00", f"{cents}/100"):
            assert number(said) == value
            assert extract(f"That makes {said}") == extract(f"The answer is {said} dollars.") == str(value)


@pytest.mark.parametrize("text", ["", "x", "1 2", "1,23", "5 apples", "1/0", "--1", "1e5", "3.", "1" * 301])
def test_what_is_not_one_number_is_none(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The answer is 1,000.", "1000.0", True),
        ("The answer is 0.3333.", "1/3", False),
        ("12345678901234567.1", "12345678901234567.2", False),  # equal as floats
        ("The answer is 12 apples", "12 apples", True),
        ("The answer is 12 pears and 3 apples", "12", True),
        ("no idea", "5", False),
        ("", "Paris", False),
        ("the answer is PARIS!", "Paris", True),
        ("the answer is Pairs", "Paris", False),  # letters are no factors
        ("the answer is June 20", "June 20", True),
        ("the answer is May 20", "June 20", False),
        ("the answer is 3 pm", "3 am", False),
        ("the answer is 5 million", "5", False),
        ("the answer is x + 3", "3", False),
        ("the answer is 17 or so", "seventeen", False),
        ("the answer is 50%", "$50$", True),
        (r"\boxed{\text{even}}", "Even", True),
    ],
)
def test_numbers_and_words_need_no_algebra(
    monkeypatch: pytest.MonkeyPatch, text: str, answer: str, right: bool
) -> None:
    monkeypatch.setattr(answers, "_checker", None)  # to call it would fail
    assert is_correct(text, answer) is right


ALGEBRA = [
    (r"\boxed{q^2 - p^2 + 0}", "(q - p)(q + p)", True),
    (r"\boxed{q^2 + p^2}", "(q - p)(q + p)", False),
    (r"\boxed{\frac{\sqrt{8}}{2}}", r"\sqrt{2}", True),
    (r"\boxed{\sqrt{36}}", "6", True),
    (r"\boxed{\sqrt{35}}", "6", False),
    (r"the answer is $\{3, 1, 2\}$", r"\{1,2,3\}", True),
    (r"\boxed{(\pi/2, 3)}", r"\left( 3, \frac{\pi}{2} \right)", False),
    (r"\boxed{(3, \pi/2)}", r"\left( 3, \frac{\pi}{2} \right)", True),
    (r"\boxed{\frac{1}{}", "p - q", False),
    (r"\boxed{\frac{}{x}^^_}", "p - q", False),
]


@pytest.mark.parametrize(("text", "answer", "right"), ALGEBRA)
def test_formulas_are_compared_by_what_they_mean(text: str, answer: str, right: bool) -> None:
    pytest.importorskip("math_verify")
    assert is_correct(text, answer) is right


def test_formulas_are_compared_in_any_thread(capfd: pytest.CaptureFixture[str]) -> None:
    """The checker's own limit is a signal, which another thread may not set."""
    pytest.importorskip("math_verify")
    found: list[bool | None] = []
    worker = threading.Thread(
        target=lambda: found.extend(is_correct(text, answer) for text, answer, _ in ALGEBRA)
    )
    worker.start()
    worker.join(timeout=60)
    assert found == [right for *_, right in ALGEBRA]
    assert capfd.readouterr() == ("", "")


def test_what_takes_too_long_is_undecided(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("math_verify")
    monkeypatch.setattr(answers, "SECONDS", 1)
    began = time.perf_counter()
    assert is_correct(r"\boxed{10^{10^{9}}}", r"\sqrt{5}") is None
    assert time.perf_counter() - began < 10
    assert capfd.readouterr() == ("", "")


def test_an_answer_that_cannot_be_read_leaves_it_undecided() -> None:
    pytest.importorskip("math_verify")
    assert is_correct(r"\boxed{5}", r"\frac{}{^^}_") is None
    assert is_correct(r"\boxed{\frac{}{^^}_}", r"\frac{}{^^}_") is True


def test_without_the_checker_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers._checker.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    require_checker(["5", "$1,000", "Paris", "12 apples"])
    assert is_correct("The answer is 5", "5") is True
    for ask in (lambda: is_correct(r"\boxed{x}", r"\sqrt{2}"), lambda: require_checker(["5", r"\sqrt{2}"])):
        with pytest.raises(UserError, match=r"need math-verify: pip install 'tiller-lm\[tasks\]'"):
            ask()


def test_the_majority_by_hand() -> None:
    texts = ["The answer is 5", "5.0", "no", "The answer is Rome", r"\boxed{5}", "the answer is ROME."]
    assert majority(texts).tolist() == pytest.approx([3 / 6, 3 / 6, 0, 2 / 6, 3 / 6, 2 / 6])
    assert majority(["7"]).tolist() == [1.0]
    assert majority(["none", ""]).tolist() == [0.0, 0.0]
    assert majority([]).shape == (0,)


def test_votes_are_the_weights_of_equal_answers() -> None:
    """Against a sum over all pairs."""
    rng = random.Random(1)
    texts = [rng.choice(["1", "1.0", "The answer is 2", "2/1", "x", r"\boxed{3}"]) for _ in range(40)]
    weights = [rng.choice([0.0, rng.random()]) for _ in texts]
    total = sum(weights)
    pairs = [
        sum(w for other, w in zip(texts, weights, strict=True) if extract(other) == extract(text)) / total
        if extract(text) is not None
        else 0.0
        for text in texts
    ]
    assert weighted_vote(texts, weights) == pytest.approx(pairs)
    assert weighted_vote(texts, np.full(40, 0.5)) == pytest.approx(majority(texts))
    assert weighted_vote(["1", "2"], [0, 0]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("bad", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_cannot_vote_is_refused(bad: float) -> None:
    with pytest.raises(UserError, match=f"weight {bad}: give finite weights of at least 0"):
        weighted_vote(["1", "2"], [0.5, bad])


def test_a_weight_for_each_text() -> None:
    with pytest.raises(ValueError, match="2 texts"):
        weighted_vote(["1", "2"], [0.5])


@pytest.mark.parametrize(
    "text",
    ["\\boxed{" * 600, "\n" * 9000, "1 " * 4000, "$" * 5000, "The answer is " + "1 + " * 3000, "1," * 4000],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.perf_counter()
    extract(text)
    assert time.perf_counter() - began < 2
