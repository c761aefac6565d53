"""Schemathesis over the server's own OpenAPI document: whatever comes, no 500."""

import os

import pytest
from model_servers import LOCAL_HTTP

pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, given, settings
from served import running

pytestmark = LOCAL_HTTP
EXAMPLES = int(os.environ.get("MIXTRAL_RAG_CONTRACT_EXAMPLES", "12"))
DOCUMENTED = {200, 202, 400, 401, 403, 404, 405, 409, 413, 414, 415, 421, 422, 429, 431, 503, 504}


@pytest.fixture(scope="module")
def schema(tmp_path_factory, smollm):
    """The schema of a server of this module's own, which may be emptied."""
    folder = tmp_path_factory.mktemp("contract")
    with running(folder, smollm, answer_seconds=20.0) as one:
        one.ingested("# Oil\n\nThe pump takes 4.5 litres.", "pump.md")
        yield schemathesis.openapi.from_url(f"{one.url}/openapi.json")


def test_nothing_makes_the_server_fail(schema):
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        if not operation.path.endswith("events"):  # a stream that may be endless
            _try(operation)


def _try(operation):
    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy())
    def check(case):
        if isinstance(case.body, dict) and "max_tokens" in case.body:
            case.body["max_tokens"] = 2
        answer = case.call(timeout=60)
        assert answer.status_code in DOCUMENTED, (operation.label, answer.text[:300])
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]

    check()
