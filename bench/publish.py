"""Where does a benchmark leave what it measured? The measurements as JSON, and the page beside them."""

from pathlib import Path
from typing import Any

import msgspec


def publish(path: Path, result: Any, page: str) -> None:
    """Write ``result`` to ``path``, in folders that are made, and ``page`` to the file of that name in ``.md``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    path.with_suffix(".md").write_text(page)
