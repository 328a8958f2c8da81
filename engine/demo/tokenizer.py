"""How does the demo model read text? A byte-level BPE tokenizer trained on its own corpus, and its chat template.

Pieces are made so that a question is a matter of few tokens. A number below 1000 is one token. A space belongs to the
word before it: the token in front of a value is then its key, and a value has the same tokens in an answer as on a
sheet. (With digits and spaces as tokens of their own, 400 steps of chats taught copying, 95 % right, but not lookup,
5 %.) Bytes that the corpus never had are tokens of their own, so any text comes back as it was.

A tool is described as a call of it is written, with types in place of values, after what it is for: a call is then a
copy up to its values. (Described as ``get_price(room: string): Get …`` for 1,800 steps and then so for 800, the model
has the values right, but names that training had often take the place of those on the list: see the card.)
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from engine.demo.conversations import Message, Tool

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL = (PAD, BEGIN, END, *ROLES.values())

CHAT_TEMPLATE = (
    "{%- set about %}"
    "{%- if tools %}{{- 'Tools:\\n' }}"
    "{%- for tool in tools %}"
    "{%- set function = tool['function'] if tool['function'] else tool %}"
    "{%- if function['description'] %}"
    "{{- function['description'] | trim | replace('\\n', ' ') ~ ' ' }}"
    "{%- endif %}"
    "{{- '{\"name\": ' ~ function['name'] | tojson ~ ', \"arguments\": {' }}"
    "{%- set properties = (function['parameters'] or {})['properties'] %}"
    "{%- for name, schema in (properties if properties is mapping else {}) | items %}"
    "{%- set type = schema['type'] if schema['type'] is string else 'any' %}"
    "{{- name | tojson ~ ': ' ~ (type | tojson if type == 'string' else type) }}"
    "{%- if not loop.last %}{{- ', ' }}{%- endif %}"
    "{%- endfor %}"
    "{{- '}}\\n' }}"
    "{%- endfor %}"
    "{{- 'Call one with <tool_call>, or answer.' }}"
    "{%- endif %}"
    "{%- endset %}"
    "{{- bos_token }}"
    "{%- if tools and messages[0]['role'] not in ['system', 'developer'] %}"
    "{{- '<|system|>' ~ about ~ '<|end|>' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'developer', 'user', 'assistant', 'tool'] %}"
    "{{- raise_exception('penstock-demo knows the roles system, user, assistant and tool, not ' ~ message['role']) }}"
    "{%- endif %}"
    "{%- set text %}"
    "{%- if message['content'] is string %}{{- message['content'] | trim }}"
    "{%- elif message['content'] %}"
    "{%- for part in message['content'] if part['type'] == 'text' %}{{- part['text'] | trim }}{%- endfor %}"
    "{%- endif %}"
    "{%- endset %}"
    "{%- if message['role'] == 'tool' %}"
    "{{- '<|user|><tool_response>\\n' ~ text ~ '\\n</tool_response>' }}"
    "{%- else %}"
    "{{- '<|system|>' if message['role'] == 'developer' else '<|' ~ message['role'] ~ '|>' }}"
    "{{- text }}"
    "{%- endif %}"
    "{%- if tools and loop.first and message['role'] in ['system', 'developer'] %}"
    "{{- ('\\n\\n' if text else '') ~ about }}"
    "{%- endif %}"
    "{%- for call in message['tool_calls'] or [] %}"
    "{{- '\\n' if text or not loop.first else '' }}"
    "{%- set function = call['function'] if call['function'] else call %}"
    "{%- set arguments = function['arguments'] %}"
    "{{- '<tool_call>\\n{\"name\": ' ~ function['name'] | tojson ~ ', \"arguments\": ' }}"
    "{{- (arguments if arguments is string else arguments | tojson) ~ '}\\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

_PIECES = r":\p{N}{2}|\p{L}+ ?|\p{N}{1,4}|[^\s\p{L}\p{N}]+ ?|\s+"
_NUMBERS = " ".join(str(number) for number in range(1000))
_NUMBERS_WEIGHT = 100


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most ``vocab_size`` tokens; ``SPECIAL`` come first, then the 256 bytes, then merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, repeat(_NUMBERS, _NUMBERS_WEIGHT)), trainer)
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[begin]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja`` into ``folder``."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE + "\n")


class ChatEncoder:
    """Token ids of chats as the template renders them, and which of them the model has to produce."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, int] = dict(
            zip(SPECIAL, tokenizer.encode("".join(SPECIAL), add_special_tokens=False).ids, strict=True)
        )

    def encode(self, messages: Iterable[Message], tools: Sequence[Tool] = ()) -> tuple[list[int], list[bool]]:
        """The ids of ``messages``, and for each whether it is part of an assistant's answer or its ``END``."""
        listed = as_texts(messages, tools)
        ids, answers = [self._ids[BEGIN]], [False]
        encoded = self._tokenizer.encode_batch([text for _, text in listed], add_special_tokens=False)
        for (role, _), content in zip(listed, encoded, strict=True):
            answer = role == "assistant"
            ids += [self._ids[ROLES[role]], *content.ids, self._ids[END]]
            answers += [False, *[answer] * (len(content.ids) + 1)]
        return ids, answers


def as_texts(messages: Iterable[Message], tools: Sequence[Tool]) -> list[tuple[str, str]]:
    """Roles, of `ROLES`, and texts, as the template writes ``messages`` with ``tools`` described in front of them."""
    listed = [_as_text(message) for message in messages]
    if tools:
        before = listed.pop(0)[1] + "\n\n" if listed and listed[0][0] == "system" else ""
        lines = "".join(f"{_described(tool['function'])}\n" for tool in tools)
        listed.insert(0, ("system", f"{before}Tools:\n{lines}Call one with <tool_call>, or answer."))
    return listed


def _described(function: Mapping[str, Any]) -> str:
    types = {name: schema["type"] for name, schema in function["parameters"]["properties"].items()}
    arguments = [f'"{name}": {json.dumps(type) if type == "string" else type}' for name, type in types.items()]
    about = f"{function['description']} " if function.get("description") else ""
    return f'{about}{{"name": "{function["name"]}", "arguments": {{{", ".join(arguments)}}}}}'


def _as_text(message: Message) -> tuple[str, str]:
    if message["role"] == "tool":
        return "user", f"<tool_response>\n{message['content']}\n</tool_response>"
    texts = [message["content"]] if message["content"] else []
    calls = [call["function"] for call in message.get("tool_calls", ())]
    texts += [call_text(call["name"], json.loads(call["arguments"])) for call in calls]
    return message["role"], "\n".join(texts)


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as the model writes it, in Hermes' form."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"
