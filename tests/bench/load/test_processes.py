import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.load.client import Api
from bench.load.driver import Progress
from bench.load.processes import Clients, ClientsError, Setup, read_parts
from bench.load.records import Ask
from tests.bench.load.stub import Plan, Stub


def an_ask(index: int, prompt: str | list[int] = "a text") -> Ask:
    return Ask(index=index, prompt=prompt, prompt_tokens=2, output_tokens=4, at=index / 200)


def run(
    stub: Stub,
    folder: Path,
    asks: Iterator[Ask],
    count: int = 2,
    notify: Callable[[Progress, Clients], bool] = lambda progress, clients: False,
) -> tuple[Progress, list[Path]]:
    parts = [folder / f"part-{number}" for number in range(count)]
    setups = [Setup(api=Api(url=stub.url, model="stub"), timeout=20, records=str(part)) for part in parts]
    return asyncio.run(Clients(setups, notify).run(asks)), parts


def test_prompts_of_all_kinds_get_through(tmp_path: Path) -> None:
    kinds = ["a text", [1, 2, 3], [{"role": "user", "content": "hi"}]]
    with Stub() as stub:
        asks = (an_ask(index, kinds[index % 3]) for index in range(12))  # type: ignore[arg-type]
        progress, parts = run(stub, tmp_path, asks)
        bodies = stub.counts.bodies
    assert progress.outcomes == {"ok": 12}
    assert [record.index % 2 for record in read_parts(parts[:1])] == [0] * 6
    sent = [body.get("prompt", body.get("messages")) for body in bodies]
    assert all(sent.count(kind) == 4 for kind in kinds)


def test_a_run_is_ended_when_its_watcher_says_so(tmp_path: Path) -> None:
    seen: list[Progress] = []

    def notify(progress: Progress, clients: Clients) -> bool:
        seen.append(progress)
        return progress.offered > 20 and any(one.waiting < one.offered for one in seen)

    with Stub(lambda body: Plan(ends="never")) as stub:
        progress, parts = run(stub, tmp_path, map(an_ask, range(10**9)), notify=notify)
    assert progress.interrupted == progress.offered > 20  # though some had tokens, none had ended
    assert not list(read_parts(parts))


def test_a_workload_that_fails_ends_the_run(tmp_path: Path) -> None:
    def broken() -> Iterator[Ask]:
        for index in range(5000):
            yield an_ask(index)
        raise RuntimeError("no more paper")

    with Stub() as stub, pytest.raises(RuntimeError, match="no more paper"):
        run(stub, tmp_path, broken(), count=1)


def test_a_client_that_fails_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Stub() as stub, pytest.raises(ClientsError, match="a client process ended with status 1"):
        run(stub, tmp_path / "nowhere", map(an_ask, range(10)))
    assert "FileNotFoundError" in capfd.readouterr().err


def test_records_of_several_clients_are_in_the_order_of_their_ends(tmp_path: Path) -> None:
    with Stub(lambda body: Plan(pace=0.002)) as stub:
        progress, parts = run(stub, tmp_path, map(an_ask, range(40)), count=3)
    ends = [record.end for record in read_parts(parts)]
    assert len(ends) == progress.finished == 40
    assert ends == sorted(ends)
