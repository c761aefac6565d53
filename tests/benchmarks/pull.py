"""`pull` beside huggingface_hub's own downloader, from a hub that limits each connection.

    .venv/bin/python tests/benchmarks/pull.py [--rate 20]

Two questions: how long does one file take, and how much is sent again after an interruption at half
of it? Server and client share this machine; each connection gets `--rate` MB/s, as hubs far away
give. Both clients run as processes of their own, with plain HTTP.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from hub_server import Hub
from tiny_mixtral import write_tiny_mixtral

REPO, FILE = "someone/model-GGUF", "model-Q4_K.gguf"
CLIENTS = {
    "huggingface_hub": (
        "import sys; from huggingface_hub import hf_hub_download\n"
        "hf_hub_download(sys.argv[2], sys.argv[3], endpoint=sys.argv[1], local_dir=sys.argv[4],"
        " token=False)"
    ),
    "mixtral-rag pull": (
        "import sys; from pathlib import Path; from mixtral_rag.weights.pull import pull\n"
        "pull(sys.argv[2], quant=sys.argv[3], endpoint=sys.argv[1], folder=Path(sys.argv[4]))"
    ),
}


def start(hub: Hub, client: str, folder: str) -> subprocess.Popen:
    arguments = [sys.executable, "-c", CLIENTS[client], hub.url, REPO, FILE, folder]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(process: subprocess.Popen) -> None:
    if process.wait():
        raise SystemExit(f"the client failed: {process.args}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=20.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shape = {"n_layer": 3, "n_embd": 512, "n_head": 8, "n_ff": 1024}
        data = write_tiny_mixtral(Path(folder, FILE), **shape).read_bytes()
    hub = Hub({REPO: {FILE: data}})
    hub.pause = 65536 / (arguments.rate * 1e6)
    size = len(data)
    seconds, again = {}, {}
    for client in CLIENTS:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            finish(start(hub, client, folder))
            seconds[client] = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            hub.sent.clear()
            process = start(hub, client, folder)
            while hub.sent[FILE] < size / 2:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            process.wait()
            finish(start(hub, client, folder))
            again[client] = hub.sent[FILE] - size
    print(f"{size / 1e6:.0f} MB, {arguments.rate:.0f} MB/s a connection\n")
    base = seconds["huggingface_hub"]
    for client in CLIENTS:
        print(
            f"{client:18} {seconds[client]:6.1f} s  {base / seconds[client]:5.1f} times as fast; "
            f"interrupted at half, {again[client] / 1e6:6.1f} MB are sent again"
        )
    hub.close()


if __name__ == "__main__":
    main()
