"""What the server turns away before vLLM sees it, because vLLM would answer it without rewards in silence."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

WHY = (
    "use_beam_search cannot be asked for beside rewards: beams are chosen by the base model's own "
    "probabilities; leave one of them out"
)


async def refuse_beams(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
    """Answer HTTP 400 to a beam search with rewards, and pass everything else on (ASGI middleware)."""
    if request.method == "POST" and asks_for_beams(await request.body()):
        from starlette.responses import JSONResponse

        error = {"message": WHY, "type": "BadRequestError", "param": "use_beam_search", "code": 400}
        return JSONResponse({"error": error}, status_code=400)
    return await call_next(request)


def asks_for_beams(body: bytes) -> bool:
    """Return whether a request's body asks for a beam search and for rewards. What is no JSON does not."""
    if b"use_beam_search" not in body:
        return False
    try:
        asked = json.loads(body)
    except ValueError:
        return False
    extra = asked.get("vllm_xargs") if isinstance(asked, dict) else None
    return bool(extra and asked.get("use_beam_search") and "rewards" in extra)
