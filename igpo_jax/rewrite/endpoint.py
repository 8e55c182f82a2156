"""Asks any endpoint that speaks OpenAI's chat completions, many questions at once."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

Messages = list[dict[str, str]]
Reply = dict[str, Any]


class _Gone(Exception):
    """Nothing comes any more."""


def ask_all(
    conversations: Iterable[tuple[str, Messages]],
    on_reply: Callable[[Reply], None],
    *,
    address: str,
    model: str,
    key: str,
    requests: int,
    timeout: float,
    retries: int,
    **options,
) -> tuple[dict[str, str], str]:
    """Asks everything, `requests` at a time, and hands each reply to `on_reply` when it comes.

    A reply: id, text, refused, finish_reason, prompt_tokens and completion_tokens (None where the endpoint does not
    say), attempts. Rate limits, time-outs, lost connections and server errors are tried again with growing pauses.

    Args:
        timeout: seconds that an attempt may take. retries: further attempts. options: of the request: temperature, ...

    Returns:
        Of each conversation that was asked and got no reply, by its id, why; and why the rest was not asked, "" if all
        was: after many failures in a row it is the endpoint that has gone.

    Raises:
        ValueError: the endpoint refuses the key, or does not know the model or the address.
    """
    try:
        import openai
    except ImportError:
        raise ValueError('asking an endpoint needs openai: pip install -e ".[data]"') from None

    unanswered: dict[str, str] = {}
    waiting = iter(conversations)
    most_in_a_row = max(8, 2 * requests)
    in_a_row = 0

    async def work(client) -> None:
        nonlocal in_a_row
        for id, messages in waiting:
            try:
                reply = await _ask(client, model, messages, options)
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                raise ValueError(f"the endpoint does not take these requests: {_reason(error)}") from None
            except (openai.OpenAIError, ValueError, RecursionError) as error:
                unanswered[id] = _reason(error)
                in_a_row += 1
                if in_a_row >= most_in_a_row:
                    raise _Gone(f"{in_a_row} requests in a row got no reply, the last one: {_reason(error)}") from None
                continue
            in_a_row = 0
            on_reply({"id": id, **reply})

    async def work_all() -> None:
        async with openai.AsyncOpenAI(base_url=address, api_key=key, timeout=timeout, max_retries=retries) as client:
            async with asyncio.TaskGroup() as group:
                for _ in range(requests):
                    group.create_task(work(client))

    try:
        asyncio.run(work_all())
    except ExceptionGroup as group:
        if not isinstance(group.exceptions[0], _Gone):
            raise group.exceptions[0] from None
        return unanswered, str(group.exceptions[0])
    return unanswered, ""


async def _ask(client, model: str, messages: Messages, options: dict[str, Any]) -> Reply:
    response = await client.chat.completions.with_raw_response.create(model=model, messages=messages, **options)
    completion = response.parse()
    try:  # not a page of HTML, nor an error that calls itself a success; the library does not check what it parses
        choice, usage = completion.choices[0], completion.usage
        text, reason, refusal = choice.message.content, choice.finish_reason, choice.message.refusal
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
    except (AttributeError, LookupError, TypeError):
        raise ValueError("what came is no chat completion") from None
    for value, kind in ((text, str), (reason, str), (counts[0], int), (counts[1], int)):
        if not isinstance(value, kind | None):
            raise ValueError(f"what came is no chat completion: {type(value).__name__} where {kind.__name__} is expected")
    return {
        "text": (text or "").encode("utf-8", "replace").decode(),  # a lone surrogate is no text
        "refused": bool(refusal) or reason == "content_filter",
        "finish_reason": reason,
        "prompt_tokens": counts[0],
        "completion_tokens": counts[1],
        "attempts": response.retries_taken + 1,
    }


def _reason(error: Exception) -> str:
    """In one line: the library's message repeats the whole body."""
    status = getattr(error, "status_code", None)
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    text = " ".join(str(message or error).split())[:200]
    return f"{status}: {text}" if status else text
