"""Which route does a path belong to? Fixed paths, and patterns such as ``/v1/files/{file_id}``."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_ID: Final = r"[A-Za-z0-9_-]{1,128}"  # what all our ids are made of: anything else names nothing
_OTHER: Final = {"model": r".+"}  # a model's name may be anything, slashes included


class Match(NamedTuple):
    """The route as it is written, and what its path parameters stand for."""

    route: str
    params: Mapping[str, str]


class Routes:
    """The routes of an application. A fixed path is looked up; a pattern comes to its turn only where none fits.

    A parameter ``{name}`` stands for a well-formed id, ``{model}`` for the rest of the path.
    """

    def __init__(self, routes: Iterable[str]) -> None:
        self._fixed: dict[str, Match] = {}
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for route in routes:
            if _PARAMETER.search(route):
                self._patterns.append((_pattern(route), route))
            else:
                self._fixed[route] = Match(route, {})

    def find(self, path: str) -> Match | None:
        """The route of ``path``, or None where it belongs to none."""
        found = self._fixed.get(path)
        if found is not None:
            return found
        for pattern, route in self._patterns:
            if match := pattern.fullmatch(path):
                return Match(route, match.groupdict())
        return None


def _pattern(route: str) -> re.Pattern[str]:
    pieces = _PARAMETER.split(route)  # text and parameter names by turns
    names = [f"(?P<{name}>{_OTHER.get(name, _ID)})" for name in pieces[1::2]]
    texts = [re.escape(text) for text in pieces[::2]]
    return re.compile("".join(text + name for text, name in zip(texts, [*names, ""], strict=True)))
