"""The routes, without a browser: queue, limits and access."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import threading

import httpx
import jax
import jax.numpy as jnp
import pytest
from jax import monitoring
from starlette.requests import Request
from starlette.testclient import TestClient

from igpo_jax.playground import server
from igpo_jax.playground.server import OF_ONE_CLIENT, WAITING, application

ASKED = {"prompt": "Hello", "completion_length": 16, "block_length": 8, "steps": 8, "temperature": 0.7, "seed": 3}
DECODING = {name: value for name, value in ASKED.items() if name != "prompt"}


@pytest.fixture
def app(model):
    return application(model, {}, "127.0.0.1", 600)


@pytest.fixture
def client(app):
    return TestClient(app, base_url="http://localhost:8000")


def told(text: str) -> list[dict]:
    return [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def filled(events: list[dict]) -> list[str]:
    """Returns the canvas after all steps."""
    [canvas] = [event["canvas"] for event in events if event["type"] == "start"]
    for event in events:
        for position, text, _, _ in event.get("written", ()):
            assert canvas[position] is None, "only blanks are written"
            canvas[position] = text
    return canvas


@pytest.mark.slow
def test_the_stream_has_a_step_each_and_ends_in_what_generate_says(client, model):
    response = client.post("/generate", json=ASKED)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = told(response.text)
    [expected] = model.generate(["Hello"], **DECODING)
    assert [event["type"] for event in events] == ["place", "start", *["step"] * 8, "done"]
    assert events[-1]["text"] == expected.text
    assert filled(events) == [model.tokenizer.piece(token) for token in expected.tokens]
    for event in events[2:-1]:
        for position, text, probability, alternatives in event["written"]:
            assert expected.unmask_step[position] == event["step"]
            assert 0 <= probability <= 1 and len(alternatives) == 5
            named = [share for piece, share in alternatives if piece == text]  # tokens that are parts of a character look alike
            assert not named or probability in named


def test_what_follows_from_the_end_of_the_text_is_told_without_a_probability(model):
    """Uses a network that always predicts EOS: the second block is not denoised."""
    params = jax.tree.map(jnp.zeros_like, model.params)
    params |= {"embedding": jnp.ones_like(params["embedding"]), "final_norm": jnp.ones(32)}
    params["head"] = params["head"].at[:, model.config.eos_id].set(1.0)
    ending = dataclasses.replace(model, params=params)
    events = told(TestClient(application(ending, {}, "", 600), base_url="http://localhost").post("/generate", json=ASKED).text)
    steps = [event for event in events if event["type"] == "step"]
    assert [event["step"] for event in steps] == [0, 1, 2, 3] and events[-1]["text"] == ""
    assert [[position, text] for position, text, probability, _ in steps[-1]["written"] if probability is None] == [
        [position, "<|endoftext|>"] for position in range(8, 16)
    ]


def test_only_the_first_request_of_a_setting_compiles(client):
    first, second = (told(client.post("/generate", json=ASKED | {"temperature": 0.321}).text)[-1] for _ in range(2))
    assert 0 < first["compile_seconds"] <= first["seconds"] and second["compile_seconds"] == 0 <= second["seconds"]


@pytest.mark.parametrize("kind", [
    {"hint": "x" * 16, "steps": 16},  # nothing is left to denoise
    pytest.param({"cache": "dual", "steps": 8}, marks=pytest.mark.slow),
    pytest.param({"template": "a[MASK:3]"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_all_programs_that_a_request_compiles_are_counted_and_discarded(kind, client, monkeypatch):
    compiled = []

    def heard(event, seconds, **_):
        compiled.extend([event] if event == "/jax/core/compile/backend_compile_duration" else [])

    lengths = {} if "template" in kind else {"completion_length": 16, "block_length": 8}
    request = {"prompt": "Hello"} | lengths | kind
    longer = {"prompt": "Hello" * 20} | ({"template": "a[MASK:4]"} if "template" in kind else {"block_length": 4})
    assert told(client.post("/generate", json=request | {"temperature": 0.411}).text)[-1]["type"] == "done"
    before = server.compiled_programs()
    monitoring.register_event_duration_secs_listener(heard)
    try:
        assert told(client.post("/generate", json=request | longer | {"temperature": 0.412}).text)[-1]["type"] == "done"
    finally:
        monitoring.unregister_event_duration_listener(heard)
    added = server.compiled_programs() - before
    assert added == len(compiled) > 1
    monkeypatch.setattr(server, "PROGRAMS", added - 1)
    client.post("/generate", json=request | {"temperature": 0.413})
    assert server.compiled_programs() <= added


def test_the_time_of_nested_compilations_counts_once_and_other_threads_do_not_count():
    record = functools.partial(monitoring.record_event_duration_secs, "/jax/core/compile/backend_compile_duration")
    with server.compile_seconds() as compiling:
        record(100.0)
        record(300.0)  # began before the first
        thread = threading.Thread(target=record, args=(1000.0,))
        thread.start()
        thread.join()
        monitoring.record_event_duration_secs("/jax/other", 1000.0)
        assert compiling() == pytest.approx(300)
    record(1.0)
    assert compiling() == pytest.approx(300)


@pytest.mark.slow
def test_a_template_keeps_what_is_given(client, model):
    asked = {
        "prompt": "Hello",
        "template": "The answer is [MASK:4] because",
        "seed": 3,
        "temperature": 0.7,
        "logits_eos_inf": True,
    }
    events = told(client.post("/generate", json=asked).text)
    [expected] = model.infill(["The answer is [MASK:4] because"], prompts=["Hello"], seed=3, temperature=0.7)
    canvas = events[1]["canvas"]
    assert canvas.count(None) == 4 and "".join(canvas[: canvas.index(None)]) == "The answer is "
    assert events[-1]["text"] == expected.text
    assert filled(events) == [model.tokenizer.piece(token) for token in expected.tokens]


def test_a_generation_ends_with_an_error_at_its_time_limit(model):
    client = TestClient(application(model, {}, "", 1e-6), base_url="http://localhost")
    for _ in range(2):
        events = told(client.post("/generate", json=ASKED).text)
        assert [event["type"] for event in events] == ["place", "start", "error"] and "1e-06 seconds" in events[-1]["message"]


def test_an_error_does_not_repeat_a_long_request(client):
    response = client.post("/generate", json={"template": "[MASK:" * 10_000})
    assert response.status_code == 400 and len(response.content) < 3000


def test_no_browser_guesses_the_type_of_an_answer(client):
    answers = [client.get(path) for path in ("/", "/info", "/nothing")] + [
        client.post("/gif", json={}),
        client.post("/generate", json=ASKED),
    ]
    answers.append(client.get("/info", headers={"host": "evil.example"}))
    assert {answer.headers["x-content-type-options"] for answer in answers} == {"nosniff"}


def test_bad_input_is_answered_at_once(client):
    response = client.post("/generate", json=ASKED | {"steps": 3})
    assert response.status_code == 400 and "steps=3 is not a multiple" in response.json()["error"]


@pytest.mark.parametrize("content, kind, status", [
    (b"{", "application/json", 400),
    (b"[" * 60_000, "application/json", 400),
    (b"\xff", "application/json", 400),
    (b" " * 70_000, "application/json", 413),
    (b"{}", "text/plain", 415),
])  # fmt: skip
def test_bodies_that_are_none(client, content, kind, status):
    response = client.post("/generate", content=content, headers={"content-type": kind})
    assert response.status_code == status and response.json()["error"]


@pytest.mark.parametrize("headers, status", [
    ({}, 200),
    ({"host": "127.0.0.1:8000"}, 200),
    ({"host": "[::1]:8000"}, 200),
    ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
    ({"host": "evil.example"}, 403),
    ({"host": "localhost.evil.example:8000"}, 403),
    ({"host": ""}, 403),
    ({"host": "[::1"}, 403),
    ({"origin": "http://evil.example"}, 403),
    ({"origin": "http://localhost:9000"}, 403),
    ({"origin": "null"}, 403),
])  # fmt: skip
def test_only_pages_of_this_server_are_answered(client, headers, status):
    assert client.get("/info", headers=headers).status_code == status


def test_there_are_four_routes_and_no_files(client):
    for path in ("/page.html", "/../setup.py", "/%2e%2e/setup.py", "/docs", "/static"):
        assert client.get(path).status_code == 404
    assert client.get("/generate").status_code == client.post("/").status_code == 405
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "/" not in client.get("/info").json()["name"]


def test_gif(client):
    response = client.post("/gif", json={"frames": 1, "cells": [["a", 1, "#440154", False]]})
    assert response.headers["content-type"] == "image/gif" and response.content.startswith(b"GIF89a")
    assert client.post("/gif", json={"frames": 1, "cells": []}).status_code == 400


class PanicException(BaseException):
    """Error of a library in Rust."""


@pytest.mark.parametrize("error", [RuntimeError, PanicException])
def test_a_failing_model_is_an_event_and_the_next_request_is_served(client, monkeypatch, error):
    def fail(step, before, model):
        raise error("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(server, "event_of", fail)
        last = told(client.post("/generate", json=ASKED).text)[-1]
    assert last["type"] == "error" and "out of memory" in last["message"]
    assert told(client.post("/generate", json=ASKED).text)[-1]["type"] == "done"


# Concurrent requests


@contextlib.asynccontextmanager
async def connected(app, address="127.0.0.1"):
    transport = httpx.ASGITransport(app, client=(address, 1234))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", timeout=60) as client:
        yield client


@pytest.mark.slow
def test_twenty_at_once_wait_in_line_know_their_place_and_are_all_served(app, model, monkeypatch):
    monkeypatch.setattr(server, "OF_ONE_CLIENT", 20)

    async def together():
        async with connected(app) as client:
            asked = [ASKED | {"seed": seed} for seed in range(20)]
            return await asyncio.gather(*(client.post("/generate", json=one) for one in asked))

    for seed, response in enumerate(asyncio.run(together())):
        events = told(response.text)
        places = [event["ahead"] for event in events if event["type"] == "place"]
        assert places == sorted(places, reverse=True) and places[-1] == 0 and places[0] <= 19
        first = next(i for i, event in enumerate(events) if event["type"] == "start")
        assert all(event["type"] != "place" for event in events[first:])
        assert events[-1]["text"] == model.generate(["Hello"], **DECODING | {"seed": seed})[0].text


def test_a_text_that_takes_long_to_tokenize_keeps_nobody_waiting(app, monkeypatch):
    others_served, parse = threading.Event(), server.parse_request

    def slow(*arguments):
        assert others_served.wait(30)
        return parse(*arguments)

    monkeypatch.setattr(server, "parse_request", slow)

    async def together():
        async with connected(app) as client:
            asked = asyncio.create_task(client.post("/generate", json=ASKED))
            await asyncio.sleep(0.1)
            status = (await client.get("/info")).status_code
            others_served.set()
            return status, (await asked).text

    status, text = asyncio.run(together())
    assert status == 200 and told(text)[-1]["type"] == "done"


def test_a_client_over_its_limit_makes_the_server_tokenize_nothing(app, monkeypatch):
    enough, parse, parsed = threading.Event(), server.parse_request, []

    def slow(*arguments):
        parsed.append(1)
        assert enough.wait(30)
        return parse(*arguments)

    monkeypatch.setattr(server, "parse_request", slow)
    monkeypatch.setattr(server, "denoise", lambda *_: None)

    async def together():
        async with connected(app) as client, connected(app, "192.0.2.7") as other:
            waiting = [asyncio.create_task(client.post("/generate", json=ASKED)) for _ in range(OF_ONE_CLIENT)]
            waiting.append(asyncio.create_task(other.post("/generate", json=ASKED)))
            while len(parsed) <= OF_ONE_CLIENT:
                await asyncio.sleep(0.01)
            refused = await client.post("/generate", json=ASKED)
            assert len(parsed) == OF_ONE_CLIENT + 1
            enough.set()
            return refused, await asyncio.gather(*waiting), await client.post("/generate", json=ASKED)

    refused, served, after = asyncio.run(together())
    assert refused.status_code == 429 and "of your address are not finished" in refused.json()["error"]
    assert {response.status_code for response in (*served, after)} == {200}


def test_requests_that_fail_give_their_places_back(app, monkeypatch):
    monkeypatch.setattr(server, "OF_ONE_CLIENT", 1)

    def panic(*_):
        raise PanicException

    async def in_turn():
        async with connected(app) as client:
            refused = [await client.post("/generate", json=ASKED | {"steps": 3}) for _ in range(2)]
            refused += [await client.post("/gif", json={}) for _ in range(2)]
            with monkeypatch.context() as patch, pytest.raises(PanicException):
                patch.setattr(server, "parse_request", panic)
                await client.post("/generate", json=ASKED)
            return refused, await client.post("/generate", json=ASKED)

    refused, served = asyncio.run(in_turn())
    assert {response.status_code for response in refused} == {400} and told(served.text)[-1]["type"] == "done"


def test_whoever_leaves_while_the_request_is_parsed_gets_no_job(app, monkeypatch):
    monkeypatch.setattr(server, "OF_ONE_CLIENT", 1)
    jobs, sent = [], []
    monkeypatch.setattr(server, "denoise", lambda *_: jobs.append(1))
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "client": ("127.0.0.1", 1)}
    scope |= {"query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.3"}}

    async def leave():
        left = iter([{"type": "http.request", "body": json.dumps(ASKED).encode()}])

        async def receive():
            return next(left, {"type": "http.disconnect"})

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    async def visits():
        for _ in range(2):
            await leave()
        await asyncio.sleep(0.1)

    asyncio.run(visits())
    assert jobs == [] and [message["status"] for message in sent if "status" in message] == [400, 400]


def test_too_many_are_turned_away(app, monkeypatch):
    enough = threading.Event()
    monkeypatch.setattr(server, "denoise", lambda *_: enough.wait(30))
    monkeypatch.setattr(server, "OF_ONE_CLIENT", 2 * WAITING)

    async def together():
        async with connected(app) as client:
            waiting = [asyncio.create_task(client.post("/generate", json=ASKED)) for _ in range(WAITING + 1)]
            await asyncio.sleep(0.5)
            refused = await client.post("/generate", json=ASKED)
            enough.set()
            return refused, await asyncio.gather(*waiting)

    refused, served = asyncio.run(together())
    assert refused.status_code == 429 and "waiting already" in refused.json()["error"]
    assert {response.status_code for response in served} == {200}


def test_one_client_cannot_fill_the_queue(app, monkeypatch):
    """The client has all addresses of an IPv6 network of 64 bits. Another one is served after it."""
    enough = threading.Event()
    monkeypatch.setattr(server, "denoise", lambda *_: enough.wait(30))

    async def together():
        async with contextlib.AsyncExitStack() as stack:
            addresses = [f"2001:db8::{number:x}" for number in range(OF_ONE_CLIENT + 1)] + ["2001:db8:0:1::1"]
            *full, refused, other = [await stack.enter_async_context(connected(app, address)) for address in addresses]
            waiting = [asyncio.create_task(client.post("/generate", json=ASKED)) for client in full]
            await asyncio.sleep(0.5)
            waiting.append(asyncio.create_task(other.post("/generate", json=ASKED)))
            answer = await refused.post("/generate", json=ASKED)
            enough.set()
            served = await asyncio.gather(*waiting)
            return answer, served, await refused.post("/generate", json=ASKED)

    refused, served, after = asyncio.run(together())
    assert refused.status_code == 429 and "of your address are not finished" in refused.json()["error"]
    assert {response.status_code for response in (*served, after)} == {200}


@pytest.mark.parametrize("address, client", [
    ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("fe80::1%eth0", "fe80::/64"), ("socket", "socket"),
])  # fmt: skip
def test_a_client_is_an_address_or_a_network_of_64_bits(address, client):
    assert server.client_of(Request({"type": "http", "client": (address, 1)})) == client


def test_clients_take_turns():
    """The first client has four jobs, the others join while its first one runs."""
    jobs, log, may_end = server.JobQueue("jobs"), [], threading.Event()

    def work(name, job, send):
        log.append(name)
        may_end.wait(30)

    async def visits():
        queued = [jobs.join(functools.partial(work, f"a{number}"), "a") for number in range(4)]
        queued += [jobs.join(functools.partial(work, name), name[0]) for name in ("b0", "b1", "c0")]
        assert [job.ahead for job in queued] == [0, 3, 5, 6, 1, 4, 2]
        may_end.set()
        for job in queued:
            assert [event async for event in server.events(job)][-1] == 'data: {"type": "place", "ahead": 0}\n\n'

    asyncio.run(visits())
    assert log == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_clients_that_return_at_once_do_not_overtake_one_that_waits():
    """The first client has three jobs. Each of two others sends its next job as soon as its last one has ended."""
    jobs, log, may_end = server.JobQueue("jobs"), [], threading.Event()

    def work(name, job, send):
        log.append(name)
        may_end.wait(30)

    async def visits(client, number):
        for _ in range(number):
            async for _ in server.events(jobs.join(functools.partial(work, client), client)):
                pass

    async def together():
        waiting = [jobs.join(functools.partial(work, "a"), "a") for _ in range(3)]
        others = asyncio.gather(visits("b", 5), visits("c", 5))
        await asyncio.sleep(0)  # until both have joined
        may_end.set()
        await others
        assert all(job.future.done() for job in waiting)

    asyncio.run(together())
    assert log[:7] == ["a", "b", "c", "a", "b", "c", "a"] and log.count("b") == log.count("c") == 5


def test_a_job_that_is_withdrawn_leaves_its_place_to_the_client_s_next():
    jobs, may_end = server.JobQueue("jobs"), threading.Event()

    async def visits():
        queued = [jobs.join(lambda job, send: may_end.wait(30), client) for client in "abbc"]
        assert [job.ahead for job in queued] == [0, 1, 3, 2]
        queued[1].stop()
        assert [event async for event in server.events(queued[1])][1:] == []  # after its place
        assert [job.ahead for job in queued[2:]] == [1, 2]
        may_end.set()
        for job in queued[2:]:
            assert [event async for event in server.events(job)][-1] == 'data: {"type": "place", "ahead": 0}\n\n'

    asyncio.run(visits())


def test_whoever_leaves_is_not_worked_for_and_gives_up_the_place():
    """Queues three jobs: the first leaves while it runs, the second while it waits; the third runs next."""
    jobs, log, begun = server.JobQueue("jobs"), [], threading.Event()

    def work(name, job, send):
        log.append(name)
        begun.set()
        while name == "first" and not job.stopped.wait(0.01):
            pass
        log.append(f"{name} has ended")

    async def visits():
        first, second, third = (jobs.join(functools.partial(work, name), "client") for name in ("first", "second", "third"))
        streams = [server.events(job) for job in (first, second, third)]
        for ahead, stream in enumerate(streams):
            assert told(await anext(stream)) == [{"type": "place", "ahead": ahead}]
        await asyncio.to_thread(begun.wait)
        await streams[1].aclose()
        assert told(await anext(streams[2])) == [{"type": "place", "ahead": 1}]
        await streams[0].aclose()
        assert [event async for event in streams[2]] == ['data: {"type": "place", "ahead": 0}\n\n']

    asyncio.run(visits())
    assert log == ["first", "first has ended", "third", "third has ended"]
