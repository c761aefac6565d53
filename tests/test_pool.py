"""Readers that hang, crash, bomb or leave things behind cost only their file.

The files here that end in `.md` are programs: a stand-in for the Markdown parser, found first on
the path that readers share with this process, runs them as a fault in a parser would run.
"""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import psutil
import pytest

from mixtral_rag.errors import UnreadableError
from mixtral_rag.ingest.pool import ReaderPool

PARSER = """
class MarkdownIt:
    def __init__(self, *args): pass
    def parse(self, source):
        exec(compile(source, "file", "exec"), {})
        return []
"""
BUSY = "import itertools; sum(itertools.repeat(1, 1 << 60))"  # in C, deaf to all but the kernel


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Makes files that run in the worker as they are read."""
    folder = tmp_path / "parser"
    folder.mkdir()
    (folder / "markdown_it.py").write_text(PARSER)
    monkeypatch.syspath_prepend(folder)

    def write(code, name="bad.md"):
        path = tmp_path / name
        path.write_text(code)
        return path

    return write


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.txt"
    path.write_text("fine")
    return path


def group(leader):
    """Live processes of the group that `leader` leads or led."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_until_gone(leader, seconds):
    until = time.monotonic() + seconds
    while left := group(leader):
        assert time.monotonic() < until, f"{left} are left of the group {leader}"
        time.sleep(0.05)


def pid_of(path, pool):
    """Number of the worker that reads, told by a program at `path`."""
    with pytest.raises(UnreadableError) as caught:
        pool.submit(path).result()
    return int(re.search(r"pid=(\d+)", str(caught.value)).group(1))


TELL = "import os; raise ValueError(f'pid={os.getpid()}')"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("while True: pass", "took its reader more than 1 seconds"),
        (BUSY, "took its reader more than 1 seconds"),
        ("import time; time.sleep(600)", "took its reader more than 1 seconds"),
        ("import os; os.kill(os.getpid(), 19)", "took its reader more than 1 seconds"),
        ("import ctypes; ctypes.string_at(0)", r"crashed its reader \(SIGSEGV\)"),
        ("import os; os.abort()", r"crashed its reader \(SIGABRT\)"),
        ("import os; os._exit(3)", r"crashed its reader \(exit code 3\)"),
        ("import os; os.closerange(3, 100)", "crashed its reader"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGXCPU)", "more than 1 seconds of proc"),
        ("bytearray(1 << 40)", "needs more than 512 MiB of memory"),
        ("x = ['a' * 10]\nwhile True: x.append(x[-1] * 2)", "needs more than 512 MiB of memory"),
        ("def f(): f()\nf()", "nested too deeply"),
        ("raise KeyError('/Root')", "may be damaged .KeyError"),
        ("raise SystemExit", "crashed its reader"),
        ("open('temporary', 'w').truncate(1 << 31)", "File too large"),
    ],
)  # fmt: skip
def test_whatever_a_reader_does_costs_only_its_file(program, good, code, message):
    path = program(code)
    with ReaderPool(n_workers=1, timeout=1, memory=512 << 20) as pool:
        bad, neighbour = pool.submit(path), pool.submit(good)
        with pytest.raises(UnreadableError, match=message) as caught:
            bad.result()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert neighbour.result().blocks[0].text == "fine"


def test_a_file_with_too_much_text_is_refused(tmp_path, good):
    long = tmp_path / "long.txt"
    long.write_text("长" * 1001)
    with ReaderPool(n_workers=1, max_characters=1000) as pool:
        with pytest.raises(UnreadableError, match=r"long\.txt holds more than 1,000 characters"):
            pool.submit(long).result()
        assert pool.submit(good).result().blocks[0].text == "fine"


def test_an_answer_without_end_is_refused(program, good):
    code = (
        "import os\nfor fd in range(3, 20):\n  while True:\n    try: os.write(fd, b'x' * 65536)\n"
    )
    code += "    except OSError: break\n"
    with ReaderPool(n_workers=1, timeout=20, max_characters=1000) as pool:
        with pytest.raises(UnreadableError, match="grows to more text than can be taken"):
            pool.submit(program(code)).result()
        assert pool.submit(good).result().blocks[0].text == "fine"


def test_what_readers_print_and_read_does_not_reach_the_pipes(program, good):
    code = """
import os, subprocess
print('{"parsed": 1}', flush=True)
os.write(1, b'{"parsed": 1}\\n'); os.write(2, b'{"parsed": 1}\\n')
subprocess.run(['sh', '-c', 'cat; echo "{}"; echo "{}" >&2'], check=True)
"""
    with ReaderPool(n_workers=1, timeout=10) as pool:
        both = [pool.submit(program(code)), pool.submit(good)]
        assert both[0].result().blocks[0].text == code.strip()
        assert both[1].result().blocks[0].text == "fine"


def test_a_fork_bomb_is_ended_with_all_its_processes(program, tmp_path, good):
    code = f"""
import os, time
open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid()))
for _ in range(5): os.fork()
time.sleep(600)
"""
    with ReaderPool(n_workers=1, timeout=2) as pool:
        with pytest.raises(UnreadableError, match="more than 2 seconds"):
            pool.submit(program(code)).result()
        wait_until_gone(int((tmp_path / "pid").read_text()), 2)
        assert pool.submit(good).result().blocks[0].text == "fine"


def test_programs_that_a_reader_leaves_running_are_ended_after_its_file(program, tmp_path, good):
    code = f"""
import os, subprocess
subprocess.Popen(['sleep', '600'])
open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid()))
"""
    with ReaderPool(n_workers=1) as pool:
        assert pool.submit(program(code)).result().blocks
        wait_until_gone(int((tmp_path / "pid").read_text()), 2)
        assert pool.submit(good).result().blocks[0].text == "fine"


def test_memory_that_one_file_leaves_behind_is_not_missed_by_the_next(program):
    leak = program("import builtins; builtins.kept = bytearray(300 << 20)", "leak.md")
    needs = program("bytearray(400 << 20)", "needs.md")
    with ReaderPool(n_workers=1, memory=512 << 20) as pool:
        for path in (leak, needs, leak, needs):
            assert pool.submit(path).result().blocks


def test_a_crash_that_an_earlier_file_caused_is_not_blamed_on_the_next(program, good):
    cause = """
import os
from mixtral_rag.ingest.readers import text
text.read = lambda *args: os.abort()
"""
    with ReaderPool(n_workers=1) as pool:
        assert pool.submit(program(cause)).result().blocks
        assert pool.submit(good).result().blocks[0].text == "fine"


def test_temporary_files_go_with_the_file_that_made_them(program, tmp_path, good):
    code = f"""
import tempfile, time
open({str(tmp_path / "folder")!r}, 'w').write(tempfile.gettempdir())
tempfile.mkstemp()
"""
    hang = program(code + "time.sleep(600)", "hang.md")
    with ReaderPool(n_workers=1, timeout=1) as pool:
        for path in (program(code), hang):
            try:
                pool.submit(path).result()
            except UnreadableError:
                assert path == hang
            assert not Path((tmp_path / "folder").read_text()).exists()
        pool.submit(good).result()


def test_limits_are_set(program):
    code = """
import os, resource
limits = [resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in ('AS', 'CORE', 'CPU')]
raise ValueError(limits, os.nice(0), os.getsid(0) == os.getpid())
"""
    path = program(code)
    with ReaderPool(n_workers=1, timeout=7, memory=600 << 20) as pool:
        error = str(pool.submit(path).exception())
    limits, nice, leads = eval(re.search(r"ValueError: (.*)\)$", error).group(1))
    assert limits[0] == (600 << 20, 600 << 20)
    assert limits[1] == (0, 0)
    assert 7 <= limits[2][0] <= 10
    assert nice > os.nice(0)
    assert leads


def test_processor_time_is_counted_for_each_file_alone(program):
    work = program("import time\nuntil = time.process_time() + 0.7\n"
                   "while time.process_time() < until: pass")  # fmt: skip
    with ReaderPool(n_workers=1, timeout=10) as pool:
        tell = program("import resource; raise ValueError(resource.getrlimit(0))", "tell.md")
        seen = []
        for path in (tell, work, work, work, tell):
            try:
                pool.submit(path).result()
            except UnreadableError as error:
                seen.append(int(re.search(r"ValueError: \((\d+)", str(error)).group(1)))
    assert seen[1] >= seen[0] + 2


def test_signs_of_life_extend_the_time(program):
    code = """
import time
from mixtral_rag.ingest.heartbeat import alive
for _ in range(8):
    time.sleep(0.4)
    alive()
"""
    with ReaderPool(n_workers=1, timeout=1.5) as pool:
        assert pool.submit(program(code)).result().blocks
        with pytest.raises(UnreadableError, match=r"more than 1\.5 seconds"):
            pool.submit(program(code + "time.sleep(600)")).result()


def test_a_process_is_replaced_after_some_files(program, good):
    tell = program(TELL)
    with ReaderPool(n_workers=1) as pool:
        first = pid_of(tell, pool)
        assert pid_of(tell, pool) == first
        for future in [pool.submit(good) for _ in range(198)]:
            assert future.result().blocks[0].text == "fine"
        assert pid_of(tell, pool) != first


def test_files_are_read_side_by_side(program, tmp_path):
    code = """
import pathlib, time
here, there = pathlib.Path({0!r}), pathlib.Path({1!r})
here.touch()
while not there.exists(): time.sleep(0.01)
"""
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with ReaderPool(n_workers=2, timeout=20) as pool:
        both = [pool.submit(program(code.format(a, b), "a.md")),
                pool.submit(program(code.format(b, a), "b.md"))]  # fmt: skip
        for future in both:
            assert future.result().blocks


def test_closing_ends_files_under_way_and_cancels_the_rest(program, tmp_path):
    code = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n{BUSY}"
    pool = ReaderPool(n_workers=1)
    under_way, waiting = pool.submit(program(code)), pool.submit(program(code, "next.md"))
    leader = _written(tmp_path / "pid")
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 1
    for future in (under_way, waiting):
        with pytest.raises(CancelledError):
            future.result()
    wait_until_gone(leader, 2)


def test_nothing_starts_until_there_is_work():
    before = len(psutil.Process().children())
    with ReaderPool(n_workers=2):
        assert len(psutil.Process().children()) == before


PARENT = """
import sys
from pathlib import Path
from mixtral_rag.ingest.pool import ReaderPool
with ReaderPool(n_workers=1, timeout={timeout}) as pool:
    pool.submit(Path(sys.argv[1])).result()
"""


@pytest.fixture
def parent(program, tmp_path, monkeypatch):
    """Starts a process that reads a program, and gives it with the number of its worker."""
    started = []

    def start(code, timeout=60):
        tell = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        path = os.pathsep.join([str(tmp_path / "parser"), *sys.path])
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT.format(timeout=timeout), str(program(tell + code))],
            env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process, _written(tmp_path / "pid")

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stderr.close()


def _written(path):
    until = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
    return int(path.read_text())


def test_ctrl_c_ends_at_once_and_leaves_nothing(parent):
    process, leader = parent("import subprocess; subprocess.Popen(['sleep', '600'])\n" + BUSY)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, reason = process.communicate()
    assert time.monotonic() - started < 1
    assert b"KeyboardInterrupt" in reason
    wait_until_gone(leader, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only the alarm ends it")
def test_a_killed_parent_takes_its_busy_readers_along(parent):
    process, leader = parent("import subprocess; subprocess.Popen(['sleep', '600'])\n" + BUSY)
    process.kill()
    wait_until_gone(leader, 2)


def test_a_reader_ends_itself_when_its_parent_does_not(parent):
    process, leader = parent("import time; time.sleep(600)", timeout=1)
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(3)
        assert group(leader)
        wait_until_gone(leader, 10)
    finally:
        process.send_signal(signal.SIGCONT)
    _, reason = process.communicate()
    assert b"took its reader more than 1 seconds" in reason


def test_a_stopped_parent_that_goes_on_finds_its_answer(parent):
    process, leader = parent("import time; time.sleep(1)", timeout=2)
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    assert group(leader)
    process.send_signal(signal.SIGCONT)
    _, reason = process.communicate()
    assert process.returncode == 0, reason
