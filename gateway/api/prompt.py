"""How do a request's messages become the text of a prompt?"""

from typing import Any, Final

from gateway.fleet.served_model import ServedModel
from gateway.text.template import RESERVED, TemplateError
from gateway.wire import errors
from gateway.wire.chat import ChatCompletionRequest, ChatMessage, template_messages

# What is passed to the template by other means, and so can't be passed as a variable of it.
_TAKEN: Final = RESERVED | {"self"}


def render(
    model: ServedModel,
    messages: list[ChatMessage],
    *,
    add_generation_prompt: bool | None,
    variables: dict[str, Any],
) -> str:
    """The prompt for ``messages``, by the model's chat template. ``add_generation_prompt`` is true unless given.

    Raises:
        ApiError: 400; the template refuses the messages, or a variable has a name that isn't free.
    """
    if taken := sorted(_TAKEN & variables.keys()):
        raise errors.invalid_value(f"chat_template_kwargs.{taken[0]}", "it can't be set as a variable of the template")
    try:
        return model.template.render(
            template_messages(messages), add_generation_prompt=add_generation_prompt is not False, **variables
        )
    except TemplateError as error:
        raise errors.invalid_messages(str(error)) from error


def render_chat(model: ServedModel, request: ChatCompletionRequest) -> str:
    """The prompt of a chat request, its tools and documents included.

    Raises:
        ApiError: 400, as `render`.
    """
    return render(
        model,
        request.messages,
        add_generation_prompt=request.add_generation_prompt,
        variables=request.template_variables(),
    )
