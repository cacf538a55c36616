"""What vLLM does to a request on its way changes no result, and what it cannot honour is refused."""

from __future__ import annotations

from typing import Any

import pytest

from decoder.contracts import UserError
from decoder.decoder import Decoder
from decoder.vllm_engine import check_version, plan_engine
from prompts import builtin
from prompts.reading import Prompt
from tests.vllm.conftest import SMALL

PROMPTS = [prompt.text for prompt in builtin("neutral")]
LONG = [" ".join(PROMPTS[i : i + 12]) for i in range(0, 24, 3)]  # some 150 tokens each, which overlap
CALL: dict[str, Any] = {"reward": "positive", "beta": 6.0, "max_new_tokens": 24, "do_sample": False}


def tokens(decoder: Decoder, prompts: list[str], **changes: Any) -> list[tuple[int, ...]]:
    found = decoder.generate(prompts, **{"batch_size": 256, **CALL, **changes})
    return [sample.token_ids for each in found for sample in each.samples]


def test_a_batch_of_betas_gives_each_the_text_it_gets_alone(vllm: Decoder) -> None:
    betas = {str(i): -8.0 + 16.0 * i / 63 for i in range(64)}
    prompts = [Prompt(id=i, text=PROMPTS[int(i)], betas={"positive": beta}) for i, beta in betas.items()]
    call: dict[str, Any] = {"reward": "positive", "batch_size": 64, "do_sample": False, "max_new_tokens": 16}
    together = vllm.generate(prompts, **call)
    alone = [vllm.generate(prompt, **call)[0] for prompt in prompts]
    assert [each.samples[0].token_ids for each in together] == [each.samples[0].token_ids for each in alone]
    assert len({each.samples[0].token_ids[:8] for each in together}) > 50


def test_prefix_hits_change_no_result(vllm: Decoder, hf: Decoder) -> None:
    first, again = tokens(vllm, LONG), tokens(vllm, LONG)  # the second time every block is in the cache
    assert first == again == tokens(hf, LONG)
    together = tokens(vllm, [LONG[0] + "!"], num_return_sequences=3)  # blocks shared within one pass
    assert together == tokens(hf, [LONG[0] + "!"]) * 3


def test_requests_that_are_left_alone_draw_what_they_would(vllm: Decoder) -> None:
    engine = vllm.backend.engine
    from vllm import SamplingParams

    def run(extra: list[dict[str, Any] | None]) -> list[list[int]]:
        for i, arguments in enumerate(extra):
            ids = vllm.tokenizer(PROMPTS[i])["input_ids"]
            parameters = SamplingParams(temperature=0.0, max_tokens=12, extra_args=arguments)
            engine.add_request(f"plain-{i}", {"prompt_token_ids": ids}, parameters)
        found: dict[str, list[int]] = {}
        while engine.has_unfinished_requests():
            found |= {each.request_id: [*each.outputs[0].token_ids] for each in engine.step()}
        return [found[f"plain-{i}"] for i in range(len(extra))]

    plain = run([None] * 8)
    steered = run([{"rewards": {"positive": 9.0}}] * 8)
    mixed = run([None, {"rewards": {"positive": 9.0}}] * 4)
    assert mixed == [steered[i] if i % 2 else plain[i] for i in range(8)]
    assert plain != steered


def test_an_interrupted_call_leaves_nothing_behind(vllm: Decoder) -> None:
    before = tokens(vllm, PROMPTS[:4])
    events = vllm.stream(PROMPTS[0], reward="positive", beta=6.0, max_new_tokens=24)
    for _ in range(3):
        next(events)
    assert vllm.backend.engine.collective_rpc("tiller_count") == [1]
    events.close()
    assert not vllm.backend.engine.has_unfinished_requests()
    assert tokens(vllm, PROMPTS[:4]) == before
    assert vllm.backend.engine.collective_rpc("tiller_count") == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"speculative_config": {"method": "ngram"}}, "speculative_config cannot be given beside rewards"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size cannot be above 1"),
        ({"runner": "pooling"}, "runner is 'pooling'"),
        ({"enable_lora": True}, "enable_lora cannot be given"),
        ({"rewards": ["nowhere"]}, "unknown reward 'nowhere'"),
        ({"probes": ["positive"]}, "kind tap_arm, which cannot score inside vLLM"),
    ],
)
def test_what_cannot_be_honoured_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_engine("smollm2-135m", **arguments)


def test_the_second_model_runner_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(UserError, match="VLLM_USE_V2_MODEL_RUNNER is set"):
        plan_engine("smollm2-135m")


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoder.vllm_engine.version", lambda name: "0.31.1")
    with pytest.raises(UserError, match=r"vllm 0\.31\.1 is installed, and Tiller runs inside vLLM 0\.32"):
        check_version()


def test_rewards_the_engine_has_not_are_refused_by_name(vllm: Decoder) -> None:
    with pytest.raises(UserError, match="elsewhere is not in the engine, which was started with"):
        vllm.generate("x", reward="elsewhere")
    with pytest.raises(UserError, match="trace needs"):
        vllm.generate("x", reward="positive", trace=True)


def test_small_caches_and_prompts_in_parts_change_no_result(hf: Decoder) -> None:
    """Runs last: a second engine, whose cache holds a few texts and whose passes cut every prompt."""
    cramped = Decoder.from_pretrained(
        dtype="float32", backend="vllm", num_gpu_blocks_override=40, max_num_batched_tokens=64, **SMALL
    )
    call: dict[str, Any] = {"num_return_sequences": 3, "max_new_tokens": 40}
    assert tokens(cramped, LONG, **call) == tokens(hf, LONG, **call)
    counted = {each.name: each for each in cramped.backend.engine.get_metrics()}
    assert counted["vllm:num_preemptions"].value > 0
    assert counted["vllm:prefix_cache_hits"].value > 0


def test_bfloat16_is_steered_in_float32(vllm: Decoder) -> None:
    half = Decoder.from_pretrained(dtype="bfloat16", backend="vllm", **SMALL)
    call: dict[str, Any] = {"reward": "positive", "beta": 6.0, "max_new_tokens": 1, "do_sample": False}
    for one, other in zip(
        half.generate(PROMPTS[:8], **call), vllm.generate(PROMPTS[:8], **call), strict=True
    ):
        if one.samples[0].token_ids == other.samples[0].token_ids:
            assert one.samples[0].rewards == pytest.approx(
                other.samples[0].rewards, abs=0.2
            )  # of some -3: the rounding of states
