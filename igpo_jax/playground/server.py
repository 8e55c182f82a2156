"""Web server of the playground with the routes /, /info, /generate (a stream of events) and /gif. No route reads a file."""

import asyncio
import contextlib
import dataclasses
import functools
import ipaddress
import itertools
import json
import logging
import pathlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import jax
import numpy as np
from jax import monitoring
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from igpo_jax.api import Completion, DiffusionLM
from igpo_jax.diffusion.stepwise import Step, compiled_programs
from igpo_jax.diffusion.unmasking import CACHES, COMMITS, REMASKINGS
from igpo_jax.playground.animation import gif, parse_animation
from igpo_jax.playground.connections import network_of
from igpo_jax.playground.request import LIMITS, parse_request
from igpo_jax.report.style import SHARED
from igpo_jax.report.templates import content_policy, read_source, render_page

REQUEST_BYTES, ANIMATION_BYTES = 1 << 16, 1 << 20
WAITING, OF_ONE_CLIENT = 32, 8  # jobs of a queue that may wait, and those of one client that may wait or run
CHUNK_BYTES = 1 << 16  # of a response
MESSAGE_CHARACTERS = 500
GONE = "the client has left"
PROGRAMS = 64  # number of compiled programs above which all of them are discarded

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Job:
    """A job of the playground's server: to generate a completion or to draw an animation for one client."""

    client: str  # see `client_of`
    number: int  # in the order of arrival
    work: Callable[[], Any]
    events: asyncio.Queue = dataclasses.field(default_factory=asyncio.Queue)  # for the client; None at the end
    stopped: threading.Event = dataclasses.field(default_factory=threading.Event)  # the client has disconnected
    future: Future = dataclasses.field(default_factory=Future)  # the result of `work`
    ahead: int | None = None  # number of jobs ahead of this one, as last reported to the client

    def run(self) -> None:
        """Calls `work` and stores its result or its exception in `future`. Does nothing if the job was stopped before."""
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.work())
            except BaseException as error:  # a library in Rust raises PanicException
                self.future.set_exception(error)

    def stop(self) -> None:
        """Stops the job. A running job ends after its current step, and a waiting job never starts."""
        self.stopped.set()
        self.future.cancel()


class JobQueue:
    """Queue that runs one job at a time in a thread of its own. Clients take turns (see `in_turns`), and the queue tells each
    client how many jobs are ahead of the client's own job. All methods are called in the event loop of the server."""

    def __init__(self, name: str):
        self._name, self._thread = name, ThreadPoolExecutor(1, name)
        self._jobs: list[Job] = []  # the running one, then the waiting ones in the order in which they will run
        self._arriving: list[str] = []  # the client of each request that may become a job
        self._turns: dict[str, int] = {}  # clients of these jobs and when their last turn ended
        self._numbers = itertools.count()  # of arrivals and of ends of turns

    @contextlib.contextmanager
    def arriving(self, client: str) -> Iterator[None]:
        """Context manager that keeps a place in the queue for a client while its request is parsed. Call `join` inside. Raises
        HTTPException with status 429 if too many jobs are waiting in total, or if this client has too many jobs. Requests that
        are being parsed count as jobs, because parsing may take long."""
        clients = [*(job.client for job in self._jobs), *self._arriving]
        if len(clients) > WAITING:
            raise HTTPException(429, f"{WAITING} {self._name} are waiting already; try again in a while")
        if clients.count(client) >= OF_ONE_CLIENT:
            raise HTTPException(429, f"{OF_ONE_CLIENT} {self._name} of your address are not finished; wait for one of them")
        self._arriving.append(client)
        try:
            yield
        finally:
            self._arriving.remove(client)

    def join(self, work: Callable[[Job, Callable[[dict], None]], Any], client: str) -> Job:
        """Adds a new job of a client to the queue and returns the job. The queue's thread calls `work` with the job and with a
        function that sends an event to the client."""
        loop = asyncio.get_running_loop()

        def send(event: dict) -> None:
            loop.call_soon_threadsafe(job.events.put_nowait, event)

        job = Job(client, next(self._numbers), lambda: work(job, send))
        job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave, job))
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._thread.submit(job.run)
        self._sort()
        return job

    def _leave(self, job: Job) -> None:
        was_first = job is self._jobs[0]
        self._jobs.remove(job)
        job.events.put_nowait(None)
        if was_first:
            self._turns[job.client] = next(self._numbers)
        clients = {job.client for job in self._jobs}
        self._turns = {client: turn for client, turn in self._turns.items() if client in clients}
        if was_first and self._jobs:
            self._thread.submit(self._jobs[0].run)
        self._sort()

    def _sort(self) -> None:
        self._jobs = in_turns(self._jobs, self._turns)
        for ahead, job in enumerate(self._jobs):
            if job.ahead != ahead:
                job.ahead = ahead
                job.events.put_nowait({"type": "place", "ahead": ahead})


def in_turns(jobs: list[Job], turns: dict[str, int]) -> list[Job]:
    """Returns the jobs in the order in which they run. The first job is already running. Each following job comes from the
    client that has waited longest. The waiting time of a client starts when its last turn ended (`turns`) or when its oldest
    job arrived, whichever is later. As a result, a new client waits for at most one job of each other client, and jobs that
    arrive later never overtake the first job of the new client."""
    ordered, left = jobs[:1], sorted(jobs[1:], key=lambda job: job.number)
    ends = itertools.count(max([*turns.values(), *(job.number for job in jobs)], default=0) + 1)
    turns = turns | {job.client: next(ends) for job in ordered}
    while left:
        job = min(left, key=lambda job: max(job.number, turns.get(job.client, 0)))
        left.remove(job)
        ordered.append(job)
        turns[job.client] = next(ends)
    return ordered


def client_of(request: Request) -> str:
    """Returns an identifier of the client that sent a request: the client's network (see `network_of`). The limit on jobs
    applies to each client. Behind a proxy, the proxy counts as the client. The header X-Forwarded-For is not read, because any
    client could forge it."""
    return network_of(request.client.host if request.client else "")


async def events(job: Job) -> AsyncIterator[str]:
    """Yields the events of a job in the format of server-sent events. If the client disconnects, a running job stops after its
    current step, and a waiting job never starts."""
    try:
        while (event := await job.events.get()) is not None:
            yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
    finally:
        job.stop()


async def result_of(job: Job, request: Request) -> Any:
    """Returns the result of a job. If the client disconnects first, stops the job and returns None."""

    async def leave() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    result, left = asyncio.wrap_future(job.future), asyncio.create_task(leave())
    try:
        await asyncio.wait([result, left], return_when=asyncio.FIRST_COMPLETED)
        return result.result() if result.done() else None
    finally:
        left.cancel()
        result.cancel()
        job.stop()


def application(model: DiffusionLM, begin_with: dict[str, Any], host: str, time_limit: float) -> ASGIApp:
    """Returns the playground's web application for a model. `begin_with` holds the initial values of the page's fields, `host`
    is the name or address on which the server listens, and `time_limit` is the maximum duration of a generation in seconds."""
    page, policy = read_page()
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
    generations, animations = JobQueue("generations"), JobQueue("animations")

    async def generate(request: Request) -> Response:
        body, client = await read_json_body(request, REQUEST_BYTES), client_of(request)
        with generations.arriving(client):
            # In a thread, because some texts take long to tokenize
            call = await run_in_threadpool(parse_request, body, model)
            if await request.is_disconnected():  # nobody would stop the job
                raise HTTPException(400, GONE)
            job = generations.join(functools.partial(denoise, call, model, time_limit), client)
        return StreamingResponse(events(job), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def animation(request: Request) -> Response:
        body, client = await read_json_body(request, ANIMATION_BYTES), client_of(request)
        with animations.arriving(client):
            cells, frames = parse_animation(body)
            job = animations.join(lambda job, _: gif(cells, frames, job.stopped.is_set), client)
        image = await result_of(job, request) or b""
        # In parts, so that a client that reads slowly is told from one that does not read.
        parts = (image[start : start + CHUNK_BYTES] for start in range(0, len(image), CHUNK_BYTES))
        return StreamingResponse(parts, media_type="image/gif", headers={"Content-Length": str(len(image))})

    async def refused(_: Request, error: Exception) -> Response:
        status, message = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
        return JSONResponse({"error": message[:MESSAGE_CHARACTERS]}, status)  # a message may quote the whole request

    answers = {"/": HTMLResponse(page, headers=headers), "/info": JSONResponse(info(model, begin_with))}
    routes = [Route(path, answer, methods=["GET"]) for path, answer in answers.items()]
    routes += [Route("/generate", generate, methods=["POST"]), Route("/gif", animation, methods=["POST"])]
    return same_origin_only(Starlette(routes=routes, exception_handlers={HTTPException: refused, ValueError: refused}), host)


def denoise(
    call: Callable[..., list[Completion]], model: DiffusionLM, time_limit: float, job: Job, send: Callable[[dict], None]
) -> None:
    """Generates a completion for a job and sends events to the job's client: one event of type "start", one event for each
    step, and one event of type "done" or "error" at the end. The event "done" contains the duration of the generation in
    seconds, and the part of it that JAX spent compiling. JAX compiles at the first request with new settings. The generation
    ends with an error if a step ends more than `time_limit` seconds after the beginning of the generation."""
    begun = time.monotonic()
    before: np.ndarray | None = None

    def watch(step: Step) -> None:
        nonlocal before
        if job.stopped.is_set():
            raise CancelledError
        send(event_of(step, before, model))
        before = step.tokens[0]
        if time.monotonic() - begun > time_limit:
            raise TimeoutError

    try:
        if compiled_programs() > PROGRAMS:  # bounds memory: each new setting compiles programs
            jax.clear_caches()
        with compile_seconds() as compiling:
            [completion] = call(watch=watch)
        seconds = {"seconds": round(time.monotonic() - begun, 2), "compile_seconds": round(compiling(), 2)}
        send({"type": "done", "text": completion.text} | seconds)
    except CancelledError:
        pass
    except TimeoutError:
        send({"type": "error", "message": f"stopped after {time_limit:g} seconds, the --time_limit of this playground"})
    except BaseException as error:  # of a device or a compiler, or PanicException of a library in Rust; the server continues
        log.exception("a generation failed")
        send({"type": "error", "message": f"the model failed: {type(error).__name__}: {str(error)[:300]}"})


@contextlib.contextmanager
def compile_seconds() -> Iterator[Callable[[], float]]:
    """Context manager that measures the time in which this thread traces, compiles or reads programs of JAX. Yields a function
    that returns this time in seconds."""
    thread = threading.get_ident()
    spans: list[tuple[float, float]] = []  # beginning and end; they do not overlap

    def heard(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/") and threading.get_ident() == thread:
            end = time.monotonic()
            begin = end - duration_secs
            spans[:] = [span for span in spans if span[0] < begin] + [(begin, end)]  # without those inside this one

    monitoring.register_event_duration_secs_listener(heard)
    try:
        yield lambda: sum(end - begin for begin, end in spans)
    finally:
        monitoring.unregister_event_duration_listener(heard)


def event_of(step: Step, before: np.ndarray | None, model: DiffusionLM) -> dict[str, Any]:
    """Returns the event that tells the page about a denoising step. `before` is the canvas before the step. If `before` is
    None, the event contains the initial canvas, with None for blanks. Otherwise, the event contains the new tokens, each as
    [position, text, probability, alternatives]. Tokens after the end of the text are not sampled, so their probability is None
    and their list of alternatives is empty."""
    assert model.tokenizer is not None  # checked before the server starts
    piece, tokens = model.tokenizer.piece, step.tokens[0]
    if before is None:
        canvas = [None if token == model.config.mask_id else piece(token) for token in tokens.tolist()]
        return {"type": "start", "canvas": canvas}
    written = []
    for position in np.flatnonzero(tokens != before).tolist():
        probability, alternatives, inside = None, [], position - step.start
        if inside < step.probability.shape[1]:
            probability = round(float(step.probability[0, inside]), 4)
            likely = zip(step.likeliest[0, inside].tolist(), step.likelihood[0, inside].tolist(), strict=True)
            alternatives = [[piece(token), round(share, 4)] for token, share in likely]
        written.append([position, piece(tokens[position]), probability, alternatives])
    return {"type": "step", "step": step.number, "written": written}


def info(model: DiffusionLM, begin_with: dict[str, Any]) -> dict[str, Any]:
    """Returns facts about the model for the page, and the limits, choices and initial values of the page's fields."""
    origin = {name: value for name, value in model.origin.items() if name not in ("path", "adapters")}
    if "adapters" in model.origin:
        origin["adapters"] = pathlib.Path(str(model.origin["adapters"])).name
    name = pathlib.Path(str(model.origin.get("path", "model"))).resolve().name
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    facts = {"name": name, **origin, "parameters": parameters, "dtype": model.config.param_dtype, "device": device}
    choices = {"remasking": REMASKINGS, "commit": COMMITS, "cache": CACHES, "fallback": ("leftmost", "most_confident")}
    fields = {"chat": has_chat_template(model), "limits": LIMITS, "choices": choices, "begin_with": begin_with}
    return facts | fields


def has_chat_template(model: DiffusionLM) -> bool:
    try:
        return bool(model.encode("Hello", chat=True))
    except ValueError:
        return False


async def read_json_body(request: Request, most: int) -> Any:
    """Returns the JSON content of a request, which may have at most `most` bytes. The content type of the request must be
    application/json. This requirement keeps out requests from pages of other sites, because a browser sends such a request with
    this content type only if this server permits it."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "the request is not application/json")
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise HTTPException(413, f"the request has more than {most} bytes")
    except ClientDisconnect:
        raise HTTPException(400, GONE) from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the request is not JSON") from None


def same_origin_only(app: ASGIApp, host: str) -> ASGIApp:
    """Wraps a web application so that it rejects requests that a page of another site sends from a visitor's browser. The
    header Origin of such a request names another site, or the header Host contains a name that an attacker has made to resolve
    to this machine (DNS rebinding). IP addresses are accepted as Host, because DNS rebinding needs a name. A header of each
    response tells browsers not to guess the type of the response."""
    reason = {"error": "this page is for this machine: Host and Origin must be its address, localhost or --host"}
    refusal: ASGIApp = JSONResponse(reason, 403)

    def is_ours(headers: Headers) -> bool:
        try:
            name = urlsplit(f"//{headers.get('host', '')}").hostname or ""
            if name not in ("localhost", host.lower()):
                ipaddress.ip_address(name)
            return "origin" not in headers or urlsplit(headers["origin"]).netloc == headers["host"]
        except ValueError:  # neither a known name nor an address
            return False

    async def check(scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        accepted = scope["type"] != "http" or is_ours(Headers(scope=scope))
        await (app if accepted else refusal)(scope, receive, sent)

    return check


def read_page() -> tuple[str, str]:
    """Returns the HTML page and its Content-Security-Policy. The policy allows only the page's own script and style sheet, and
    connections to this server."""
    styles, scripts, connect = [read_source("playground/page.css")], [SHARED + read_source("playground/page.js")], "'self'"
    page = render_page("playground/page.html", styles, scripts, connect, title="Denoising playground")
    return page, f"{content_policy(styles, scripts, connect)}; frame-ancestors 'none'"
