"""Start the server, give it a document, and ask it as any program would: with the openai client.

    python examples/10_serve_and_call.py MODEL.gguf

Needs the extra `server` and the package openai.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from openai import OpenAI

AGREEMENT = Path(__file__).parent / "contracts" / "service-agreement.md"
PORT = 8765


def main(model: str, port: str = str(PORT)) -> None:
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as store:
        command = [sys.executable, "-m", "mixtral_rag", "serve", "--model", model, "--port", port]
        server = subprocess.Popen([*command, "--store", store, "--max-tokens", "60"])
        try:
            wait(f"{url}/readyz")
            uploaded = f"{url}/api/collections/default/files/{AGREEMENT.name}"
            job = httpx.put(uploaded, content=AGREEMENT.read_bytes()).json()["job"]
            while httpx.get(f"{url}/api/jobs/{job}").json()["state"] in ("waiting", "running"):
                time.sleep(0.2)
            client = OpenAI(base_url=f"{url}/v1", api_key="none")
            print("models:", [m.id for m in client.models.list()])
            asked = [{"role": "user", "content": "What is the fee a year?"}]
            answer = client.chat.completions.create(model="documents", messages=asked)
            print("answer:", answer.choices[0].message.content)
            for citation in answer.citations:
                print(f"  [{citation['number']}] {citation['name']}: {citation['quote']}")
        finally:
            server.terminate()
            print("stopped with exit code", server.wait())


def wait(address: str, seconds: float = 120) -> None:
    for _ in range(int(seconds * 5)):
        try:
            if httpx.get(address).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit(f"{address} does not answer")


if __name__ == "__main__":
    main(*sys.argv[1:3])
