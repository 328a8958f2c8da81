import json
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import validate

from engine.demo import domains
from engine.demo.names import Split, belongs
from engine.demo.tools import KINDS, draw_skill, draw_skills

ANY_SPLIT = st.sampled_from(["train", "test"])
ANY_KIND = st.sampled_from(list(KINDS))
SEEDS = st.integers(0, 2**32)


@settings(max_examples=200, deadline=None)
@given(ANY_KIND, ANY_SPLIT, SEEDS)
def test_every_argument_is_of_its_type_and_said_in_the_question(kind: str, split: Split, seed: int) -> None:
    rng = Random(seed)
    skill = draw_skill(kind, split, rng)
    use = skill.use(rng)
    validate(use.arguments, skill.tool["function"]["parameters"])
    assert list(use.arguments) == list(skill.tool["function"]["parameters"]["properties"])
    for value in use.arguments.values():
        assert re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", use.question), (value, use.question)


@settings(max_examples=200, deadline=None)
@given(ANY_KIND, ANY_SPLIT, SEEDS)
def test_the_answer_is_in_what_the_tool_returned(kind: str, split: Split, seed: int) -> None:
    rng = Random(seed)
    use = draw_skill(kind, split, rng).use(rng)
    if use.result.startswith("{"):
        assert use.answer in [str(value) for value in json.loads(use.result).values()]
    else:
        assert use.answer == use.result


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_calculator_is_right(seed: int) -> None:
    rng = Random(seed)
    use = draw_skill("sum", "train", rng).use(rng)
    found = re.search(r"(\d+) ([-+*]) (\d+)", use.question)
    assert found is not None
    a, b = int(found[1]), int(found[3])
    assert int(use.answer) == {"+": a + b, "-": a - b, "*": a * b}[found[2]] >= 0


@settings(max_examples=60, deadline=None)
@given(ANY_SPLIT, SEEDS)
def test_tools_that_are_given_together_differ_in_name_and_in_what_they_are_for(split: Split, seed: int) -> None:
    skills = draw_skills(3, split, Random(seed))
    assert len({skill.name for skill in skills}) == len({skill.word for skill in skills}) == 3


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["lookup", "action"]), ANY_SPLIT, SEEDS)
def test_names_of_tools_keep_to_their_split(kind: str, split: Split, seed: int) -> None:
    name = draw_skill(kind, split, Random(seed)).name
    assert re.fullmatch(r"[a-z0-9_]{1,64}", name)
    assert belongs(name, split)


def test_tools_of_the_untrained_domains_can_be_had() -> None:
    rng = Random(1)
    drawn = [draw_skill("lookup", "test", rng, domains=domains.UNTRAINED) for _ in range(60)]
    assert {skill.word for skill in drawn} <= {
        field.key for domain in domains.UNTRAINED for field in (*domain.facts, *domain.columns)
    }


def test_every_kind_of_tool_is_known_and_others_are_refused() -> None:
    assert sum(KINDS.values()) == 100
    with pytest.raises(KeyError, match="wand"):
        draw_skill("wand", "train", Random(1))
