"""Schemathesis over the server's own OpenAPI document: whatever comes, no 500."""

import os

import pytest
from model_servers import LOCAL_HTTP

pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, settings
from served import running

pytestmark = LOCAL_HTTP
EXAMPLES = int(os.environ.get("MIXTRAL_RAG_CONTRACT_EXAMPLES", "12"))
# What a request that is in order may still be answered with.
DOCUMENTED = {200, 202, 400, 401, 403, 404, 405, 409, 413, 414, 415, 421, 422, 429, 431, 503, 504}


@pytest.fixture(scope="module")
def api(tmp_path_factory, smollm):
    """The schema of a server of this module's own, which may be emptied."""
    folder = tmp_path_factory.mktemp("contract")
    with running(folder, smollm, answer_seconds=20.0) as one:
        one.ingested("# Oil\n\nThe pump takes 4.5 litres.", "pump.md")
        schema = schemathesis.openapi.from_url(f"{one.url}/openapi.json")
        yield schema.exclude(path_regex=r"events$")  # a stream that may be endless


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_nothing_makes_the_server_fail(case):
    body = case.body if isinstance(case.body, dict) else None
    if body is not None and "max_tokens" in body:
        body["max_tokens"] = 2
    answer = case.call(timeout=60)
    assert answer.status_code in DOCUMENTED, (answer.status_code, answer.text[:300])
    if answer.status_code >= 400 and case.method != "HEAD":
        assert answer.json()["error"]["message"]
