"""Which grammar must an answer match? One for llguidance, from what the request and the model's dialect say.

Composed of Lark rules (llguidance's variant of it) with the JSON schemas inline. An answer is perhaps reasoning, then
what is asked for. Markers that are tokens of their own are named by their ids, all else is text.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

from gateway.text.dialect import THINK, Dialect
from gateway.text.schema import ConstraintError, check_schema

MAX_BRANCHES: Final = 1500
"""Rules and opening brackets of a grammar that a client wrote: llguidance follows them on the stack, see `schema`."""

# White space in JSON answers is one blank, or a line break and the indentation after it: a model that would go on with
# blanks for ever has to come to the point. Arguments of calls are written on one line, as all dialects are trained.
_ANSWER_SPACE: Final = {"whitespace_pattern": r" |\n {0,16}"}
_CALL_SPACE: Final = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_NO_ARGUMENTS: Final[dict[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
_LIKE_A_CALL: Final = r'[ \n]*\{[ \n]*"(name|parameters|arguments|type|id)"(.|\n)*'
"""What a text must not begin with where calls have no marker: `gateway.text.tool_forms` would read a call."""


class Shape(Protocol):
    """What an answer must look like. ``value``: a schema, a regex, a list of texts, or a grammar in Lark or GBNF."""

    @property
    def kind(self) -> Literal["json_schema", "json_object", "regex", "choice", "grammar"]: ...
    @property
    def value(self) -> Any: ...


class Function(Protocol):
    """A tool. ``parameters`` is the JSON schema of its arguments; with ``strict`` they always match it."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> dict[str, Any] | None: ...
    @property
    def strict(self) -> bool | None: ...


class Calls(Protocol):
    """The tools that may be called: ``named`` is exactly one call, ``required`` at least one, ``auto`` any or none."""

    @property
    def functions(self) -> Sequence[Function]: ...
    @property
    def mode(self) -> Literal["auto", "required", "named"]: ...
    @property
    def parallel(self) -> bool: ...


def compose(dialect: Dialect, shape: Shape | None, calls: Calls | None, in_reasoning: bool = False) -> str:
    """The grammar of an answer; ``""`` if it is free. It is not known yet whether it can be compiled.

    With both ``shape`` and ``calls`` (in mode ``auto``) the answer is one of the two. ``in_reasoning``: the answer
    begins inside the reasoning (see `Dialect.opens_reasoning`).

    Raises:
        ConstraintError: a schema can't be enforced, or it isn't known how this model calls tools.
    """
    if shape is None and (calls is None or _is_free(calls)):
        return ""
    rules = _Rules(dialect)
    if calls is None:
        body = _shaped(rules, shape) if shape is not None else ""
    elif dialect.tools == "none":
        raise ConstraintError("it is not known how this model calls tools")
    elif shape is not None:
        body = f"({_shaped(rules, shape)} | {_forced(rules, calls)})"
    elif calls.mode == "auto":
        body = _free(rules, calls)
    else:
        body = _forced(rules, calls)
    free_text = shape is None and calls is not None and calls.mode == "auto"
    return rules.grammar(_after_reasoning(rules, body, in_reasoning, gap=not free_text))


def _is_free(calls: Calls) -> bool:
    return calls.mode == "auto" and calls.parallel and not any(function.strict for function in calls.functions)


class _Rules:
    """The rules that are written so far, one a line, and grammars beside the main one."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.lines: list[str] = []
        self.beside: dict[str, str] = {}

    def add(self, name: str, body: str) -> str:
        """Write a rule, once; its name without options."""
        line = f"{name}: {body}"
        if line not in self.lines:
            self.lines.append(line)
        return name.partition("[")[0]

    def marker(self, text: str) -> str:
        """A reference to a token, or a text."""
        token = self.dialect.special.get(text)
        return lark_text(text) if token is None else f"<[{token}]>"

    def up_to(self, name: str, marker: str, text: str, unlike: Sequence[str] = ()) -> str:
        """A rule for any text that ends with ``marker``'s first occurrence; ``text`` is the name of that before it."""
        if marker in self.dialect.special:
            return self.add(name, f"{self.text(text, unlike)}? {self.marker(marker)}")
        self.add(name.upper(), f"/(.|\\n)*{lark_regex(re.escape(marker))}/{_unlike(unlike)}")
        return self.add(f"{name}[lazy]", name.upper())

    def text(self, name: str, unlike: Sequence[str] = ()) -> str:
        """A terminal for any text that isn't empty."""
        return self.add(name.upper(), f"/(.|\\n)+/{_unlike(unlike)}")

    def grammar(self, start: str) -> str:
        lark = "\n".join(["%llguidance {}", f"start: {start}", *self.lines]) + "\n"
        if not self.beside:
            return lark
        grammars = [{"lark_grammar": lark}, *({"name": name, "lark_grammar": it} for name, it in self.beside.items())]
        return json.dumps({"grammars": grammars})


def _unlike(patterns: Sequence[str]) -> str:
    return "".join(f" & ~/{pattern}/" for pattern in patterns)


def _after_reasoning(rules: _Rules, body: str, in_reasoning: bool, gap: bool) -> str:
    """``body`` after the reasoning that the model may write, or has to end first."""
    if rules.dialect.reasoning == "none":
        return body
    space = " SPACE?" if gap else ""
    close = rules.up_to("thought", THINK[1], "thinking")
    if gap:
        rules.add("SPACE", r"/[ \n]{1,4}/")
    if in_reasoning:
        return f"{close}{space} {body}"
    if THINK[0] in rules.dialect.special:
        opened = f"LEAD? {rules.marker(THINK[0])}"
        rules.add("LEAD", r"/[ \n]{1,4}/")
    else:
        opened = rules.add("OPEN", rf"/[ \n]{{0,4}}{re.escape(THINK[0])}/")
    return f"({opened} {close}{space})? {body}"


def _unlike_reasoning(dialect: Dialect) -> list[str]:
    """What a text must not begin with, where reasoning might have come before it."""
    thinks = dialect.reasoning != "none" and THINK[0] not in dialect.special
    return [rf"[ \n]*{re.escape(THINK[0])}(.|\n)*"] if thinks else []


def _shaped(rules: _Rules, shape: Shape) -> str:
    value = shape.value
    if shape.kind == "json_object":
        return rules.add("answer", _json({"type": "object"}, _ANSWER_SPACE))
    if shape.kind == "json_schema":
        return rules.add("answer", _json(check_schema(value), _ANSWER_SPACE))
    if shape.kind == "regex":
        return rules.add("ANSWER", f"/{lark_regex(value)}/")
    if shape.kind == "choice":
        return rules.add("answer", " | ".join(map(lark_text, value)))
    rules.beside["grammar"] = _checked_grammar(value)
    return "@grammar"


def _json(schema: dict[str, Any], options: dict[str, Any]) -> str:
    # The options are ours: with `lenient`, a client's own would have keywords ignored.
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def _checked_grammar(text: str) -> str:
    """A client's grammar in Lark; from GBNF, if it is that.

    Raises:
        ConstraintError: it is neither, or too large.
    """
    from llguidance.gbnf_to_lark import any_to_lark

    if not text.strip():
        raise ConstraintError("the grammar is empty")
    if len(re.findall(r"[(\[{]|^\s*[?!]?[\w-]+[^:\n]*:", text, re.MULTILINE)) > MAX_BRANCHES:
        raise ConstraintError(f"the grammar has more than {MAX_BRANCHES} rules and brackets")
    try:
        return str(any_to_lark(text))
    except Exception as error:  # the converter raises whatever befits a script
        raise ConstraintError(f"the grammar is neither Lark (with a rule 'start:') nor GBNF: {error}") from error


def _one(rules: _Rules, calls: Calls, write: "_Write") -> str:
    """Any one call: a rule for each function, and one that names them all."""
    names = [
        rules.add(f"call_{index}", write(function.name, _arguments(function, calls.mode)))
        for index, function in enumerate(calls.functions)
    ]
    return rules.add("call", " | ".join(names))


class _Write(Protocol):
    def __call__(self, name: str, arguments: str, /) -> str: ...


def _object_call(key: str) -> _Write:
    def write(name: str, arguments: str) -> str:
        return f'{lark_text(f"""{{"name": {json.dumps(name)}, "{key}": """)} {arguments} "}}"'

    return write


def _arguments(function: Function, mode: str) -> str:
    """A function's arguments: as its schema has them where a call is forced or strict, any object otherwise."""
    schema: dict[str, Any] = {"type": "object"}
    if mode != "auto" or function.strict:
        schema = _NO_ARGUMENTS if function.parameters is None else function.parameters
        try:
            schema = {"type": "object", **check_schema(schema)}
            if schema["type"] not in ("object", ["object"]):
                raise ConstraintError("arguments are an object, so the schema's type must be 'object'")
        except ConstraintError as error:
            raise ConstraintError(f"the parameters of {function.name!r}: {error}") from error
    return _json(schema, _CALL_SPACE)


def _forced(rules: _Rules, calls: Calls) -> str:
    """A call, or several where that is allowed, and nothing else."""
    dialect = rules.dialect
    opening = rules.marker(_OPENING[dialect.tools])
    if dialect.tools == "llama3":  # written with it and without
        opening = f"{opening}?" if _OPENING["llama3"] in dialect.special else ""
    return _calls(rules, calls, calls.parallel and calls.mode != "named", opening)


def _free(rules: _Rules, calls: Calls) -> str:
    """Text; where the marker appears in it, a call has to follow."""
    dialect = rules.dialect
    unlike = _unlike_reasoning(dialect)
    opening = _OPENING[dialect.tools]
    if dialect.tools == "llama3":
        text = rules.text("text", [*unlike, _LIKE_A_CALL])
        bare = _calls(rules, calls, calls.parallel, "")
        if opening not in dialect.special:
            return f"({text} | {bare})?"
        return f"({text}? | {bare} | {text}? {_calls(rules, calls, calls.parallel, rules.marker(opening))})"
    text = rules.text("text", unlike)
    head = rules.up_to("head", opening, "text", unlike)
    if dialect.tools == "hermes" and calls.parallel:
        return f"({head} {_calls(rules, calls, False, '')})* {text}?"
    return f"({text}? | {head} {_calls(rules, calls, calls.parallel, '')})"


_OPENING: Final = {"hermes": "<tool_call>", "llama3": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}


def _calls(rules: _Rules, calls: Calls, parallel: bool, opening: str) -> str:
    """One call or several, each with its markers; ``opening`` is that before the first one, if it isn't there yet."""
    dialect = rules.dialect
    if dialect.tools == "hermes":
        one, close = _one(rules, calls, _object_call("arguments")), rules.marker("</tool_call>")
        call = rules.add("tagged", rf'"\n" {one} "\n" {close}')
        return f"{opening} {call}" + (rf' ("\n" {rules.marker("<tool_call>")} {call})*' if parallel else "")
    if dialect.tools == "llama3":
        call = _one(rules, calls, _object_call("parameters"))
        return f"{opening} {call}" + (f' ("; " {call})*' if parallel else "")
    if "[ARGS]" in dialect.special:
        call = _one(rules, calls, lambda name, arguments: f"{lark_text(name)} {rules.marker('[ARGS]')} {arguments}")
        return f"{opening} {call}" + (f" ({rules.marker('[TOOL_CALLS]')} {call})*" if parallel else "")
    call = _one(rules, calls, _object_call("arguments"))
    return f'{opening} " "? "[" {call}' + (f' (", " {call})*' if parallel else "") + ' "]"'


def lark_text(text: str) -> str:
    """A text as Lark has it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConstraintError("half a surrogate pair is no text") from None
    return json.dumps(text)


def lark_regex(pattern: str) -> str:
    """What stands between the slashes of a Lark regex: slashes that aren't escaped yet and line breaks are."""
    escaped = re.sub(r"\\.|/|\n", lambda found: {"/": r"\/", "\n": r"\n"}.get(found[0], found[0]), pattern, flags=re.S)
    return escaped.replace("\\\n", r"\n")


__all__ = ["ConstraintError", "Shape", "compose"]
