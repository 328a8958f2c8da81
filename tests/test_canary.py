"""What docs/canary.md tells to do is done, command by command, on the demo model and a copy of it that is broken."""

import re
from pathlib import Path

import pytest

from tests.documented import Page, until


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page("canary.md", tmp_path)


def test_a_bad_canary_is_rolled_back_by_itself(page: Page) -> None:
    assert "noise" in page.do("python examples/break_model.py")
    with page.serve("penstock serve --config examples/canary") as serving:
        counts = page.do("python examples/ask.py", serving).splitlines()[-1]
        right = re.search(r"'stable right': (\d+)", counts)
        assert right is not None and int(right[1]) >= 300, counts
        status = until(lambda: page.do("penstock rollout status", serving), "rolled back")
        assert re.search(r"rolled back from 10 % after \d+ requests to the canary: \w+ .*limit 80 : 1", status)
        assert any("WARNING" in line and "rolled back" in line for line in serving.said)
        assert serving.metric("penstock_rollout_weight") == 0
        again = page.do("penstock rollout restart", serving)
        assert "running at 10 %, step 1 of 3" in again and "with a new prompt" in again


def test_what_a_shadow_answers_is_compared(page: Page) -> None:
    with page.serve("penstock serve --config examples/shadow") as serving:
        page.do("python examples/ask.py", serving)
        shown = until(lambda: page.do("curl -s", serving), r'"compared":[1-9]')
        assert '"model":"chat"' in shown and '"target":"next"' in shown
