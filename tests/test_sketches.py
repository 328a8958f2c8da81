"""Prompts that are alike have sketches that are: on the records of a real server, with the demo model."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flywheel.log.frame import Kind
from flywheel.log.reading import read_frames
from flywheel.record import Record, decode_record
from tests.serving import Serving

SUMS = ("What is 12 plus 30?", "What is 14 plus 21?", "What is 11 plus 45?")
POEMS = ("Write a poem about snow.", "Write a poem about rain.", "Write a poem about the sea.")
PROMPTS = SUMS + POEMS
CONFIG = "models: {{chat: {{target: demo}}}}\ntargets: {{demo: {{engine: native}}}}\nlog: {{path: {}}}\n"


def asked(record: Record) -> str:
    assert record.content is not None and record.content.input is not None
    text: str = json.loads(record.content.input)["messages"][0]["content"]
    return text


def sketch(record: Record) -> np.ndarray:
    assert record.embedding is not None and len(record.embedding) == 128
    return np.frombuffer(record.embedding, "<f2").astype(np.float32)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Of each prompt asked twice: alone, and then all at a time, when the prefix cache has nearly all of each."""
    folder = tmp_path_factory.mktemp("sketches")
    config = folder / "penstock.yaml"
    config.write_text(CONFIG.format(folder / "log"))
    with Serving("--config", str(config)) as serving, ThreadPoolExecutor(len(PROMPTS)) as pool:
        client = serving.client()

        def ask(prompt: str) -> None:
            client.chat.completions.create(
                model="chat", messages=[{"role": "user", "content": prompt}], max_tokens=6, temperature=0
            )

        for prompt in PROMPTS:
            ask(prompt)
        list(pool.map(ask, PROMPTS))
        return [decode_record(one.body) for one in read_frames(folder / "log") if one.kind == Kind.RECORD]


def test_each_record_has_one_and_how_sure_the_model_was(records: list[Record]) -> None:
    assert len(records) == 2 * len(PROMPTS)
    for record in records:
        assert 0 < np.linalg.norm(sketch(record)) < np.inf
        sure = record.uncertainty
        assert sure is not None and None not in (sure.mean_entropy, sure.max_entropy, sure.min_logprob)
        assert sure.mean_logprob is not None and sure.mean_logprob <= 0
        assert sure.low_margin is not None and 0 <= sure.low_margin <= 1


def test_it_does_not_matter_who_is_beside_a_prompt(records: list[Record]) -> None:
    """But for bfloat16's rounding."""
    alone, together = (
        {asked(one): sketch(one) for one in half} for half in (records[: len(PROMPTS)], records[len(PROMPTS) :])
    )
    assert set(alone) == set(together) == set(PROMPTS)
    for prompt in PROMPTS:
        assert np.linalg.norm(alone[prompt] - together[prompt]) < 0.03 * np.linalg.norm(alone[prompt])


def test_prompts_that_are_alike_are_near(records: list[Record]) -> None:
    """On the average: a small model reads two sums as less alike than two poems."""
    made = {asked(one): sketch(one) for one in records[: len(PROMPTS)]}
    for kind, others in ((SUMS, POEMS), (POEMS, SUMS)):
        for prompt in kind:
            near, far = (
                np.mean([np.linalg.norm(made[prompt] - made[one]) for one in group if one != prompt])
                for group in (kind, others)
            )
            assert near < 0.95 * far
