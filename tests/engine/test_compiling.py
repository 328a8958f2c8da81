"""Do jobs come out when their grammars are done, each once, and does the loop that sleeps hear of it?"""

import select
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from llguidance import LLMatcher

from engine.compiling import Compiled, Compiling
from tests.engine.driving import job


def readable(compiling: Compiling, seconds: float = 0.0) -> bool:
    return bool(select.select([compiling.descriptor], [], [], seconds)[0])


def test_a_job_waits_until_its_grammar_is_done() -> None:
    compiling = Compiling()
    ours, future = job(1, [1], 1), Future[LLMatcher]()
    compiling.wait_for(ours, future)
    assert compiling.take() == []
    assert not readable(compiling)
    future.set_exception(ValueError("no"))
    assert readable(compiling)
    assert compiling.take() == [Compiled(ours, future)]
    assert not readable(compiling)
    assert compiling.take() == []
    compiling.close()


def test_one_future_serves_several_jobs() -> None:
    compiling = Compiling()
    future = Future[LLMatcher]()
    jobs = [job(uid, [1], 1) for uid in range(3)]
    for one in jobs:
        compiling.wait_for(one, future)
    future.set_exception(ValueError("no"))
    assert [taken.job for taken in compiling.take()] == jobs
    compiling.close()


def test_many_from_many_threads_come_out_once_each() -> None:
    compiling = Compiling()
    gate = threading.Event()

    def compile_nothing() -> LLMatcher:
        gate.wait()
        raise ValueError("no")

    with ThreadPoolExecutor(4) as pool:
        for uid in range(5000):
            compiling.wait_for(job(uid, [1], 1), pool.submit(compile_nothing))
        gate.set()
        seen: list[int] = []
        while len(seen) < 5000:
            assert readable(compiling, 60)
            seen += [taken.job.uid for taken in compiling.take()]
    assert sorted(seen) == list(range(5000))
    compiling.close()


def test_an_end_that_nobody_waits_for_is_no_fault() -> None:
    compiling = Compiling()
    future = Future[LLMatcher]()
    compiling.wait_for(job(1, [1], 1), future)
    compiling.close()
    future.set_exception(ValueError("no"))
