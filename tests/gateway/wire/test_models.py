"""The model list as the official client reads it."""

import msgspec
from openai.types import Model as OpenAIModel

from gateway.wire.models import Model, ModelList


def test_openai_reads_the_list() -> None:
    body = msgspec.json.decode(msgspec.json.encode(ModelList([Model("m", 5, max_model_len=100)])))
    assert body["object"] == "list"
    parsed = OpenAIModel.model_validate(body["data"][0])
    assert (parsed.id, parsed.object, parsed.owned_by, parsed.created) == ("m", "model", "penstock", 5)
    assert body["data"][0]["max_model_len"] == 100
