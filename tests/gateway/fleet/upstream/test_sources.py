"""Where targets come from: URLs, files, names; and that those that left finish what they have."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from gateway.fleet.upstream.address import Address, parse_url
from gateway.fleet.upstream.options import UpstreamOptions
from gateway.fleet.upstream.sources import Name, Sources, parse_file, parse_source
from gateway.fleet.upstream.targets import Targets
from tests.gateway.harness import run
from tests.gateway.lane.harness import chat, lane, until
from tests.gateway.lane.upstream import Talk, Upstream


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://10.0.0.5:8000", Address(False, "10.0.0.5", 8000, "")),
        ("http://10.0.0.5:8000/v1/", Address(False, "10.0.0.5", 8000, "")),
        ("https://api.example.com/openai/v1", Address(True, "api.example.com", 443, "/openai")),
        (" http://[::1]:80 ", Address(False, "::1", 80, "")),
    ],
)
def test_urls_are_taken_apart(text: str, address: Address) -> None:
    assert parse_url(text) == address
    assert parse_url(address.url) == address


@pytest.mark.parametrize(
    "text", ["", "10.0.0.5:8000", "ftp://x", "http://", "http://u:p@x", "http://x?y", "http://x:99999", "http://a b/"]
)
def test_what_is_no_url_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"http://HOST:PORT|valid port|blanks|netloc"):
        parse_url(text)


def test_names_and_files_are_read() -> None:
    assert parse_source("dns:vllm.default.svc:8000") == Name("vllm.default.svc", 8000)
    for wrong in ("dns:", "dns:x", "dns:x:0", "dns:x:y"):
        with pytest.raises(ValueError, match="dns:NAME:PORT"):
            parse_source(wrong)
    lines = "# ours\n\nhttp://a:1\n  dns:b:2 \n"
    assert parse_file(lines) == [Address(False, "a", 1, ""), Name("b", 2)]
    assert parse_file(json.dumps(["http://a:1", "dns:b:2"])) == parse_file(lines)
    with pytest.raises(ValueError, match="list of strings"):
        parse_file("[1]")


def test_what_publishes_kv_events_says_where() -> None:
    address = Address(False, "10.0.0.5", 8000, "", "tcp://10.0.0.5:5557", "tcp://b:5558")
    assert parse_source("http://10.0.0.5:8000 kv=tcp://*:5557  replay=tcp://b:5558") == address
    assert parse_source("http://[::1]:1 kv=tcp://*:5557") == Address(False, "::1", 1, "", "tcp://[::1]:5557")
    assert parse_source("dns:b:2 kv=tcp://*:5557") == Name("b", 2, "tcp://*:5557")
    for wrong in ("http://a kv=5557", "http://a replay=tcp://b:1", "http://a weight=2", "dns:b:2 kv="):
        with pytest.raises(ValueError, match=r"kv=tcp://HOST:PORT|replay= needs kv="):
            parse_source(wrong)


def addresses(targets: Targets) -> list[str]:
    return [target.address.url for target in targets]


def test_a_names_addresses_come_and_go() -> None:
    async def scenario() -> None:
        hosts = ["10.0.0.1", "10.0.0.2"]
        failing = False

        async def lookup(name: Name) -> list[str]:
            if failing:
                raise OSError("no such name")
            return list(hosts)

        targets = Targets(UpstreamOptions(), frozenset({"m"}))
        sources = Sources(targets, [Name("workers", 80), parse_url("http://fixed:1")], lookup=lookup)
        await sources.look()
        assert addresses(targets) == ["http://10.0.0.1:80", "http://10.0.0.2:80", "http://fixed:1"]
        hosts[0] = "10.0.0.3"
        await sources.look(resolve=False)
        assert "http://10.0.0.1:80" in addresses(targets)
        await sources.look()
        assert sorted(addresses(targets)) == ["http://10.0.0.2:80", "http://10.0.0.3:80", "http://fixed:1"]
        failing = True
        await sources.look()
        assert len(targets) == 3

    run(scenario())


def test_a_real_name_is_resolved() -> None:
    async def scenario() -> None:
        targets = Targets(UpstreamOptions())
        await Sources(targets, [Name("localhost", 9)]).look()
        assert {target.address.host for target in targets} & {"127.0.0.1", "::1"}

    run(scenario())


def test_a_watched_file_adds_and_removes_targets_while_requests_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        begin = asyncio.Event()

        async def slow(talk: Talk) -> None:
            talk.begin_stream()
            talk.event("one")
            await begin.wait()
            talk.end_stream()

        listed = tmp_path / "upstreams"

        def write(*upstreams: Upstream) -> None:
            (tmp_path / "new").write_text("\n".join(one.url for one in upstreams))
            os.replace(tmp_path / "new", listed)

        async with Upstream(slow) as old, Upstream() as new:
            write(old)
            async with lane(file=str(listed), resolve_every=0.05) as gateway:
                await until(lambda: [target.up for target in gateway.targets] == [True])
                sent = await gateway.send(chat(stream=True))
                await sent.reader.readuntil(b"one")
                write(old, new)
                await until(lambda: [target.up for target in gateway.targets] == [True, True])
                write(new)
                await until(lambda: [target.address.port for target in gateway.targets] == [new.port])
                assert (await gateway.post(chat())).status == 200
                assert len(new.requests) == 1
                listed.write_text("this is no list of upstreams")
                await asyncio.sleep(0.15)
                assert len(gateway.targets) == 1
                begin.set()
                answer = await sent.answer_rest()
                assert b"[DONE]" in answer

    run(scenario())


def test_where_all_addresses_change_the_old_ones_stay_until_a_new_one_answers() -> None:
    async def scenario() -> None:
        targets = Targets(UpstreamOptions())
        sources = Sources(targets, [parse_source("http://a:1"), parse_source("http://b:1")])
        await sources.look()
        old, _ = list(targets)
        old.up = True
        sources.change([parse_source("http://c:1")])
        await sources.look()
        assert addresses(targets) == ["http://a:1", "http://c:1"]  # the other one was away anyhow
        await sources.look(resolve=False)
        assert addresses(targets) == ["http://a:1", "http://c:1"]
        list(targets)[1].up = True
        await sources.look(resolve=False)
        assert addresses(targets) == ["http://c:1"]
        sources.change([parse_source("http://c:1 kv=tcp://*:5557")])
        await sources.look(resolve=False)
        assert [target.address.kv_events for target in targets] == ["tcp://c:5557"]
        sources.change([])
        await sources.look(resolve=False)
        assert addresses(targets) == []

    run(scenario())
