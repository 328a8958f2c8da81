"""How does a conversation become a prompt? The model's chat template, rendered by transformers' own sandbox."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.nodes

from gateway.text.tokenizer import SPECIAL_TOKENS, TokenizerError, read_config
from gateway.text.tool_messages import ToolMessageError, as_plain_text, with_calls

RESERVED: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "documents",
        "messages",
        "return_assistant_tokens_mask",
        "tools",
    }
)
"""Names that a request must not set as variables of the template."""


class TemplateError(Exception):
    """The conversation could not be rendered; the message is the template's own, or says what is missing."""


class ChatTemplate:
    """Renders conversations. Compiled on first use, then kept (by transformers, which also decides what it can do).

    ``templates`` maps names to Jinja sources: ``default``, and perhaps ``tool_use``. ``variables`` are the special
    tokens that the template may write, such as ``bos_token``. ``where`` says in errors whose template it is.
    """

    def __init__(self, templates: Mapping[str, str], variables: Mapping[str, str], where: str) -> None:
        self._templates = dict(templates)
        self._variables = dict(variables)
        self._where = where
        self._wants_parts: dict[str, bool] = {}
        self._variables_of: dict[str, frozenset[str]] = {}

    @classmethod
    def load(cls, folder: str | Path) -> "ChatTemplate":
        """The template of ``folder``: chat_template.jinja, or else ``chat_template`` in tokenizer_config.json.

        A folder without one loads all the same, and raises when it is asked to render.

        Raises:
            TemplateError: tokenizer_config.json is broken, or a template isn't UTF-8.
        """
        folder = Path(folder)
        try:
            config = read_config(folder)
        except TokenizerError as error:
            raise TemplateError(str(error)) from error
        templates: dict[str, str] = {}
        given = config.get("chat_template")
        if isinstance(given, str):
            templates["default"] = given
        elif isinstance(given, list):
            templates.update({item["name"]: item["template"] for item in given})
        elif isinstance(given, dict):
            templates.update(given)
        files = {"default": folder / "chat_template.jinja"}
        files.update({path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))})
        for name, path in files.items():
            if path.is_file():
                try:
                    templates[name] = path.read_text(encoding="utf-8")
                except UnicodeDecodeError as error:
                    raise TemplateError(f"{path}: not UTF-8: {error}") from error
        variables = {name: config[name] for name in SPECIAL_TOKENS if name in config}
        return cls(templates, variables, str(folder))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt for ``messages``; encode it without adding special tokens.

        Each message has a ``role`` and, for ``content``, a text or a list of parts ``{"type": "text", "text": …}``,
        which are joined by line breaks for templates that expect a text. An assistant's message may have
        ``tool_calls``, and one of the role ``tool`` the ``tool_call_id`` that it answers. A template that doesn't read
        ``tools`` finds them, the calls and the answers in the texts of messages (see `tool_messages`).
        ``continue_final_message`` leaves the last message open at its end, for the model to go on with.
        ``variables`` are the template's own, such as ``enable_thinking``.

        Raises:
            TemplateError: the template refuses, fails, is missing, or reads no ``documents``; a part is no text; the
                arguments of a call are no JSON object.
        """
        if reserved := sorted(RESERVED & variables.keys()):
            raise TemplateError(f"{reserved[0]!r} can't be set as a variable of the template")
        source = self._choose(bool(tools))
        # Half a second of imports, which a gateway that only answers /v1/completions never needs.
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            wants_parts = self._wants_parts.get(source)
            if wants_parts is None:
                wants_parts = self._wants_parts[source] = reads_parts(source)
            read = self._reads(source)
            if documents and "documents" not in read:
                raise TemplateError(f"the template in {self._where} reads no documents: put them into a message")
            prepared = with_calls(messages, short_ids="[TOOL_CALLS]" in source)
            if "tools" not in read and (tools or any(_is_about_tools(message) for message in messages)):
                prepared = as_plain_text(prepared, tools)
            conversation = [_with_content(message, wants_parts) for message in prepared]
            rendered: Any = render_jinja_template(
                conversations=[conversation],
                tools=[dict(tool) for tool in tools] if tools else None,
                documents=[dict(document) for document in documents] if documents else None,
                chat_template=source,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self._variables, **variables},
            )
        except TemplateError:
            raise
        except ToolMessageError as error:
            raise TemplateError(str(error)) from error
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"the template in {self._where} is broken at line {error.lineno}: {error.message}"
            ) from error
        except jinja2.TemplateError as error:
            raise TemplateError(error.message or type(error).__name__) from error
        except Exception as error:  # a template can fail in any way that Python can
            said = str(error).partition("Final message to continue:")[0]  # what follows is the whole prompt
            raise TemplateError(f"{type(error).__name__}: {said}") from error
        text: str = rendered[0][0]
        return text

    def source(self, *, with_tools: bool) -> str | None:
        """The template's source: the one for conversations with tools where there are two. None without any."""
        try:
            return self._choose(with_tools)
        except TemplateError:
            return None

    def _reads(self, source: str) -> frozenset[str]:
        found = self._variables_of.get(source)
        if found is None:
            found = self._variables_of[source] = read_variables(source)
        return found

    def _choose(self, with_tools: bool) -> str:
        for name in ("tool_use", "default") if with_tools else ("default",):
            if name in self._templates:
                return self._templates[name]
        if self._templates:
            names = ", ".join(sorted(self._templates))
            raise TemplateError(f"{self._where} has no chat template named 'default' (only: {names})")
        raise TemplateError(
            f"{self._where} has no chat template, so it is not known how this model reads a conversation: use "
            "/v1/completions with a whole prompt, or add a chat_template.jinja to the folder"
        )


def _with_content(message: Mapping[str, Any], wants_parts: bool) -> dict[str, Any]:
    """``message`` with its content as the template reads it: a text, or a list of parts."""
    out = dict(message)
    content = out.get("content")
    if isinstance(content, str):
        if wants_parts:
            out["content"] = [{"type": "text", "text": content}]
    elif content is not None:
        for part in content:
            if part.get("type") != "text":
                raise TemplateError(
                    f"a part of type {part.get('type')!r} can't be rendered: this model reads text only"
                )
        if not wants_parts:
            out["content"] = "\n".join(part["text"] for part in content)
    return out


def reads_parts(source: str) -> bool:
    """Whether a template reads content as a list of parts only: it loops over it and never asks what it is.

    Most templates that loop over content ask ``content is string`` first, and most don't loop at all.
    """
    tree = _environment().parse(_GENERATION.sub("", source))
    if any(test.name in ("string", "iterable", "sequence", "mapping") for test in tree.find_all(jinja2.nodes.Test)):
        return False
    return any(_is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))


def _environment() -> jinja2.Environment:
    return jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])


_GENERATION: Final = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


def _is_content(node: jinja2.nodes.Node) -> bool:
    """Whether an expression is a message's content: ``content``, ``….content`` or ``…['content']``, filtered or not."""
    if isinstance(node, jinja2.nodes.Filter) and node.node is not None:
        return _is_content(node.node)
    if isinstance(node, jinja2.nodes.Name):
        return node.name == "content"
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, jinja2.nodes.Getitem):
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == "content"
    return False


def read_variables(source: str) -> frozenset[str]:
    """The names that a template reads, ``tools`` and ``documents`` perhaps among them; none if it is broken."""
    try:
        tree = _environment().parse(_GENERATION.sub("", source))
    except jinja2.TemplateSyntaxError:
        return frozenset()
    return frozenset(name.name for name in tree.find_all(jinja2.nodes.Name) if name.ctx == "load")


def _is_about_tools(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "tool" or bool(message.get("tool_calls"))
