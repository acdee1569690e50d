"""A foreign translator as a contender: real processes that answer, hang, die and misbehave."""

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from edgemt.bench.foreign import Foreign
from edgemt.errors import EdgemtError, UsageError

ANSWERS = "import sys\nfor line in sys.stdin:\n    print(line.rstrip()[::-1], flush=True)\n"


def python(program: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", program, *arguments])


def failure(command: str, texts: int = 1, timeout_s: float = 20.0, **options) -> str:
    """The one sentence in which translating `texts` lines ends."""
    with Foreign(command, timeout_s=timeout_s, **options) as foreign, pytest.raises(EdgemtError) as raised:
        for number in range(texts):
            foreign.translate(f"text {number}", "zh", "en")
    message = str(raised.value)
    assert "\n" not in message
    return message


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_a_line_for_each_text_in_order():
    with Foreign(python(ANSWERS)) as foreign:
        assert foreign.translate("头疼", "zh", "en") == "疼头"
        assert foreign.translate("two\nlines\r\nhere", "en", "zh") == "ereh senil owt"
        assert foreign.translate("", "en", "zh") == ""


def test_start_gives_the_seconds_to_the_first_answer():
    slow = "import time\ntime.sleep(0.3)\n" + ANSWERS
    with Foreign(python(slow)) as foreign:
        assert foreign.start("abc", "en", "zh") >= 0.3
        assert foreign.translate("abc", "en", "zh") == "cba"
        assert foreign.start("abc", "en", "zh") >= 0.3  # a new process, not the one that is there


def test_tsv_lines_name_the_languages():
    echo = "import sys\nfor line in sys.stdin:\n    print(repr(line.split(chr(9))), flush=True)\n"
    with Foreign(python(echo), lines="tsv") as foreign:
        assert foreign.translate("头疼", "zh", "en") == "['zh', 'en', '头疼\\n']"


def test_text_lines_run_a_process_for_each_pair():
    program = "import os, sys\nfor line in sys.stdin:\n    print(sys.argv[1:], os.getpid(), flush=True)\n"
    with Foreign(python(program, "{source_lang}-{target_lang}", "{other}")) as foreign:
        zh_en, en_zh = foreign.translate("a", "zh", "en"), foreign.translate("a", "en", "zh")
        assert zh_en.startswith("['zh-en', '{other}']")
        assert en_zh.startswith("['en-zh', '{other}']")
        assert foreign.translate("b", "zh", "en") == zh_en
    with Foreign(python(program)) as foreign:  # without the languages in it, one serves all pairs
        assert foreign.translate("a", "zh", "en") == foreign.translate("a", "en", "zh")


def test_a_line_longer_than_the_pipe():
    text = "药" * 200_000
    with Foreign(python(ANSWERS)) as foreign:
        assert foreign.translate(text, "zh", "en") == text


def test_much_on_stderr_does_not_block_it():
    noisy = (
        "import sys\nfor line in sys.stdin:\n    sys.stderr.write('x' * 300_000)\n    print(1, flush=True)\n"
    )
    with Foreign(python(noisy)) as foreign:
        assert [foreign.translate("a", "zh", "en") for _ in range(3)] == ["1", "1", "1"]


def test_output_that_is_not_utf8():
    program = "import sys\nsys.stdin.readline()\nsys.stdout.buffer.write(b'\\xff!\\n')\n"
    with Foreign(python(program)) as foreign:
        assert foreign.translate("a", "zh", "en") == "\ufffd!"


def test_a_command_that_hangs_is_named_and_killed(tmp_path):
    program = (
        "import os, subprocess, sys, signal, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(f'{os.getpid()} {child.pid}')\n"
        "time.sleep(600)\n"
    )
    note = tmp_path / "pids"
    message = failure(python(program, str(note)), timeout_s=3)
    assert "no answer within 3 s" in message
    for pid in map(int, note.read_text().split()):
        assert gone(pid)


def test_a_line_that_never_ends():
    program = "import time\nwhile True:\n    print('a', end='', flush=True)\n    time.sleep(0.001)\n"
    assert "no answer within 0.5 s" in failure(python(program), timeout_s=0.5)


def test_close_ends_the_children_of_a_command_that_ended_by_itself(tmp_path):
    program = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "for line in sys.stdin: print(line.strip(), flush=True)\n"
    )
    note = tmp_path / "pid"
    with Foreign(python(program, str(note))) as foreign:
        assert foreign.translate("a", "zh", "en") == "a"
        assert alive(int(note.read_text()))
    assert gone(int(note.read_text()))


def test_a_command_that_dies_is_quoted():
    program = (
        "import sys\nprint(sys.stdin.readline(), end='', flush=True)\nsys.exit('first\\nno such model\\n')\n"
    )
    message = failure(python(program), texts=2)
    assert "exit code 1" in message
    assert "after one answer" in message
    assert message.endswith("its last words: no such model")


def test_a_command_that_is_killed():
    program = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
    assert f"signal {signal.SIGKILL.name}" in failure(python(program))


def test_too_few_answers():
    program = "import sys\nfor _ in range(2): print(sys.stdin.readline().strip(), flush=True)\n"
    message = failure(python(program), texts=5)
    assert "ended (exit code 0) after 2 answers, with a line still unanswered" in message


def test_output_closed_by_a_process_that_goes_on():
    program = "import os, time\nos.close(1)\ntime.sleep(600)\n"
    assert "closed its output after no answers" in failure(python(program))


def test_an_answer_without_a_line_end_counts_as_none():
    program = "import sys\nsys.stdin.readline()\nprint('half', end='', flush=True)\n"
    assert "with a line still unanswered" in failure(python(program))


@pytest.mark.parametrize("before", [True, False])
def test_lines_that_nobody_asked_for(before):
    greeting, twice = ("print('ready', flush=True)\n", "1") if before else ("", "2")
    program = (
        f"{greeting}import sys, time\nfor line in sys.stdin: print('a\\n' * {twice}, end='', flush=True)\n"
    )
    message = failure(python(program), texts=200)
    assert "wrote more than one line for a line" in message


def test_a_command_that_cannot_be_found():
    message = failure("no-such-translator --fast")
    assert "cannot start the command `no-such-translator --fast` (No such file or directory)" in message


def test_a_file_that_may_not_be_run(tmp_path):
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    assert "Permission denied" in failure(str(tmp_path / "tool"))


@pytest.mark.parametrize(("command", "said"), [("", "empty"), ("   ", "empty"), ("a 'b", "quotation mark")])
def test_commands_that_are_none(command, said):
    with pytest.raises(UsageError, match=said):
        Foreign(command)


def test_peak_memory_and_cpu_time_count_children():
    program = (
        "import subprocess, sys\n"
        "held = 'x = bytearray(60_000_000); input()'\n"
        "child = subprocess.Popen([sys.executable, '-c', held + '; print(1, flush=True); input()'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n"
        "for line in sys.stdin:\n"
        "    print('go', file=child.stdin, flush=True); child.stdout.readline(); print(1, flush=True)\n"
    )
    with Foreign(python(program)) as foreign:
        assert foreign.peak_rss() is None
        assert foreign.cpu_s() == 0
        foreign.translate("a", "zh", "en")
        peak = foreign.peak_rss()
        assert peak is not None and 70_000_000 < peak < 300_000_000
        assert 0 < foreign.cpu_s() < 60
    assert foreign.peak_rss() is None


def test_the_command_may_be_a_shell_pipeline():
    with Foreign("sh -c 'cat | cat'") as foreign:
        assert foreign.translate("头疼 $HOME", "zh", "en") == "头疼 $HOME"
        assert "HOME" in os.environ
