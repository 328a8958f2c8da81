"""What keys may do, on both ways that a request can take: answered here, or passed through."""

from pathlib import Path

from gateway.traffic.keys import Key, Keyring, hash_key
from tests.gateway.batches.builders import numbered, until, upload, with_files
from tests.gateway.harness import Answer, chat, run, serving
from tests.gateway.lane import harness as lane_harness
from tests.gateway.lane.harness import lane
from tests.gateway.lane.upstream import Upstream


def ring(**keys: Key) -> Keyring:
    """A ring in which the key of each name is the name."""
    return Keyring((hash_key(name.encode()), key) for name, key in keys.items())


KEYS = {
    "fake": Key(id="a", models=frozenset({"fake", "m"})),
    "other": Key(id="b", models=frozenset({"other"})),
    "admin": Key(id="c", models=frozenset(), admin=True),
    "all": Key(id="d"),
}


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["error"]["code"]


def test_a_key_asks_for_its_models_only(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.context.keys = ring(**KEYS)
            for path, body in (
                ("/v1/chat/completions", chat()),
                ("/v1/completions", {"model": "fake", "prompt": "hi"}),
                ("/v1/responses", {"model": "fake", "input": "hi"}),
                ("/v1/messages", {"model": "fake", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
                ("/v1/embeddings", {"model": "fake", "input": "hi"}),
                ("/tokenize", {"model": "fake", "prompt": "hi"}),
                ("/detokenize", {"model": "fake", "tokens": [1]}),
            ):
                assert (await gateway.post(path, body)).status == 401
                for key in ("fake", "all"):
                    assert (await gateway.post(path, body, authorization=f"Bearer {key}")).status == 200, path
                refused = await gateway.post(path, body, authorization="Bearer other")
                unknown = await gateway.post(path, body | {"model": "none"}, authorization="Bearer other")
                assert (refused.status, unknown.status) == (403, 403)
                assert refused.body.replace(b"'fake'", b"'none'").split(b"req-")[0] == unknown.body.split(b"req-")[0]
                if not path.endswith("tokenize"):  # whatever else is wrong with it
                    for model in ("fake", "none"):
                        wrong = {"model": model, "temperature": "x", "input": 5}
                        assert (await gateway.post(path, wrong, authorization="Bearer other")).status == 403, path

    run(scenario())


def test_a_key_sees_its_models_only(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.context.keys = ring(**KEYS)
            for key, seen in (("fake", ["fake"]), ("other", []), ("all", ["fake"])):
                sent = {"authorization": f"Bearer {key}"}
                listed = await gateway.request("GET", "/v1/models", headers=sent)
                assert [model["id"] for model in listed.json["data"]] == seen
            sent = {"authorization": "Bearer other"}
            assert code(await gateway.request("GET", "/v1/models/fake", headers=sent)) == (403, "model_not_allowed")
            assert code(await gateway.request("GET", "/v1/models/none", headers=sent)) == (403, "model_not_allowed")
            assert code(await gateway.request("GET", "/v1/models/other", headers=sent)) == (404, "model_not_found")

    run(scenario())


def test_a_key_finds_what_is_its_own(model_folder: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with with_files(model_folder, tmp_path) as gateway:
            gateway.context.keys = ring(**KEYS)
            batches = gateway.context.batches
            assert batches is not None
            file = (await upload(batches, numbered(1), key="a")).id
            asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            assert code(await gateway.post("/v1/batches", asked, authorization="Bearer all")) == (400, "invalid_value")
            batch = (await gateway.post("/v1/batches", asked, authorization="Bearer fake")).json["id"]
            results = (await until(batches, batch, "completed")).error_file_id
            said = {"model": "fake", "input": "hi"}
            answer = (await gateway.post("/v1/responses", said, authorization="Bearer fake")).json
            response, item = answer["id"], answer["output"][0]["id"]
            for method, path, own in (
                ("GET", f"/v1/files/{file}", 200),
                ("GET", f"/v1/files/{file}/content", 200),
                ("GET", f"/v1/files/{results}/content", 200),
                ("GET", f"/v1/batches/{batch}", 200),
                ("POST", f"/v1/batches/{batch}/cancel", 409),
                ("GET", f"/v1/responses/{response}", 200),
                ("GET", f"/v1/responses/{response}/input_items", 200),
                ("POST", f"/v1/responses/{response}/cancel", 400),
                ("DELETE", f"/v1/responses/{response}", 200),
                ("DELETE", f"/v1/files/{file}", 200),
            ):
                if method == "DELETE" and "responses" in path:
                    for more in (
                        {"previous_response_id": response},
                        {"input": [{"type": "item_reference", "id": item}]},
                    ):
                        taken = await gateway.post("/v1/responses", said | more, authorization="Bearer all")
                        assert taken.status in (400, 404), taken.body
                for key in ("all", "admin"):
                    other = await gateway.request(method, path, headers={"authorization": f"Bearer {key}"})
                    assert other.status == 404, (path, other.body)
                assert (await gateway.request(method, path, headers={"authorization": "Bearer fake"})).status == own
            for path, count in (("/v1/files", 1), ("/v1/batches", 1)):  # the results are left of the files
                for key, seen in (("fake", count), ("all", 0)):
                    listed = await gateway.request("GET", path, headers={"authorization": f"Bearer {key}"})
                    assert len(listed.json["data"]) == seen

    run(scenario())


def test_only_an_admin_key_administers(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.context.keys = ring(**KEYS)
            assert code(await gateway.post("/admin/reload", b"", authorization="Bearer all")) == (403, "not_allowed")
            assert code(await gateway.post("/admin/reload", b"", authorization="Bearer admin")) == (409, "conflict")
            assert (await gateway.post("/admin/reload", b"")).status == 401

    run(scenario())


def test_requests_that_pass_through_have_the_same_rules() -> None:
    async def scenario() -> None:
        async with Upstream() as upstream, lane(upstream) as gateway:
            gateway.context.keys = ring(**KEYS)
            body = lane_harness.chat()
            assert (await gateway.post(body)).status == 401
            assert (await gateway.post(body, authorization="Bearer fake")).status == 200
            assert (await gateway.post(body, x_api_key="all")).status == 200
            refused = await gateway.post(body, authorization="Bearer other")
            unknown = await gateway.post(body | {"model": "x"}, authorization="Bearer other")
            assert code(refused) == code(unknown) == (403, "model_not_allowed")
            assert len(upstream.requests) == 2
            assert not any(
                "authorization" in request.headers or "x-api-key" in request.headers for request in upstream.requests
            )

    run(scenario())


def test_keys_are_rotated_under_way(model_folder: Path) -> None:
    async def scenario() -> None:
        async with serving(model_folder) as gateway:
            gateway.context.keys = ring(fake=KEYS["fake"])
            assert (await gateway.post("/v1/chat/completions", chat(), authorization="Bearer fake")).status == 200
            gateway.context.keys = ring(newer=KEYS["fake"])
            assert (await gateway.post("/v1/chat/completions", chat(), authorization="Bearer fake")).status == 401
            assert (await gateway.post("/v1/chat/completions", chat(), authorization="Bearer newer")).status == 200

    run(scenario())
