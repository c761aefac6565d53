"""A real server over a real small model, in a thread of the tests' process."""

import contextlib
import threading
import time

import httpx

from mixtral_rag.server.app import create_app
from mixtral_rag.server.keys import Keys
from mixtral_rag.server.options import ServerOptions
from mixtral_rag.server.serving import Server, config_of
from mixtral_rag.settings import Settings

MANUAL = (
    "# Pump P-7\n\n## Oil\n\nThe pump P-7 takes 4.5 litres of mineral oil, changed every 900 hours."
    "\n\n## Noise\n\nAt full load the pump P-7 is as loud as 71 dB at one metre.\n"
)
CHINESE = "# 休假制度\n\n员工每年享有十五天带薪年假。请假须提前三个工作日书面申请。\n"


class Running:
    """A server that listens on `url`."""

    def __init__(self, folder, model, *, keys=(), n_ctx=2048, parallel=None, **options):
        settings = Settings(
            store=folder / "store", model=model and str(model), n_ctx=n_ctx, kv_bytes=0,
            max_tokens=24, temperature=0.0, parallel=parallel,
        )  # fmt: skip
        self.keys = Keys(folder / "keys.json")
        self.made = {name: self.keys.add(name) for name in keys}
        options = ServerOptions(port=0, **options)
        self.app = create_app(settings, options, self.keys)
        self.service = self.app.state.service
        self.server = Server(config_of(self.app, options), self.service)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        wait(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        wait(lambda: self.service.is_ready)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(60)

    def client(self, **options):
        """An HTTP client of this server."""
        return httpx.Client(base_url=self.url, timeout=120, **options)

    def ingested(self, text, name, collection="default"):
        """Upload a text and wait until it can be found."""
        with self.client() as client:
            put = client.put(f"/api/collections/{collection}/files/{name}", content=text.encode())
            assert put.status_code == 202, put.text
            return finished(client, put.json()["job"]) | {"document": put.json()["document"]}

    def is_idle(self):
        """Whether the model does nothing."""
        return self.service.gate.running == self.service.gate.waiting == 0


def finished(client, job):
    """The job, once it is over."""
    wait(lambda: client.get(f"/api/jobs/{job}").json()["state"] not in ("waiting", "running"))
    return client.get(f"/api/jobs/{job}").json()


def wait(condition, seconds=120):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


@contextlib.contextmanager
def running(folder, model, **options):
    """A server of one's own."""
    with Running(folder, model, **options) as one:
        yield one
