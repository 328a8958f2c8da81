"""``/admin/reload``: what it says, and to whom."""

from pathlib import Path

from gateway.api.context import ReloadError
from gateway.traffic.keys import Keyring, plain_keys
from tests.gateway.harness import run, serving


def test_a_reload_says_what_it_changed_or_why_it_did_not(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            without = await gateway.post("/admin/reload", b"")
            assert (without.status, without.json["error"]["code"]) == (409, "conflict")

            async def reload() -> list[str]:
                return ["target qwen added"]

            async def refuse() -> list[str]:
                raise ReloadError("penstock.yaml:3: models is missing")

            gateway.context.reload = reload
            assert (await gateway.post("/admin/reload", b"")).json == {"changes": ["target qwen added"]}
            gateway.context.reload = refuse
            refused = await gateway.post("/admin/reload", b"")
            assert (refused.status, refused.json["error"]["code"]) == (422, "invalid_configuration")
            assert refused.json["error"]["message"] == "Nothing has changed: penstock.yaml:3: models is missing"
            gateway.context.keys = Keyring(plain_keys(["sk"]))
            assert (await gateway.post("/admin/reload", b"")).status == 401

    run(scenario())
