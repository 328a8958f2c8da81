"""How do a request's messages become the text of a prompt, and what must the answer to it match?"""

from typing import Any, Final

import msgspec

from gateway.fleet.served_model import ServedModel
from gateway.text.constraint import ConstraintError, compose
from gateway.text.dialect import Dialect
from gateway.text.template import RESERVED, TemplateError
from gateway.wire import errors
from gateway.wire.chat import ChatCompletionRequest, ChatMessage, template_messages
from gateway.wire.generation import Shape
from gateway.wire.tools import FunctionSpec, Tools

# What is passed to the template by other means, and so can't be passed as a variable of it.
_TAKEN: Final = RESERVED | {"self"}


def render(
    model: ServedModel,
    messages: list[ChatMessage],
    *,
    add_generation_prompt: bool | None,
    variables: dict[str, Any],
    tools: list[FunctionSpec] | None = None,
    **options: Any,
) -> str:
    """The prompt for ``messages``, by the model's chat template. ``add_generation_prompt`` is true unless given.

    ``options`` are the template's own, such as ``documents``; those that are None are left out.

    Raises:
        ApiError: 400; the template refuses the messages, or a variable has a name that isn't free.
    """
    if taken := sorted(_TAKEN & variables.keys()):
        raise errors.invalid_value(f"chat_template_kwargs.{taken[0]}", "it can't be set as a variable of the template")
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return model.template.render(
            template_messages(messages),
            tools=[_tool(tool) for tool in tools] if tools else None,
            add_generation_prompt=add_generation_prompt is not False,
            **given,
            **variables,
        )
    except TemplateError as error:
        raise errors.invalid_messages(str(error)) from error


def render_chat(model: ServedModel, request: ChatCompletionRequest) -> str:
    """The prompt of a chat request, its tools and documents included.

    Raises:
        ApiError: 400, as `render`; or the model knows no tools.
    """
    tools = request.called_tools()
    if tools is not None and model.dialect.tools == "none":
        raise errors.unsupported_parameter(
            "tools", f"the chat template of '{model.name}' knows none; describe them in a message, or ask for JSON"
        )
    return render(
        model,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        variables=request.template_variables(),
        tools=tools.shown if tools else None,
        documents=request.documents,
        continue_final_message=request.continue_final_message,
    )


async def grammar_of(
    model: ServedModel,
    shape: Shape | None,
    tools: Tools | None = None,
    *,
    dialect: Dialect | None = None,
    in_reasoning: bool = False,
) -> str:
    """The grammar that an answer must match; ``""`` if it is free. Without a ``dialect`` the answer is nothing else.

    Raises:
        ApiError: 400; no answer can be held to what was asked for.
    """
    try:
        grammar = compose(dialect or Dialect(), shape, tools, in_reasoning)
        if grammar:
            await model.grammars.check(grammar)
        return grammar
    except ConstraintError as error:
        raise errors.invalid_value(shape.param if shape is not None else "tools", str(error)) from error


def _tool(function: FunctionSpec) -> dict[str, Any]:
    """A tool as templates read it: OpenAI's object."""
    described = {name: value for name, value in msgspec.to_builtins(function).items() if value is not None}
    described.pop("strict", None)
    return {"type": "function", "function": described}
