"""The commands of a page of the documentation, run one by one against a server on a port of its own."""

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.serving import Serving

ROOT = Path(__file__).parent.parent
_PROGRAMS = {"python": [sys.executable], "penstock": [sys.executable, "-m", "penstock"]}
_REMOTE = ("rollout",)
"""Commands of ours that ask a server."""


class Page:
    """A page's commands, to be run in ``folder``, where examples/ is as it is here."""

    def __init__(self, name: str, folder: Path) -> None:
        text = (ROOT / "docs" / name).read_text()
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        self.commands: list[str] = [line for block in blocks for line in block.splitlines()]
        self.folder = folder
        (folder / "examples").symlink_to(ROOT / "examples")

    def command(self, beginning: str) -> str:
        """The first one that begins so."""
        return next(line for line in self.commands if line.startswith(beginning))

    def start(self, beginning: str, serving: Serving | None = None) -> "subprocess.Popen[str]":
        """Run a command, against ``serving`` instead of a server on the usual port."""
        program, *rest = shlex.split(self.command(beginning))
        words = _PROGRAMS.get(program, [program]) + rest
        if serving is not None:
            words = [word.replace("http://127.0.0.1:8000", serving.url) for word in words]
            words += ["--url", serving.url] if program == "penstock" and rest[0] in _REMOTE else []
            words += [serving.url] if rest[0] == "examples/ask.py" else []
        return subprocess.Popen(
            words, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def do(self, beginning: str, serving: Serving | None = None) -> str:
        """The same, to its end; what it printed."""
        with self.start(beginning, serving) as running:
            out, err = running.communicate(timeout=120)
        assert running.returncode == 0, err
        return out

    def serve(self, beginning: str) -> Serving:
        """The server that a command starts."""
        program, part, *rest = shlex.split(self.command(beginning))
        assert (program, part) == ("penstock", "serve")
        return Serving(*rest, folder=self.folder)


def until(said: Callable[[], str], pattern: str) -> str:
    """What is said once it has ``pattern`` in it."""
    deadline = time.monotonic() + 30
    while not re.search(pattern, text := said()):
        assert time.monotonic() < deadline, text
        time.sleep(0.2)
    return text
