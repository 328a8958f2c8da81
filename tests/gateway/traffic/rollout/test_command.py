"""``penstock rollout``: what it prints, and what it says when it can't."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gateway.traffic.keys import Keyring, plain_keys
from gateway.traffic.rollout.command import describe
from gateway.traffic.rollout.rollout import RolloutConfig, RolloutPlan
from gateway.traffic.rollout.service import Rollouts
from gateway.wire.rollouts import ChangeShown, GuardShown, RolloutShown
from penstock import main
from tests.gateway.harness import Gateway, serving_in_thread


@pytest.fixture(scope="module")
def gateway(model_folder: Path) -> Iterator[Gateway]:
    with serving_in_thread(model_folder) as gateway:
        yield gateway


@pytest.fixture
def rollouts(gateway: Gateway) -> Rollouts:
    made = gateway.context.rollouts = Rollouts(None)
    made.change({"team/chat": RolloutPlan(RolloutConfig(), "stable", "canary")})
    return made


def test_a_rollout_is_shown_and_told_what_to_do(
    gateway: Gateway, rollouts: Rollouts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollout", "status", "--url", f"{gateway.url}/v1/"]) == 0
    assert capsys.readouterr().out.startswith(
        "team/chat: canary against stable\n  running at 5 %, step 1 of 4, for 0 s\n"
    )
    for command, weight, said in (
        ("hold", 5, "held at 5 %"),
        ("resume", 5, "running at 5 %"),
        ("promote", 100, "promoted at 100 %"),
        ("rollback", 0, "rolled back at 0 %"),
        ("restart", 5, "running at 5 %"),
    ):
        assert main(["rollout", command, "team/chat", "--reason", "so it is", "--url", gateway.url]) == 0
        assert rollouts.weight("team/chat") == weight
        out = capsys.readouterr().out
        assert said in out and "by an operator: so it is" in out
    assert main(["rollout", "status", "team/chat", "--json", "--url", gateway.url]) == 0
    assert capsys.readouterr().out.startswith('{"model":"team/chat",')


def test_what_can_not_be_done_is_said(
    gateway: Gateway, rollouts: Rollouts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["rollout", "resume", "team/chat", "--url", gateway.url]) == 1
    assert "The rollout of 'team/chat' can't go on: it isn't held." in capsys.readouterr().err
    assert main(["rollout", "hold", "other", "--url", gateway.url]) == 1
    assert "The model 'other' has no rollout." in capsys.readouterr().err
    assert main(["rollout", "status", "--url", gateway.url, "--key-env", "NOT_SET"]) == 2
    assert "NOT_SET is not set" in capsys.readouterr().err
    assert main(["rollout", "status", "--url", "http://127.0.0.1:1"]) == 1
    assert "no server answers at http://127.0.0.1:1" in capsys.readouterr().err
    rollouts.change({})
    assert main(["rollout", "status", "--url", gateway.url]) == 0
    assert capsys.readouterr().out == "no rollouts\n"
    monkeypatch.setattr(gateway.context, "keys", Keyring(plain_keys(["sk-admin"])))
    assert main(["rollout", "status", "--url", gateway.url]) == 1
    assert "penstock rollout: " in capsys.readouterr().err
    monkeypatch.setenv("ADMIN_KEY", "sk-admin")
    assert main(["rollout", "status", "--url", gateway.url, "--key-env", "ADMIN_KEY"]) == 0


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(200, b"[]", "is it a server of ours?"), (502, b"<html>", "/admin/rollouts answers 502")],
)
def test_what_another_server_answers_is_no_rollout(
    status: int, body: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert main(["rollout", "status", "--url", f"http://127.0.0.1:{server.server_port}"]) == 1
    assert said in capsys.readouterr().err


def test_figures_stand_in_columns() -> None:
    guards = [
        GuardShown("error_rate", "error_rate 2% of 50 requests", 0.034, 40.0, 12.6, 100.0, "rare"),
        GuardShown("ttft", "ttft 2.00 times", 5e9, 40.0, 3e-8, 100.0, "no"),
    ]
    history = [ChangeShown(0.0, "to 25 %", "from 5 % to 25 %"), ChangeShown(0.0, "begun at 5 %", "it is new")]
    shown = RolloutShown(
        "chat",
        "stable",
        "canary",
        "running",
        25.0,
        2,
        4,
        1000.0,
        "from 5 % to 25 %",
        12000,
        50,
        guards,
        ["a lot"],
        history,
    )
    lines = describe(shown, 1000.0 + 3 * 3600).splitlines()
    assert lines[:8] == [
        "chat: canary against stable",
        "  running at 25 %, step 2 of 4, for 3 h",
        "  from 5 % to 25 %",
        "  compared: 50 requests of the canary, 12,000 of the control",
        "    guard       worse  limit  harmless  needed",
        "    error_rate  0.034     40        13     100  error_rate 2% of 50 requests",
        "    ttft        > 1e6     40     3e-08     100  ttft 2.00 times",
        "  missing until the next step:",
    ]
    assert lines[8] == "    a lot"
    assert lines[10].endswith("  from 5 % to 25 %") and lines[11].endswith("  begun at 5 %: it is new")
