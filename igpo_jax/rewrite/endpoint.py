"""Concurrent requests to an endpoint with OpenAI's chat completions API."""

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from igpo_jax.runtime.checks import require
from igpo_jax.runtime.installation import install_command

UNAVAILABLE = (402, 429, 502, 503, 504)  # statuses that say nothing about the request: no credit, overloaded, no server
Messages = list[dict[str, str]]
Reply = dict[str, Any]

# Keys of a reply, which is a line of replies.jsonl
REPLY_TYPES: dict[str, Any] = {"id": str, "text": str, "refused": bool, "finish_reason": str | None, "attempts": int}
COUNTS = ("prompt_tokens", "completion_tokens", "attempts")
REPLY_TYPES |= dict.fromkeys(COUNTS[:2], int | None)
MOST_TEXT = 1 << 20  # bytes of a reply's text in UTF-8
MOST_REASON = 64  # characters of finish_reason
NO_KEY = "none"  # a local server needs no key, but openai does
LEAST_KEY = 6  # characters of a secret key; shorter ones, such as x or EMPTY, are stand-ins, and may be words of a solution
MOST_COUNT = 1 << 53  # counts must be smaller, so that they are exact even in programs that read them as float64


@dataclasses.dataclass(frozen=True)
class Endpoint:
    address: str  # such as http://localhost:8000/v1
    model: str
    key: str
    timeout: float  # seconds per attempt
    retries: int  # further attempts after a failure
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of a request: temperature, max_tokens


def require_reply(reply: Any) -> None:
    """Raises ValueError if a value of a reply is missing, has the wrong type, or is out of range. The message names the key.
    Replies are checked before they are written to replies.jsonl, because the endpoint is not trusted."""
    require(isinstance(reply, dict), "no JSON object")
    for key, kind in REPLY_TYPES.items():
        require(key in reply, f"{key} is missing")
        fits = isinstance(reply[key], kind) and (kind is bool or not isinstance(reply[key], bool))
        require(fits, f"{key} has the type {type(reply[key]).__name__}")
    for key in COUNTS:
        require(0 <= (reply[key] or 0) < MOST_COUNT, f"{key} is negative or too large")
    require(len(reply["text"].encode("utf-8", "replace")) <= MOST_TEXT, f"text has more than {MOST_TEXT >> 20} MiB")
    reason = reply["finish_reason"] or ""
    require(len(reason) <= MOST_REASON and reason.isprintable(), "finish_reason is too long or not printable")


def check_address(address: str) -> None:
    """Raises ValueError if an endpoint's address is malformed, or if it has a user name, a password or a query. These may be
    secret, and the address is written to files that may be published."""
    source = "--endpoint (or OPENAI_BASE_URL)"
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises for a port that is no number below 65536
    except ValueError:  # its message may repeat a part of a password
        raise ValueError(f"{source} is no address with a valid host and port") from None
    require(
        parts.scheme in ("http", "https") and parts.hostname, f"{source} is no address that begins with http:// or https://"
    )
    require("@" not in parts.netloc, f"{source} has a user name or a password; give a key with --key_file instead")
    require(not parts.query, f"{source} has a query, the part behind a question mark, which cannot be sent; leave it out")
    with contextlib.suppress(ImportError):  # `ask_all` says what to install
        import httpx2

        try:
            httpx2.URL(address)
        except httpx2.InvalidURL as error:
            raise ValueError(f"{source} is no address: {error}") from None


def check_header(source: str, value: str) -> None:
    """Raises ValueError if a value that is sent in a header of requests has characters that are not allowed there. Otherwise,
    an error of the HTTP library would repeat the value, which may be secret. `source` is the value's name in the message."""
    valid = value.isascii() and value.isprintable()
    require(valid, f"{source} has a line break or another character that is not printable ASCII, so it cannot be sent")


class _Stopped(Exception):
    """Error that stops all requests if further requests are expected to fail, too. The message is the reason."""


def ask_all(
    conversations: Iterable[tuple[str, Messages]], on_reply: Callable[[Reply], None], endpoint: Endpoint, requests: int
) -> tuple[dict[str, str], str]:
    """Sends conversations, each (id, messages), to an endpoint, at most `requests` at a time. Calls `on_reply` with each reply
    as it arrives. After rate limits, timeouts, lost connections and server errors, sends the request again, with increasing
    delays.

    A reply has the keys of `REPLY_TYPES` and values that `require_reply` allows. The numbers of tokens are None if the endpoint
    does not report them.

    Returns {id: error} for conversations without a reply, and a text. The text is the reason why the endpoint is unavailable,
    or "" if the endpoint is available. The endpoint counts as unavailable if it rejects the key, the model or the address, if
    it redirects to another address, or if many consecutive requests fail. In these cases, no further requests are sent. The
    endpoint also counts as unavailable if the last attempt for any conversation failed because the endpoint could not be
    reached, was overloaded, or had no credit left. Raises ValueError if the package openai is missing."""
    try:
        import httpx2
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
                raise _Stopped(f"the endpoint does not take these requests: {_reason(error, endpoint.key)}") from None
            except (openai.OpenAIError, ValueError, RecursionError) as error:
                if isinstance(error, openai.APIStatusError) and error.status_code < 400:
                    target = _printable(error.response.headers.get("Location", "nowhere"), endpoint.key)
                    raise _Stopped(f"the endpoint redirects to {target}; if you trust this address, give it instead") from None
                unanswered[id] = _reason(error, endpoint.key)
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
    except httpx2.InvalidURL as error:  # that of the endpoint is valid, see `check_address`
        raise ValueError(f"an environment variable such as HTTP_PROXY has an address that is none: {error}") from None
    except ExceptionGroup as group:
        if not isinstance(group.exceptions[0], _Stopped):
            raise group.exceptions[0] from None
        return unanswered, str(group.exceptions[0])
    return unanswered, f"{len(unanswered)} requests got no reply; an error: {outage}" if outage else ""


async def _ask(client, endpoint: Endpoint, messages: Messages) -> Reply:
    create = client.chat.completions.with_raw_response.create
    response = await create(model=endpoint.model, messages=messages, **endpoint.options)
    # The library's own types check nothing. A reply may be an HTML page, or an error with status 200.
    try:
        completion = json.loads(response.content)  # parse_json would refuse a text with a lone surrogate
    except (ValueError, RecursionError):
        raise ValueError("the response is not a chat completion: not JSON") from None
    try:
        choice, usage = completion["choices"][0], completion.get("usage") or {}
        text, refusal = (choice["message"].get(key) for key in ("content", "refusal"))
        reason, counts = choice.get("finish_reason"), {key: usage.get(key) for key in COUNTS[:2]}
    except (AttributeError, LookupError, TypeError):
        raise ValueError("the response is not a chat completion") from None
    if isinstance(text, str):
        text = without_key(text.encode("utf-8", "replace").decode(), endpoint.key)  # a lone surrogate cannot be encoded
    reason = without_key(reason, endpoint.key) if isinstance(reason, str) else reason
    reply = {"text": "" if text is None else text, "refused": bool(refusal) or reason == "content_filter"}
    reply |= {"finish_reason": reason, **counts, "attempts": response.retries_taken + 1}
    try:
        require_reply({"id": "", **reply})
    except ValueError as error:
        raise ValueError(f"the response is not a chat completion: {error}") from None
    return reply


def _reason(error: Exception, key: str) -> str:
    """Returns the message of an error as one printable line without the endpoint's key. Uses the message in the body of the
    response if there is one, because the openai library's own message repeats the whole body."""
    status, body = getattr(error, "status_code", None), getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    cause = error.__cause__ if str(error) == "Connection error." else None  # only the cause says why
    text = _printable(f"{message if message and isinstance(message, str) else error} {cause or ''}", key)
    return f"{status}: {text}" if status else text


def _printable(text: str, key: str) -> str:
    """Returns the first 200 characters of a text as one printable line. Replaces control characters and lone surrogates with
    question marks. Lone surrogates cannot be encoded as UTF-8, so they could not be written to a file. Also replaces the
    endpoint's key."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(without_key(text, key).split())[:200])


def without_key(text: str, key: str) -> str:
    """Replaces the endpoint's key in a text with [key]. Replies and error messages may repeat the key, and the files may be
    published. Keeps a key with fewer than `LEAST_KEY` characters, which is no secret."""
    return text.replace(key, "[key]") if len(key) >= LEAST_KEY else text
