"""A teacher's values of the generator's own candidates, learnt by the tap ARM: against loops and decodes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from decoder.lm import CausalLM
from decoder.replay import left_pad
from rewards.arm import ArmConfig, TapArm
from rewards.arm_losses import LEVEL, SPREAD, candidate_loss
from rewards.ask_teacher import choose_candidates, value_candidates
from rewards.backbone_heads import ActionValueHead, ValueHead
from rewards.backbone_texts import encode
from rewards.candidate_values import Candidates, CandidateValues
from rewards.distil import Teacher
from rewards.features import read_states, tokenise
from rewards.fit_arm import Recipe, Scale, Task, fit, task_loss
from rewards.fit_backbone import Scorer
from tests.heads import as_lm, random_head
from tests.tiny import tiny_llama, tiny_tokenizer

TEXTS = ("the kettle sang", "a", "she thought of the sea and the sea")
K, PLACES = 4, 3
WORDS = ["the", "a", "sea", "she", "kettle", "sang", "thought", "of", "and"]


def test_loss_is_the_formula() -> None:
    """Spread: weighted variance of the error in P. Level: weighted cross-entropy. Means over places."""
    generator = torch.Generator().manual_seed(0)
    log_odds, soft = torch.randn(2, 3, K, generator=generator), torch.rand(2, 3, K, generator=generator)
    shares = torch.rand(2, 3, K, generator=generator)
    shares /= shares.sum(-1, keepdim=True)
    spread = level = 0.0
    for s, p, w in zip(*(x.reshape(-1, K).tolist() for x in (log_odds, soft, shares)), strict=True):
        q = [1 / (1 + math.exp(-each)) for each in s]
        errors = [a - b for a, b in zip(q, p, strict=True)]
        mean = sum(a * b for a, b in zip(w, errors, strict=True))
        spread += sum(a * (b - mean) ** 2 for a, b in zip(w, errors, strict=True))
        level -= sum(
            a * (t * math.log(b) + (1 - t) * math.log(1 - b)) for a, b, t in zip(w, q, p, strict=True)
        )
    expected = (SPREAD * spread + LEVEL * level) / 6
    assert candidate_loss(log_odds, soft, shares).item() == pytest.approx(expected, rel=1e-5)


def test_what_candidates_share_is_no_spread() -> None:
    soft, shares = torch.tensor([[[0.2, 0.5, 0.4]]]), torch.tensor([[[0.5, 0.3, 0.2]]])
    shifted = (soft + 0.3).logit()
    level = torch.nn.functional.binary_cross_entropy_with_logits(shifted, soft, reduction="none")
    found = candidate_loss(shifted, soft, shares)
    torch.testing.assert_close(found, LEVEL * (shares * level).sum())


def random_teacher(head: ValueHead | ActionValueHead, link: str) -> Teacher:
    torch.manual_seed(5)
    for weight in head.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return Teacher(Scorer(tiny_llama(seed=7), head), (1, 0), link)  # type: ignore[arg-type]


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("kind", ["rad", "arm"])
def test_asked_as_a_loop_would(kind: str, adds_bos: bool) -> None:
    """At every place: the generator's likeliest tokens, their shares, and the teacher's P of each."""
    tokenizer = tiny_tokenizer(adds_bos=adds_bos)
    lm = as_lm(tiny_llama(seed=3), tokenizer)
    head = ValueHead(32, 2) if kind == "rad" else ActionValueHead(32, 2, None)
    teacher = random_teacher(head, "sigmoid" if kind == "rad" else "clamp")
    texts = encode(tokenizer, TEXTS, torch.zeros(3, 2), 64, None)
    found = choose_candidates(lm, texts, PLACES, K, seed=1)
    soft = value_candidates(teacher, texts, found, "asking")
    read = tokenise(tokenizer, TEXTS, 64).ids
    for row, ids in enumerate(read):
        prefix_bos = [] if adds_bos else [tokenizer.bos_token_id]
        for p, place in enumerate(found.places[row].tolist()):
            assert 0 <= place < len(ids)
            prefix = [*prefix_bos, *ids[: place + 1]]
            with torch.no_grad():
                best = lm.model(torch.tensor([prefix])).logits[0, -1].topk(K)
            assert found.token_ids[row, p].tolist() == best.indices.tolist()
            torch.testing.assert_close(found.shares[row, p], best.values.softmax(-1), atol=1e-5, rtol=1e-4)
            for k, token in enumerate(best.indices.tolist()):
                torch.testing.assert_close(
                    soft[row, p, k], naive_p(teacher, prefix, token), atol=3e-5, rtol=1e-4
                )
    assert torch.equal(CandidateValues(found, soft).label(1).soft, soft[..., 1])


@torch.no_grad()
def naive_p(teacher: Teacher, prefix: list[int], token: int) -> torch.Tensor:
    """Return P (2,) of a text by its value from scratch, in the student's order of outputs."""
    head = teacher.scorer.head
    ids = [*prefix, token] if isinstance(head, ValueHead) else prefix
    h = teacher.scorer(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[0, -1]
    value = (
        head(h) if isinstance(head, ValueHead) else head(h, teacher.scorer.embed(torch.tensor([token])))[0]
    )
    p = value.sigmoid() if teacher.link == "sigmoid" else value.clamp(0, 1)
    return p[[1, 0]]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, CausalLM, TapArm]:
    """Texts whose candidates a hidden tap ARM has valued, at places of their own."""
    tokenizer = tiny_tokenizer()
    lm = as_lm(tiny_llama(seed=3), tokenizer)
    rng = np.random.default_rng(0)
    words = [" ".join(rng.choice(WORDS, 8)) for _ in range(120)]
    rows = tokenise(tokenizer, words, 64)
    states = read_states(lm, rows, (1, 3), tmp_path_factory.mktemp("states"))
    arm = TapArm.bind(random_head(32, (1, 3), output="probability", seed=4), lm)
    places = torch.from_numpy(rng.integers(0, states.lengths.numpy()[:, None], (120, PLACES)))
    token_ids = torch.from_numpy(rng.integers(3, 300, (120, PLACES, K)))
    soft = torch.zeros(120, PLACES, K)
    for row, ids in enumerate(rows.ids):
        for p, place in enumerate(places[row].tolist()):
            prompt, mask = left_pad([ids[: place + 1]], torch.device("cpu"))
            reading = lm.start(arm.layers).prefill(prompt, mask)
            soft[row, p] = arm.start(prompt, mask).score(token_ids[row, p][None], reading)[0].detach()
    candidates = Candidates(places, token_ids, torch.full((120, PLACES, K), 1 / K))
    values = CandidateValues(candidates, soft)
    every = torch.arange(120)
    labels = np.array([1.0, 0.0] * 60)
    task = Task(states, lm.output_embeddings.detach(), labels, every[:100], every[100:], candidates=values)
    return task, lm, arm


def unit_scale() -> Scale:
    return Scale(torch.zeros(64), torch.ones(64), torch.zeros(32), torch.ones(32))


def test_loss_of_a_head_is_that_of_its_decode(task: tuple[Task, CausalLM, TapArm]) -> None:
    """The hidden head itself has no spread left, and the entropy of its own values as level."""
    given, _, arm = task
    assert given.candidates is not None
    texts = torch.tensor([3, 50, 7])
    weights, targets = given.balanced()
    found = task_loss(arm.head, unit_scale(), given, texts, targets, weights)
    p = given.candidates.soft[texts].double()
    entropy = -(p.xlogy(p) + (1 - p).xlogy(1 - p))
    assert found.item() == pytest.approx(LEVEL * entropy.mean().item(), abs=1e-4)


def test_a_tap_learns_the_differences(task: tuple[Task, CausalLM, TapArm]) -> None:
    """On held-out texts the fitted head tells candidates apart as its teacher does, uncalibrated."""
    given, _, _ = task
    assert given.candidates is not None
    fitted = fit(
        given, ArmConfig((1, 3), 32, rank=8), Recipe(weight_decay=0.1, epochs=60, learning_rate=1e-2)
    )
    assert (fitted.temperature, fitted.bias) == (1.0, 0.0)
    weights, targets = given.balanced()

    def held_out(head: object) -> float:
        found = task_loss(head, unit_scale(), given, given.validation, targets, weights)  # type: ignore[arg-type]
        return found.item()

    untrained = fit(given, ArmConfig((1, 3), 32, rank=8), Recipe(epochs=1, learning_rate=1e-9))
    assert held_out(fitted.head) < 0.4 * held_out(untrained.head)
    assert fitted.loss == pytest.approx(held_out(fitted.head), rel=1e-3)
    assert fit(replace(given, candidates=None), ArmConfig((1, 3), 32, rank=8), Recipe(epochs=1)).bias != 0.0
