"""What docs/canary.md tells to do is done, command by command, on the demo model and a copy of it that is broken."""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import Serving

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "canary.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which the page's commands can be run."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def command(beginning: str) -> str:
    (found,) = [line for line in COMMANDS if line.startswith(beginning)]
    return found


def do(line: str, folder: Path, serving: Serving | None = None) -> str:
    """Run a command of the page, against ``serving`` instead of a server on the usual port."""
    program, *rest = shlex.split(line)
    words = {"python": [sys.executable], "penstock": [sys.executable, "-m", "penstock"]}.get(program, [program]) + rest
    if serving is not None:
        words = [word.replace("http://127.0.0.1:8000", serving.url) for word in words]
        words += ["--url", serving.url] if program == "penstock" else []
        words += [serving.url] if rest[0] == "examples/ask.py" else []
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def serve(line: str, folder: Path) -> Serving:
    program, part, *rest = shlex.split(line)
    assert (program, part) == ("penstock", "serve")
    return Serving(*rest, folder=folder)


def until(said: Callable[[], str], pattern: str) -> str:
    """What is said once it has ``pattern`` in it."""
    deadline = time.monotonic() + 20
    while not re.search(pattern, text := said()):
        assert time.monotonic() < deadline, text
        time.sleep(0.2)
    return text


def test_a_bad_canary_is_rolled_back_by_itself(folder: Path) -> None:
    assert "noise" in do(command("python examples/break_model.py"), folder)
    with serve(command("penstock serve --config examples/canary"), folder) as serving:
        counts = do(command("python examples/ask.py"), folder, serving).splitlines()[-1]
        right = re.search(r"'stable right': (\d+)", counts)
        assert right is not None and int(right[1]) >= 300, counts
        status = until(lambda: do(command("penstock rollout status"), folder, serving), "rolled back")
        assert re.search(r"rolled back from 10 % after \d+ requests to the canary: \w+ .*limit 80 : 1", status)
        assert any("WARNING" in line and "rolled back" in line for line in serving.said)
        assert serving.metric("penstock_rollout_weight") == 0
        again = do(command("penstock rollout restart"), folder, serving)
        assert "running at 10 %, step 1 of 3" in again and "with a new prompt" in again


def test_what_a_shadow_answers_is_compared(folder: Path) -> None:
    with serve(command("penstock serve --config examples/shadow"), folder) as serving:
        do(command("python examples/ask.py"), folder, serving)
        shown = until(lambda: do(command("curl -s"), folder, serving), r'"compared":[1-9]')
        assert '"model":"chat"' in shown and '"target":"next"' in shown
