"""How does one model write reasoning and tool calls? Found in its chat template and tokenizer, or set by name."""

from collections.abc import Collection, Mapping
from typing import Final, Literal, cast

import msgspec

from gateway.text.answer import MarkedParser
from gateway.text.parts import AnswerParser, PlainParser
from gateway.text.template import read_variables
from gateway.text.tool_forms import TOOL_FORMS

ToolForm = Literal["none", "hermes", "llama3", "mistral"]
ReasoningForm = Literal["none", "think"]

TOOL_PARSERS: Final = ("auto", "none", "hermes", "llama3", "mistral")
REASONING_PARSERS: Final = ("auto", "none", "think")
"""The names by which an operator may set a dialect; ``auto`` looks at the model."""

THINK: Final = ("<think>", "</think>")


class Dialect(msgspec.Struct, frozen=True):
    """The syntax that a model was trained to write. The default is none at all.

    ``tools``: ``hermes`` is ``<tool_call>{"name": …, "arguments": {…}}</tool_call>`` (Hermes, Qwen); ``llama3`` is
    ``{"name": …, "parameters": {…}}``, perhaps after ``<|python_tag|>``, several separated by ``;``; ``mistral`` is
    ``[TOOL_CALLS] [{"name": …, "arguments": {…}}]`` or, newer, ``[TOOL_CALLS]name[ARGS]{…}``. ``reasoning``: ``think``
    is ``<think>…</think>``. ``special`` are the ids of those markers that the tokenizer calls special tokens: a mere
    text never has them, and they have no text unless a detokenizer keeps them.
    """

    tools: ToolForm = "none"
    reasoning: ReasoningForm = "none"
    special: dict[str, int] = {}

    @classmethod
    def detect(
        cls,
        template: str | None,
        added: Mapping[str, int],
        special_ids: Collection[int],
        *,
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> "Dialect":
        """The dialect of a model with this chat template, the one for tools if it has several, and these added tokens.

        ``added`` are the ids of the tokenizer's added tokens, of which some are special. The last two arguments are of
        `TOOL_PARSERS` and `REASONING_PARSERS`.

        Raises:
            ValueError: there is no parser of such a name.
        """
        for name, known in ((tool_parser, TOOL_PARSERS), (reasoning_parser, REASONING_PARSERS)):
            if name not in known:
                raise ValueError(f"{name!r} is no parser's name; there are {', '.join(known)}")
        source = template or ""
        tools = _tools(template, added) if tool_parser == "auto" else cast(ToolForm, tool_parser)
        thinks = any(marker in source for marker in THINK) or all(marker in added for marker in THINK)
        reasoning = ("think" if thinks else "none") if reasoning_parser == "auto" else reasoning_parser
        markers = (TOOL_FORMS[tools].tokens if tools != "none" else ()) + (THINK if reasoning == "think" else ())
        special = {marker: added[marker] for marker in markers if added.get(marker, -1) in special_ids}
        return cls(tools, cast(ReasoningForm, reasoning), special)

    def parser(self, *, tools: bool, reasoning: bool, in_reasoning: bool = False) -> AnswerParser:
        """A parser for one answer. ``tools`` and ``reasoning`` say what is to be taken apart; the rest is content.

        ``in_reasoning``: the answer begins inside the reasoning, for the prompt has opened it (see `opens_reasoning`).
        """
        form = TOOL_FORMS[self.tools] if tools and self.tools != "none" else None
        marks = THINK if reasoning and self.reasoning != "none" else None
        if form is None and marks is None:
            return PlainParser()
        return MarkedParser(form, marks, in_reasoning)

    def kept_tokens(self, *, tools: bool, reasoning: bool) -> frozenset[int]:
        """The special tokens whose text the `parser` of the same arguments must see."""
        return frozenset(token for marker, token in self.special.items() if (reasoning if marker in THINK else tools))

    def opens_reasoning(self, prompt: str) -> bool:
        """Whether a rendered prompt ends where the model has begun to think."""
        return self.reasoning == "think" and prompt.rstrip().endswith(THINK[0])


def _tools(template: str | None, added: Mapping[str, int]) -> ToolForm:
    """How a model with this template calls tools. ``<tool_call>`` has other uses too, which are not read here.

    Where the template knows nothing of tools, the model is told of them in Hermes' form (see `tool_messages`).
    """
    if template is None:
        return "none"
    if "tools" not in read_variables(template):
        return "hermes"
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "none" if "<function=" in template or "<arg_key>" in template else "hermes"
    if "<|python_tag|>" in template or ("<|python_tag|>" in added and "parameters" in template):
        return "llama3"
    return "none"
