"""A worker without a model: it speaks `engine.link` and answers by a script. For tests of the gateway alone.

In a test's own event loop it is a `FakeWorker`; ``python -m tests.gateway.fake_worker --listen unix:PATH --folder DIR``
is one in a process of its own, for tests of what starts, watches and stops processes.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine.link import (
    PROTOCOL,
    Abort,
    Drain,
    Failed,
    FailureCode,
    Follow,
    FrameReader,
    Hello,
    Load,
    LoadAdapter,
    Output,
    Progress,
    PromptScores,
    Step,
    Submit,
    ToGateway,
    ToWorker,
    decode_to_worker,
    frame,
)

END = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def write_model_folder(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """A tokenizer with a token for each byte (ids 0 to 255 in GPT-2's order) and `END` as 256."""
    import json

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: id for id, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": END}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def prompt_ids(submit: Submit) -> list[int]:
    ids: list[int] = np.frombuffer(submit.tokens, dtype="<i4").tolist()
    return ids[: len(ids) - submit.answered]


class _Running:
    """A request under way."""

    def __init__(self, submit: Submit, tokens: Sequence[int], connection: asyncio.StreamWriter) -> None:
        limit = submit.sampling.max_tokens
        self.submit = submit
        self.tokens = list(tokens)[:limit]
        self.finish: Any = "length" if len(tokens) > limit else "stop"
        self.sent = submit.answered
        self.connection = connection


def _scored(output: Output, submit: Submit, first: bool) -> Output:
    """``output`` with what was asked for beside tokens: the likeliest are those that follow in the vocabulary."""
    sampling = submit.sampling
    if submit.embed:
        ids = np.array(prompt_ids(submit), np.float32)
        pooled = ids.mean() if submit.embed == "mean" else ids[-1]
        embedding = np.array([pooled, 1, 2, 2], "<f4").tobytes()
        return Output(output.id, [], [], [], "stop", output.cached, embedding=embedding)
    top = range(sampling.top_logprobs)
    prompt = None
    if first and sampling.prompt_logprobs >= 0:
        ids = np.array(prompt_ids(submit)[1:], np.int32)
        places = np.arange(sampling.prompt_logprobs, dtype=np.int32)
        prompt = PromptScores(
            len(places),
            np.full(len(ids), -0.25, "<f4").tobytes(),
            np.full(len(ids), 2, "<i4").tobytes(),
            ((ids[:, None] + places) % 257).astype("<i4").tobytes(),
            np.tile(-places - 0.125, (len(ids), 1)).astype("<f4").tobytes(),
        )
    return msgspec.structs.replace(
        output,
        top_tokens=[[(token + place) % 257 for place in top] for token in output.tokens] if top else [],
        top_logprobs=[[-0.5 - place for place in top] for _ in output.tokens] if top else [],
        prompt=prompt,
        low_margins=sum(token % 2 for token in output.tokens),
        sketch=sketch_of(submit) if first and submit.sketch and not submit.answered else b"",
    )


def sketch_of(submit: Submit) -> bytes:
    """A sketch that says how long the prompt is."""
    return np.full(64, len(prompt_ids(submit)), "<f2").tobytes()


class FakeWorker:
    """Answers each prompt with what ``script`` makes of it, one token a step; by default the prompt itself.

    With ``auto`` it steps by itself, every ``delay`` seconds; without, when a test calls `step`. What the gateway sent
    is in ``submitted``, ``aborted`` and ``drained``; ``arrived`` is set by whatever comes.
    """

    def __init__(
        self,
        folder: Path,
        *,
        script: Callable[[Submit], Sequence[int]] = prompt_ids,
        auto: bool = True,
        delay: float = 0.0,
        **hello: Any,
    ) -> None:
        defaults: dict[str, Any] = {
            "protocol": PROTOCOL,
            "model": "fake",
            "folder": str(folder),
            "pid": os.getpid(),
            "device": "cpu",
            "dtype": "float32",
            "max_model_len": 64,
            "vocab_size": 257,
            "block_size": 16,
            "kv_tokens": 4096,
            "max_running": 64,
            "embedding_size": 4,
            "eos_token_ids": (256,),
        }
        self.hello = Hello(**{**defaults, **hello})
        self.script = script
        self.auto = auto
        self.delay = delay
        self.cached = 0
        self.refuse: tuple[FailureCode, str] | None = None
        self.submitted: list[Submit] = []
        self.adapters: dict[str, str] = {}
        self.no_adapter = ""
        self.aborted: list[int] = []
        self.drained = False
        self.followed = 0
        self.loaded = asyncio.Event()
        self.loaded.set()
        # By id; those of a second gateway, which has numbers of its own, are moved out of the way of the first's.
        self.running: dict[int, _Running] = {}
        self._moved: dict[asyncio.StreamWriter, int] = {}
        self.arrived = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._stepper: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self.ended = asyncio.Event()

    async def start(self, path: str) -> None:
        self._server = await asyncio.start_unix_server(self._serve, path)
        self._stepper = asyncio.create_task(self._step_for_ever())

    async def stop(self) -> None:
        self.drop()
        if self._stepper is not None:
            self._stepper.cancel()
        if self._server is not None:
            self._server.close()

    def drop(self) -> None:
        """Close every connection, as a dying process does."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        self.running.clear()

    @property
    def connected(self) -> bool:
        return bool(self._writers)

    def send(self, message: ToGateway) -> None:
        self.send_bytes(frame(message))

    def send_bytes(self, data: bytes | bytearray) -> None:
        for writer in self._writers:
            writer.write(data)

    def step(self) -> None:
        """One engine step: a token for each request, one frame for each connection."""
        frames: dict[asyncio.StreamWriter, list[Output]] = {}
        for key, request in list(self.running.items()):
            id = key - self._moved[request.connection]
            tokens = request.tokens[request.sent : request.sent + 1]
            first = request.sent == request.submit.answered
            request.sent += 1
            finish = request.finish if request.sent >= len(request.tokens) else None
            if finish:
                del self.running[key]
            output = Output(id, tokens, [-0.5] * len(tokens), [0.5] * len(tokens), finish, self.cached if first else 0)
            frames.setdefault(request.connection, []).append(_scored(output, request.submit, first))
        for writer, outputs in frames.items():
            writer.write(frame(Step(outputs, self.delay)))

    def kick(self) -> None:
        """Let the worker see that ``auto`` has been set."""
        self._work.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until ``condition`` holds; it is looked at whenever the gateway has sent something."""
        while not condition():
            self.arrived.clear()
            await self.arrived.wait()

    async def _step_for_ever(self) -> None:
        while True:
            await self._work.wait()
            if not self.auto or not self.running:
                self._work.clear()
                continue
            await asyncio.sleep(self.delay)
            self.step()
            if self.drained and not self.running:
                self.ended.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._moved[writer] = 1_000_000 * len(self._moved) if self._writers else 0
        self._writers.add(writer)
        writer.write(frame(Progress("reading weights", 1, 2)))
        await self.loaded.wait()
        writer.write(frame(self.hello))
        writer.write(frame(Load(waiting=0, running=0, waiting_tokens=0, kv_used=0, kv_total=256, backlog=0.0)))
        frames = FrameReader()
        try:
            while data := await reader.read(1 << 16):
                for payload in frames.feed(data):
                    self._take(decode_to_worker(payload), writer)
                self.arrived.set()
        except (ConnectionError, asyncio.CancelledError):
            pass
        self._writers.discard(writer)
        self.running = {key: one for key, one in self.running.items() if one.connection is not writer}
        writer.close()
        self.arrived.set()

    def _take(self, message: ToWorker, writer: asyncio.StreamWriter) -> None:
        match message:
            case Submit():
                self.submitted.append(message)
                if self.drained:
                    writer.write(frame(Failed(message.id, "draining", "shutting down")))
                    return
                if self.refuse is not None:
                    writer.write(frame(Failed(message.id, *self.refuse)))
                    return
                self.running[message.id + self._moved[writer]] = _Running(message, self.script(message), writer)
                self._work.set()
            case Abort():
                self.aborted += message.ids
                for id in message.ids:
                    self.running.pop(id + self._moved[writer], None)
            case LoadAdapter():
                self.adapters[message.name] = message.folder
                if self.no_adapter:
                    writer.write(frame(Failed(message.id, "invalid_request", self.no_adapter)))
                else:
                    writer.write(frame(Step([Output(message.id, [], [], [], "stop")])))
            case Follow():
                self.followed += 1
            case Drain():
                self.drained = True
                if not self.running:
                    self.ended.set()


async def _main(args: argparse.Namespace) -> int:
    if args.fail:
        print(f"fake worker: {args.fail}", file=sys.stderr)
        return 3
    worker = FakeWorker(args.folder, delay=args.delay, max_model_len=args.max_model_len)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    if args.never_loaded:
        worker.loaded.clear()
    await worker.start(args.listen.removeprefix("unix:"))
    while not worker.ended.is_set():
        if args.parent_pid and os.getppid() != args.parent_pid:
            return 1
        try:
            await asyncio.wait_for(worker.ended.wait(), 0.1)
        except TimeoutError:
            continue
    await worker.stop()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--max-model-len", type=int, default=64)
    parser.add_argument("--parent-pid", type=int)
    parser.add_argument("--fail", help="say this on stderr and exit with status 3")
    parser.add_argument("--never-loaded", action="store_true", help="say nothing but Progress")
    return asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
