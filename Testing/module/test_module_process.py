"""Real child processes, also badly behaved ones: every line arrives, nothing waits, nothing survives."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from GenSegSlicerLib import BackendProcess as module
from GenSegSlicerLib.BackendProcess import LONGEST_LINE, BackendProcess

posix = pytest.mark.skipif(os.name == "nt", reason="signals and /proc")


@pytest.fixture
def child(tmp_path):
    """child(code, *arguments): a started BackendProcess that runs this Python code."""
    started = []

    def start(code: str, *arguments: str, **options) -> BackendProcess:
        script = tmp_path / f"child {len(started)} ü.py"
        script.write_text(textwrap.dedent(code), encoding="utf-8")
        process = BackendProcess([sys.executable, "-u", str(script), *arguments], **options)
        started.append(process)
        process.start()
        return process

    yield start
    for process in started:
        process.kill(grace=0.0)


def lines(process: BackendProcess, until=lambda found: False, seconds: float = 30.0) -> list[module.Line]:
    """Polls until the process has ended or `until(lines so far)`."""
    found, end = [], time.monotonic() + seconds
    while not process.finished and not until(found):
        assert time.monotonic() < end, found[-5:]
        found += process.poll()
        time.sleep(0.005)
    return found


def text(process: BackendProcess, isError: bool = False) -> list[str]:
    return [line.text for line in lines(process) if line.isError is isError]


def lives(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent to notice does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not lives(pid)


def test_every_line_arrives_in_order_with_its_stream_and_the_status(child):
    process = child("""
        import sys
        for number in range(20000):
            print(f"line {number}")
        print("oops", file=sys.stderr)
        sys.exit(7)
    """)
    assert process.status is None
    found = lines(process)
    assert [line.text for line in found if not line.isError] == [f"line {number}" for number in range(20000)]
    assert [line.text for line in found if line.isError] == ["oops"]
    assert process.status == 7 and process.poll() == []


def test_polling_never_waits_for_a_silent_process(child):
    process = child("import time; time.sleep(60)")
    begin = time.monotonic()
    assert [process.poll() for _ in range(100)] == [[]] * 100
    assert time.monotonic() - begin < 0.5 and not process.finished


def test_half_a_line_waits_for_its_end_and_the_last_needs_none(child):
    process = child("""
        import sys, time
        sys.stdout.write("one ha"); sys.stdout.flush(); time.sleep(0.3)
        sys.stdout.write("lf\\nno end"); sys.stdout.flush()
    """)
    assert text(process) == ["one half", "no end"]


def test_undecodable_bytes_are_shown_and_lose_no_line(child):
    process = child("""
        import sys
        out = sys.stdout.buffer
        out.write(b"caf\\xe9 \\xff\\xfe\\nGr\\xc3\\xb6\\xc3\\x9fe \\xe8\\x84\\xbe\\n"); out.flush()
        out.write(b"\\xe8"); out.flush()
        import time; time.sleep(0.2)
        out.write(b"\\x84\\xbe\\n"); out.flush()
    """)
    assert text(process) == ["caf\\xe9 \\xff\\xfe", "Größe 脾", "脾"]


def test_carriage_returns_of_progress_bars_make_lines_and_empty_lines_are_left_out(child):
    process = child(r"""
        import sys
        sys.stdout.write("10%\r20%\r\n\n\r\nend\r\n")
    """)
    assert text(process) == ["10%", "20%", "end"]


def test_a_line_without_end_is_cut_and_what_follows_is_read(child):
    process = child("""
        import sys
        for _ in range(40):
            sys.stdout.write("x" * 1_000_000)
        sys.stdout.write("tail\\nnext\\n")
    """)
    long, following = text(process)
    assert LONGEST_LINE <= len(long) <= LONGEST_LINE + 2 and set(long[:100]) == {"x"}
    assert following == "next"


def test_a_flood_of_output_keeps_each_poll_short(child):
    process = child("""
        import sys
        while True:
            sys.stdout.write("a line of some length\\n" * 1000)
    """)
    longest, read, end = 0.0, 0, time.monotonic() + 2.0
    while time.monotonic() < end:
        begin = time.thread_time()
        read += len(process.poll())
        longest = max(longest, time.thread_time() - begin)
    assert read > 10000 and longest < 0.5
    process.kill(grace=0.0)
    lines(process)
    assert process.status is not None


def test_a_process_that_dies_at_once_tells_why(child):
    process = child("raise SystemExit('no such thing')")
    assert text(process, isError=True) == ["no such thing"] and process.status == 1


def test_a_program_that_does_not_exist_is_an_error_at_the_start(tmp_path):
    process = BackendProcess([str(tmp_path / "no python"), "-m", "genseg"])
    with pytest.raises(OSError):
        process.start()
    assert process.poll() == [] and process.pid is None
    process.kill()


def test_a_process_is_started_once(child):
    process = child("pass")
    with pytest.raises(RuntimeError):
        process.start()


def test_environment_and_folder_reach_the_process(child, tmp_path):
    folder = tmp_path / "ein Ordner ü"
    folder.mkdir()
    environment = {**os.environ, "PYTHONUTF8": "1", "GENSEG_WORD": "Größe 脾"}
    process = child("import os; print(os.environ['GENSEG_WORD'], os.getcwd())", environment=environment, folder=folder)
    assert text(process) == [f"Größe 脾 {folder}"]


def test_standard_input_stays_open_and_silent_until_it_is_closed(child):
    process = child("""
        import sys
        print("waiting")
        print("closed", repr(sys.stdin.read()))
    """)
    assert [line.text for line in lines(process, until=bool)] == ["waiting"]
    time.sleep(0.3)
    assert process.poll() == []
    process.closeInput()
    process.closeInput()
    assert text(process) == ["closed ''"]


def test_a_graceful_stop_is_the_file_once_the_run_has_begun_and_the_closed_input_before(child, tmp_path):
    code = "import sys; print('up'); sys.stdin.read(); print('input closed')"
    for begun in (True, False):
        run = tmp_path / f"run {begun}"
        process = child(code)
        lines(process, until=bool)
        if begun:
            run.mkdir()
            (run / "settings.json").write_text("{}")
        process.stopGracefully(run)
        assert (run / "stop").exists() is begun and run.exists() is begun
        time.sleep(0.3)
        assert ([line.text for line in process.poll()] == []) is begun
        process.kill(grace=0.0)


@posix
def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(child):
    process = child("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("deaf")
        while True:
            time.sleep(60)
    """)
    lines(process, until=bool)
    begin = time.monotonic()
    process.kill(grace=0.5)
    assert 0.5 <= time.monotonic() - begin < 3.0
    lines(process)
    assert process.status == -signal.SIGKILL and gone(process.pid)


@posix
def test_a_process_that_listens_may_clean_up_first(child, tmp_path):
    process = child(
        """
        import signal, sys, time
        from pathlib import Path
        def end(*_):
            Path(sys.argv[1]).write_text("clean")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("up")
        time.sleep(60)
        """,
        str(tmp_path / "mark"),
    )
    lines(process, until=bool)
    process.kill(grace=10.0)
    assert (tmp_path / "mark").read_text() == "clean"
    lines(process)
    assert process.status == 0


FAMILY = """
    import subprocess, sys, time
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(0, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid)
    if sys.argv[1] == "wait":
        child.wait()
    if sys.argv[1] == "crash":
        import os
        os.kill(os.getpid(), 9)
"""


@posix
def test_killing_takes_the_grandchildren_along_even_deaf_ones(child):
    process = child(FAMILY, "wait")
    grandchild = int(lines(process, until=bool)[0].text)
    assert lives(grandchild)
    process.kill(grace=0.2)
    assert gone(process.pid) and gone(grandchild)


@posix
@pytest.mark.parametrize("how", ["leave", "crash"])
def test_when_the_process_ends_by_itself_its_grandchildren_end_too(child, how):
    process = child(FAMILY, how)
    grandchild = int(lines(process)[0].text)
    assert process.status == (0 if how == "leave" else -9)
    assert gone(grandchild)


@posix
def test_a_stranger_that_left_the_group_and_holds_the_output_delays_the_end_only_for_a_moment(child):
    process = child("""
        import subprocess, sys
        code = "import time; time.sleep(30)"
        print(subprocess.Popen([sys.executable, "-c", code], start_new_session=True).pid)
    """)
    begin = time.monotonic()
    stranger = int(lines(process)[0].text)
    try:
        assert process.status == 0 and time.monotonic() - begin < module.AFTER_END + 3
    finally:
        os.kill(stranger, signal.SIGKILL)


@posix
def test_killing_is_harmless_before_the_start_after_the_end_and_twice(child):
    BackendProcess([sys.executable]).kill()
    process = child("print('done')")
    lines(process)
    process.kill()
    other = child("import time; time.sleep(60)")
    other.kill(grace=0.0)
    other.kill(grace=0.0)
    lines(other)
    assert process.status == 0 and other.status < 0


@posix
def test_a_group_number_is_never_used_after_the_end(child, monkeypatch):
    process = child("print('done')")
    lines(process)
    polite, sent, real = child("import time; print(0); time.sleep(60)"), [], os.killpg
    lines(polite, until=bool)
    monkeypatch.setattr(os, "killpg", lambda group, number: (sent.append((group, number)), real(group, number)))
    process.kill()
    process.poll()
    assert sent == []  # the number may be somebody else's by now
    polite.kill(grace=10.0)
    assert sent == [(polite.pid, signal.SIGTERM), (polite.pid, signal.SIGKILL)]  # the second at the very end


OWNER = """
import os, sys, time
sys.path.insert(0, {path!r})
from GenSegSlicerLib.BackendProcess import BackendProcess
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); {child}"
process = BackendProcess([sys.executable, "-c", code])
process.start()
while not process.poll():
    time.sleep(0.01)
print(process.pid, flush=True)
{end}
"""
PATH = str(Path(__file__).parents[2] / "GenSegSlicer")


def owner(child: str, end: str) -> tuple[subprocess.CompletedProcess, int]:
    code = OWNER.format(path=PATH, child=child, end=end)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    return done, int(done.stdout)


@posix
@pytest.mark.parametrize("end", ["", "raise RuntimeError('on purpose')", "del process"])
def test_when_this_program_ends_nothing_of_it_stays(end):
    _, pid = owner("time.sleep(60)", end)
    assert gone(pid, 3.0)


@posix
def test_when_this_program_is_killed_a_child_that_watches_its_input_ends(tmp_path):
    _, pid = owner("import sys; sys.stdin.read()", "os.kill(os.getpid(), 9)")
    assert gone(pid, 5.0)


@posix
def test_two_processes_do_not_keep_each_others_input_open(child):
    first = child("import sys; sys.stdin.read(); print('closed')")
    second = child("import time; time.sleep(60)")
    first.closeInput()
    assert text(first) == ["closed"]
    assert not second.finished
