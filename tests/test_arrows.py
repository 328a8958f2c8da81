"""Which room may know which? The arrows of docs/architecture.md, read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A room may import itself and what is listed here: whole rooms, or single modules of them.
ARROWS = {
    "kernels": frozenset[str](),
    "scheduler": frozenset[str](),
    "engine": frozenset({"kernels", "scheduler"}),
    "flywheel": frozenset[str](),
    "gateway": frozenset(
        {"scheduler", "engine.link", "flywheel.record", "flywheel.log", "flywheel.content", "flywheel.user_keys"}
    ),
    # On a GPU machine the engine is judged as the tests judge it, before it is timed.
    "bench": frozenset(
        {"kernels", "scheduler", "engine", "gateway", "flywheel", "tests.engine.driving", "tests.engine.families"}
    ),
}
# What a room may not even import from outside: decisions are pure, and the gateway's memory is its own.
FORBIDDEN = {
    "scheduler": frozenset(
        {"asyncio", "datetime", "os", "pathlib", "random", "socket", "subprocess", "threading", "time", "torch", "zmq"}
    ),
    "gateway": frozenset({"torch", "numba"}),
}


def imported(source: str, module: str, is_package: bool = False) -> set[str]:
    """Dotted names that ``source`` imports, wherever it does: at the top, in a function, or by a literal name."""
    names: set[str] = set()
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]) if base else ".".join(above)
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0]
            if called in ("import_module", "__import__") and isinstance(name, ast.Constant):
                names.add(str(name.value))
    return names


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of ``module`` that its room isn't allowed."""
    room = module.partition(".")[0]
    allowed = ARROWS[room] | {room}
    wrong = []
    for name in sorted(imported(source, module, is_package)):
        top = name.partition(".")[0]
        ours = top in ARROWS or top in ("tests", "penstock")
        known = any(name == one or name.startswith(f"{one}.") for one in allowed)
        if (ours and not known) or top in FORBIDDEN.get(room, ()):
            wrong.append(name)
    return wrong


def modules() -> list[tuple[str, Path]]:
    found = []
    for room in ARROWS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return found


@pytest.mark.parametrize(("module", "path"), [pytest.param(*one, id=one[0]) for one in modules()])
def test_a_module_imports_only_what_its_room_may_know(module: str, path: Path) -> None:
    wrong = violations(path.read_text(), module, path.name == "__init__.py")
    assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(wrong)}; see the arrows in docs/architecture.md"


def test_every_package_is_a_room_with_arrows() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(ARROWS)


def test_the_gateway_never_loads_torch() -> None:
    program = (
        "import importlib, pkgutil, sys, gateway\n"
        "for found in pkgutil.walk_packages(gateway.__path__, 'gateway.'):\n"
        "    importlib.import_module(found.name)\n"
        "heavy = {'torch', 'numba', 'duckdb', 'deltalake', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'the gateway loads {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("gateway.app", "import engine.worker", ["engine.worker"]),
        ("gateway.app", "from engine import worker", ["engine.worker"]),
        ("gateway.app", "from engine import *", ["engine.*"]),
        ("gateway.app", "from engine.linkage import Submit", ["engine.linkage.Submit"]),
        ("gateway.app", "def f():\n    from engine.runner import Runner", ["engine.runner.Runner"]),
        ("gateway.api.chat", "from ...engine import runner", ["engine.runner"]),
        ("gateway.app", "import importlib\nimportlib.import_module('engine.worker')", ["engine.worker"]),
        ("gateway.app", "import torch.nn", ["torch.nn"]),
        ("scheduler.batch", "import time", ["time"]),
        ("scheduler.batch", "import kernels", ["kernels"]),
        ("kernels.norm", "from scheduler.batch import Plan", ["scheduler.batch.Plan"]),
        ("gateway.app", "from flywheel.table import compact", ["flywheel.table.compact"]),
        ("flywheel.query", "from gateway.wire import chat", ["gateway.wire.chat"]),
        ("engine.runner", "from gateway.wire import errors", ["gateway.wire.errors"]),
        ("engine.runner", "from tests.engine import tiny", ["tests.engine.tiny"]),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str, wrong: list[str]) -> None:
    assert violations(source, module) == wrong


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway.app", "from engine.link import Submit"),
        ("gateway.app", "from engine import link"),
        ("gateway.app", "import engine.link"),
        ("gateway.app", "from flywheel.log import Log"),
        ("gateway.app", "from . import settings"),
        ("gateway.app", "from .wire.errors import ApiError"),
        ("gateway.app", "import time"),
        ("engine.runner", "import torch\nfrom kernels.norm import rms_norm\nfrom scheduler.batch import Plan"),
    ],
)
def test_a_right_arrow_is_let_through(module: str, source: str) -> None:
    assert violations(source, module) == []
