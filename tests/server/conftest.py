import pytest

pytest.importorskip("fastapi", reason="the extra server is not installed")
pytest.importorskip("sse_starlette", reason="the extra server is not installed")

from served import CHINESE, MANUAL, running


@pytest.fixture(scope="module")
def server(tmp_path_factory, smollm):
    """A server with a model and two documents, without keys."""
    with running(tmp_path_factory.mktemp("server"), smollm) as one:
        assert one.ingested(MANUAL, "pump.md")["report"]["added"] == ["pump.md"]
        assert one.ingested(CHINESE, "休假.md", "personnel")["state"] == "done"
        yield one


@pytest.fixture
def client(server):
    """An HTTP client of `server`."""
    with server.client() as one:
        yield one
