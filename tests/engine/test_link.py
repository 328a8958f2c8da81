import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.link import (
    MAX_FRAME,
    Abort,
    Drain,
    Failed,
    FrameReader,
    Hello,
    LinkError,
    Load,
    Output,
    Progress,
    Sampling,
    Slo,
    Step,
    Submit,
    ToGateway,
    ToWorker,
    decode_to_gateway,
    decode_to_worker,
    frame,
    parse_address,
)

TO_WORKER: list[ToWorker] = [
    Submit(1, b"\x01\0\0\0", Sampling(max_tokens=5)),
    Submit(
        2,
        b"\x01\0\0\0",
        Sampling(5, 0.5, 0.9, 7, 0.1, 42, 2, (3, 4), True),
        "t",
        1,
        0.25,
        Slo(1, 0.1),
        "s",
        "a",
    ),
    Abort([1, 2, 3]),
    Drain(),
]
TO_GATEWAY: list[ToGateway] = [
    Progress("weights", 5, 10),
    Hello(1, "m", "/m", 7, "cpu", "bfloat16", 100, 50, 16, 1600, 8, eos_token_ids=(2,), defaults={"top_p": 0.9}),
    Step([Output(1, [5], [-0.25], [1.5]), Output(2, [6, 7], [0.0, 0.0], [0.0, 0.0], "stop", 16, 0.5)], 0.01),
    Load(1, 2, 3, 4, 5, 0.6),
    Failed(1, "overloaded", "too much", 2.0),
]


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
def test_to_worker_round_trip(message: ToWorker) -> None:
    (payload,) = FrameReader().feed(frame(message))
    assert decode_to_worker(payload) == message


@pytest.mark.parametrize("message", TO_GATEWAY, ids=lambda message: type(message).__name__)
def test_to_gateway_round_trip(message: ToGateway) -> None:
    (payload,) = FrameReader().feed(frame(message))
    assert decode_to_gateway(payload) == message


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, len(TO_GATEWAY) - 1), max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_frames_survive_any_cut(picks: list[int], cuts: list[int]) -> None:
    messages = [TO_GATEWAY[pick] for pick in picks]
    stream = b"".join(bytes(frame(message)) for message in messages)
    reader, seen, at, turn = FrameReader(), [], 0, 0
    while at < len(stream):
        width = cuts[turn % len(cuts)]
        seen += [decode_to_gateway(payload) for payload in reader.feed(stream[at : at + width])]
        at, turn = at + width, turn + 1
    assert seen == messages


def test_an_endless_frame_is_refused() -> None:
    with pytest.raises(LinkError, match="more than"):
        list(FrameReader().feed((MAX_FRAME + 1).to_bytes(4, "little")))


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode({"type": "no such"}), b"\x80"])
def test_garbage_is_refused(payload: bytes) -> None:
    with pytest.raises(LinkError):
        decode_to_worker(payload)
    with pytest.raises(LinkError):
        decode_to_gateway(payload)


def test_what_a_newer_peer_adds_is_ignored_and_what_an_older_one_lacks_is_filled_in() -> None:
    load = {"type": "load", "waiting": 1, "running": 2, "waiting_tokens": 3, "kv_used": 4, "kv_total": 5}
    newer = load | {"backlog": 0.5, "shiny": [1, 2]}
    assert decode_to_gateway(msgspec.msgpack.encode(newer)) == Load(1, 2, 3, 4, 5, 0.5)
    newest = [1, [2], [0.0], [0.0], None, 0, 0.0, [], [], None, b"", None, b"", "shiny"]
    step = {"type": "step", "outputs": [newest, [2, [3], [0.0], [0.0]]]}
    expected = Step([Output(1, [2], [0.0], [0.0]), Output(2, [3], [0.0], [0.0])])
    assert decode_to_gateway(msgspec.msgpack.encode(step)) == expected


def test_sketches_and_low_margins_between_versions() -> None:
    """Who doesn't know of them skips them; who does takes what lacks them for unknown."""
    newer = Output(1, [2], [-0.5], [0.5], "stop", 3, 0.25, low_margins=1, sketch=bytes(128))
    (payload,) = FrameReader().feed(frame(Step([newer])))
    assert decode_to_gateway(payload) == Step([newer])
    fields = msgspec.msgpack.decode(payload)["outputs"][0]
    assert fields[-2:] == [1, bytes(128)], "fields may only be appended"
    older = {"type": "step", "outputs": [fields[:-2]]}
    (output,) = msgspec.convert(older, Step).outputs
    assert (output.low_margins, output.sketch) == (None, b"")
    asked = Submit(1, b"\x01\0\0\0", Sampling(max_tokens=5), sketch=True)
    (payload,) = FrameReader().feed(frame(asked))
    assert decode_to_worker(payload) == asked
    (payload,) = FrameReader().feed(frame(msgspec.structs.replace(asked, sketch=False)))
    assert b"sketch" not in payload, "nothing is said where nobody asks"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("unix:/run/w.sock", ("unix", "/run/w.sock")),
        ("tcp://127.0.0.1:9000", ("tcp", ("127.0.0.1", 9000))),
        ("tcp://[::1]:9000", ("tcp", ("::1", 9000))),
    ],
)
def test_addresses(text: str, parsed: object) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize("text", ["", "unix:", "tcp://", "tcp://x", "tcp://:5", "tcp://h:99999", "http://h:1"])
def test_bad_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="expected unix:"):
        parse_address(text)
