"""How are log lines written? As text for people, or as one JSON object a line for whatever collects them.

An object has ``time`` (UTC, RFC 3339), ``level``, ``logger`` and ``message``; ``request`` and ``trace`` where the line
is about a request (`about`); ``exception``, a traceback, where there is one.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

Format = Literal["text", "json"]

_TEXT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
_encode: Final = msgspec.json.Encoder().encode


def set_up(level: str, format: Format) -> None:
    """Have lines of at least ``level`` written to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def about(request_id: str, trace_id: str = "") -> dict[str, str]:
    """What ``extra`` of a line about a request is."""
    return {"request": request_id, "trace": trace_id}


class JsonFormatter(logging.Formatter):
    """Writes a line as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in ("request", "trace"):
            value = getattr(record, name, "")
            if value:
                said[name] = str(value)
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            said["stack"] = self.formatStack(record.stack_info)
        return _encode(said).decode()
