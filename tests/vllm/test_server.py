"""The server over loopback, with the client that people have: concurrent rewards, streams, refusals."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from eval.server_process import run_server
from prompts import builtin

SERVE = [sys.executable, "-m", "decoder.serve"]
PROMPTS = [prompt.text for prompt in builtin("neutral")]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    engine = ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "32"]
    with run_server(["--dtype", "float32"], engine) as started:
        yield started.url


def ask(client: Any, prompt: str, rewards: list[str] | None, **changes: Any) -> Any:
    extra = {"vllm_xargs": {"rewards": rewards}} if rewards else {}
    call = {
        "model": "smollm2-135m",
        "prompt": prompt,
        "temperature": 0.0,
        "max_tokens": 12,
        "extra_body": extra,
    }
    return client.completions.create(**{**call, **changes})


def test_clients_at_once_get_the_text_they_would_get_alone(server: str) -> None:
    wishes = [None, ["positive:8"], ["positive:-8"], ["nontoxic:4", "positive:2"], ["positive"]]

    async def together() -> list[str]:
        client = openai.AsyncOpenAI(base_url=server, api_key="none")
        calls = [ask(client, PROMPTS[i], wishes[i % len(wishes)]) for i in range(20)]
        return [done.choices[0].text for done in await asyncio.gather(*calls)]

    client = openai.OpenAI(base_url=server, api_key="none")
    alone = [ask(client, PROMPTS[i], wishes[i % len(wishes)]).choices[0].text for i in range(20)]
    assert asyncio.run(together()) == alone
    texts = {ask(client, PROMPTS[0], wish).choices[0].text for wish in wishes[:3]}
    assert len(texts) == 3


def test_streams_and_cancellation(server: str) -> None:
    client = openai.OpenAI(base_url=server, api_key="none")
    whole = ask(client, PROMPTS[1], ["positive:8"]).choices[0].text
    pieces = [event.choices[0].text for event in ask(client, PROMPTS[1], ["positive:8"], stream=True)]
    assert "".join(pieces) == whole
    assert len(pieces) > 3
    stream = ask(client, PROMPTS[1], ["positive:8"], stream=True, max_tokens=400)
    next(iter(stream))
    stream.close()  # the client leaves
    assert ask(client, PROMPTS[1], ["positive:8"]).choices[0].text == whole


def test_chats_are_steered_too(server: str) -> None:
    client = openai.OpenAI(base_url=server, api_key="none")
    call = {"model": "smollm2-135m", "temperature": 0.0, "max_tokens": 16}
    told = [{"role": "user", "content": "How was the concert?"}]
    texts = {
        client.chat.completions.create(
            messages=told, extra_body={"vllm_xargs": {"rewards": [f"positive:{beta}"]}}, **call
        ).choices[0].message.content
        for beta in (-9, 9)
    }  # fmt: skip
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"rewards": ["positive:much"]}, "beta of reward 'positive' is 'much': give a finite number"),
        ({"rewards": ["friendly:1"]}, "unknown reward 'friendly': this engine has nontoxic, positive"),
        ({"rewards": ["positive:1"], "reward_top_k": 0}, "reward_top_k is 0"),
        ({"rewards": 3}, "rewards is 3"),
    ],
)
def test_bad_requests_are_told_why(server: str, arguments: dict[str, Any], reason: str) -> None:
    client = openai.OpenAI(base_url=server, api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match=reason):
        ask(client, PROMPTS[0], None, extra_body={"vllm_xargs": arguments})
    assert ask(client, PROMPTS[0], None).choices[0].text, "the server goes on"


def test_beams_beside_rewards_are_refused(server: str) -> None:
    """vLLM chooses beams by the base model alone, so that the rewards would be lost in silence."""
    client = openai.OpenAI(base_url=server, api_key="none", max_retries=0)
    beams = {"use_beam_search": True, "n": 2}
    with pytest.raises(openai.BadRequestError, match="use_beam_search cannot be asked for beside rewards"):
        ask(client, PROMPTS[0], None, extra_body={**beams, "vllm_xargs": {"rewards": ["positive:2"]}})
    assert ask(client, PROMPTS[0], None, extra_body=beams).choices[0].text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward", "nowhere"], "unknown reward 'nowhere'"),
        (["--", "--pipeline-parallel-size", "2"], "pipeline_parallel_size cannot be above 1"),
        (["--", "-pp=2"], "pipeline_parallel_size cannot be above 1"),
        (["--", "--speculative-config", '{"method": "ngram"}'], "speculative_config cannot be given"),
        (["--", "--runner=pooling"], "runner is 'pooling'"),
    ],
)
def test_a_server_that_cannot_be_is_refused_before_it_starts(words: list[str], message: str) -> None:
    done = subprocess.run([*SERVE, *words], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert message in " ".join(done.stderr.split())


def test_a_dry_run_prints_the_command() -> None:
    engine = ["--", "--port", "9000", "--tensor-parallel-size", "2"]
    done = subprocess.run([*SERVE, "--dry-run", *engine], capture_output=True, text=True, check=True)
    command = json.loads(done.stdout)
    assert command[-4:] == engine[1:]
    assert "--enforce-eager" in command, "on a CPU"
    assert command[command.index("--served-model-name") + 1] == "smollm2-135m"
