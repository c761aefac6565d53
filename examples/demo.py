"""The first thing to run: ingest two real documents, ask three questions, search in Chinese.

Types the commands a user would type, with a store of its own in build/.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
STORE = ROOT / "build" / "demo-store"
COMMAND = Path(sys.executable).with_name("mixtral-rag")
SHORT = ["--top-k", "1", "--context-tokens", "700"]  # a model of 135M parameters can use no more
STEPS = [
    ["ingest", "examples/docs"],
    ["ask", "Who is the author of bzip2?", *SHORT],
    ["ask", "What does bzip2recover do?", *SHORT, "--max-tokens", "100"],
    ["ask", "What is the capital of France?"],
    # The demonstration model knows no Chinese; finding the right passage needs no model.
    ["ask", "我应该安装 Debian 的哪个版本？", "--retrieve-only", "--top-k", "1"],
]


def main() -> None:
    for arguments in STEPS:
        quoted = (f'"{a}"' if " " in a else a for a in arguments)
        print(f"\n$ mixtral-rag {' '.join(quoted)}", flush=True)
        done = subprocess.run([COMMAND, *arguments, "--store", STORE], cwd=ROOT, check=False)
        if done.returncode:
            sys.exit(done.returncode)
    print('Your turn:\n  mixtral-rag ingest FOLDER\n  mixtral-rag ask "QUESTION"')
    print("(in .venv/bin; see README.md for pointing it at a real Chinese-Mixtral)")


if __name__ == "__main__":
    main()
