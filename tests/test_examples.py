"""The scripts in examples/, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("script", "said"),
    [("01_two_step_chain.py", "bzip2-manual.pdf"), ("02_agent_with_documents.py", "Ai Message")],
)
def test_an_example_runs(script, said, smollm):
    done = subprocess.run(
        [sys.executable, EXAMPLES / script, smollm, "Who is the author of bzip2?"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
