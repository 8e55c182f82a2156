"""Concurrent requests to an endpoint with OpenAI's chat completions API."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.installation import install_command

UNAVAILABLE = (402, 429, 502, 503, 504)  # statuses that say nothing about the request: no credit, overloaded, no server
Messages = list[dict[str, str]]
Reply = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Endpoint:
    address: str  # such as http://localhost:8000/v1
    model: str
    key: str
    timeout: float  # seconds per attempt
    retries: int  # further attempts after a failure
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of a request: temperature, max_tokens


class _Stopped(Exception):
    """Error that ends all requests, because further ones would get no reply, either. Its text is the reason."""


def ask_all(
    conversations: Iterable[tuple[str, Messages]], on_reply: Callable[[Reply], None], endpoint: Endpoint, requests: int
) -> tuple[dict[str, str], str]:
    """Sends conversations, each (id, messages), to an endpoint, at most `requests` at a time. Calls `on_reply` with each reply
    as it arrives. Retries after rate limits, timeouts, lost connections and server errors, with increasing delays.

    A reply has the keys id, text, refused, finish_reason, prompt_tokens, completion_tokens and attempts. The numbers of tokens
    are None if the endpoint does not report them. Returns {id: error} for conversations without a reply, and the reason why the
    endpoint is unavailable, or "". It is unavailable if it rejects the key, the model or the address, if it redirects to
    another address, if many consecutive requests fail (these stop early), or if it could not be reached or was overloaded in
    the last attempt at a conversation.
    Raises ValueError if the package openai is missing."""
    try:
        import openai

        from igpo_jax.rewrite.client import LimitedClient
    except ImportError:
        raise ValueError(f"asking an endpoint needs openai: {install_command('data')}") from None
    unanswered: dict[str, str] = {}
    remaining = iter(conversations)
    most_failures, consecutive_failures, outage = max(8, 2 * requests), 0, ""

    async def work(client: openai.AsyncOpenAI) -> None:
        nonlocal consecutive_failures, outage
        for id, messages in remaining:
            try:
                reply = await _ask(client, endpoint, messages)
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                raise _Stopped(f"the endpoint does not take these requests: {_reason(error)}") from None
            except (openai.OpenAIError, ValueError, RecursionError) as error:
                if isinstance(error, openai.APIStatusError) and error.status_code < 400:
                    target = error.response.headers.get("Location", "nowhere")[:200]
                    raise _Stopped(f"the endpoint redirects to {target}; if you trust this address, give it instead") from None
                unanswered[id] = _reason(error)
                consecutive_failures += 1
                unreachable = isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError)
                if unreachable or getattr(error, "status_code", None) in UNAVAILABLE:
                    outage = unanswered[id]
                if consecutive_failures >= most_failures:
                    count = f"{consecutive_failures} consecutive requests got no reply"
                    raise _Stopped(f"{count}; the last error: {unanswered[id]}") from None
            else:
                consecutive_failures = 0
                on_reply({"id": id, **reply})

    async def work_all() -> None:
        patience: dict[str, Any] = {"timeout": endpoint.timeout, "max_retries": endpoint.retries}
        http_client = LimitedClient(endpoint.timeout)
        client = openai.AsyncOpenAI(base_url=endpoint.address, api_key=endpoint.key, http_client=http_client, **patience)
        async with client, asyncio.TaskGroup() as group:
            for _ in range(requests):
                group.create_task(work(client))

    try:
        asyncio.run(work_all())
    except ExceptionGroup as group:
        if not isinstance(group.exceptions[0], _Stopped):
            raise group.exceptions[0] from None
        return unanswered, str(group.exceptions[0])
    return unanswered, f"{len(unanswered)} requests got no reply; an error: {outage}" if outage else ""


async def _ask(client, endpoint: Endpoint, messages: Messages) -> Reply:
    create = client.chat.completions.with_raw_response.create
    response = await create(model=endpoint.model, messages=messages, **endpoint.options)
    completion = response.parse()
    try:  # the library does not check replies: one may be an HTML page, or an error with status 200
        choice, usage = completion.choices[0], completion.usage
        text, reason, refusal = choice.message.content, choice.finish_reason, choice.message.refusal
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
    except (AttributeError, LookupError, TypeError):
        raise ValueError("the response is not a chat completion") from None
    for value, kind in ((text, str), (reason, str), (counts[0], int), (counts[1], int)):
        found = f"{type(value).__name__} instead of {kind.__name__}"
        require(isinstance(value, kind | None), f"the response is not a chat completion: {found}")
    text = (text or "").encode("utf-8", "replace").decode()  # a lone surrogate cannot be encoded
    reply = {"text": text, "refused": bool(refusal) or reason == "content_filter", "finish_reason": reason}
    return reply | {"prompt_tokens": counts[0], "completion_tokens": counts[1], "attempts": response.retries_taken + 1}


def _reason(error: Exception) -> str:
    """Returns an error in one line. Prefers the message in the response's body, because the openai library's own message
    repeats the whole body."""
    status, body = getattr(error, "status_code", None), getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    cause = error.__cause__ if str(error) == "Connection error." else None  # only the cause says why
    text = " ".join(f"{message or error} {cause or ''}".split())[:200]
    return f"{status}: {text}" if status else text
