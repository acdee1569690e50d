"""`edgemt translate` and `edgemt inspect` as a user runs them, in a process of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import MEASURED, Cli, one_sentence

from edgemt.bundle import MANIFEST, pack


def test_an_argument(edgemt: Cli, toy_bundle: Path) -> None:
    result = edgemt("translate", "-b", toy_bundle, "我头疼。", "很疼。")
    assert result.returncode == 0 and result.stderr == b""
    assert result.stdout.endswith(b"\n") and result.stdout.count(b"\n") == 1


def test_a_filter_keeps_lines(edgemt: Cli, toy_bundle: Path) -> None:
    text = "\ufeff我头疼。\r\n\n  很疼。 \n120/80\nno line break".encode()
    result = edgemt("translate", "-b", toy_bundle, "--to", "en", stdin=text)
    lines = result.stdout.decode().split("\n")
    assert result.returncode == 0 and len(lines) == 5
    assert lines[0].endswith("\r") and not lines[0].startswith("\ufeff")
    assert lines[1] == "" and lines[2][:2] == "  " and lines[2][-1] == " "
    assert lines[3:] == ["120/80", "no line break"]


def test_empty_input_gives_empty_output(edgemt: Cli, toy_bundle: Path) -> None:
    result = edgemt("translate", "-b", toy_bundle, stdin=b"")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_line_is_answered_before_the_next_is_read(toy_bundle: Path) -> None:
    command = [sys.executable, "-m", "edgemt.cli", "translate", "-b", str(toy_bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for line in ("我头疼。\n", "My head hurts.\n", "\n", "好。\n"):
            process.stdin.write(line.encode())
            process.stdin.flush()
            assert process.stdout.readline().endswith(
                b"\n"
            )  # waits for ever if the answer waits for more input
        process.stdin.close()
        assert process.wait() == 0


def test_a_file_into_a_file(edgemt: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes("诊断：肺炎。\nCT normal\n".encode())
    target.write_text("old")
    result = edgemt("translate", "-b", toy_bundle, "-i", source, "-o", target)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    first, second, end = target.read_bytes().decode().split("\n")
    assert first and first != "old" and end == ""
    assert second == "CT normal"  # the file is Chinese as a whole, and this line needs no translation
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


def test_json_lines(edgemt: Cli, toy_bundle: Path) -> None:
    result = edgemt(
        "translate", "-b", toy_bundle, "--json", stdin="我头疼。很疼。\n\nIt hurts.\n99\n".encode()
    )
    rows = [json.loads(line) for line in result.stdout.decode().splitlines()]
    assert [(row["line"], row["source"]) for row in rows] == [
        (1, "我头疼。"), (1, "很疼。"), (3, "It hurts."), (4, "99"),
    ]  # fmt: skip
    assert [row["direction"] for row in rows][:3] == ["zh-en", "zh-en", "en-zh"]
    assert all(row["score"] < 0 < row["ms"] and isinstance(row["target"], str) for row in rows[:3])
    assert rows[3]["score"] is None and rows[3]["target"] == "99"


def test_glossary_pair_and_file(edgemt: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "terms.tsv").write_text("无菌\tsterile\n", encoding="utf-8")
    result = edgemt(
        "translate", "-b", toy_bundle, "--glossary", "手术=surgery", "--glossary", tmp_path / "terms.tsv",
        "手术应在无菌环境下进行。",
    )  # fmt: skip
    assert result.returncode == 0
    assert b"surgery" in result.stdout.lower() and b"sterile" in result.stdout.lower()


def test_an_archive_and_beam_and_threads(edgemt: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    pack(toy_bundle, tmp_path / "toy.edgemt")
    folder = edgemt("translate", "-b", toy_bundle, "--beam", "3", "我头疼。")
    zipped = edgemt("translate", "-b", tmp_path / "toy.edgemt", "--beam", "3", "--threads", "2", "我头疼。")
    assert zipped.returncode == 0 and zipped.stdout == folder.stdout


def test_output_is_utf8_in_any_locale(toy_bundle: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "edgemt.cli", "translate", "-b", str(toy_bundle), "--to", "zh"]
    result = subprocess.run(command, input="已经是中文。\n".encode(), capture_output=True, env=environment)
    assert result.stdout.decode() == "已经是中文。\n"


def test_one_line_of_ten_megabytes(edgemt: Cli, toy_bundle: Path) -> None:
    line = b"120/80 " * 1_500_000  # no letters, so that the model does not make the test slow
    command = [sys.executable, "-c", MEASURED, "translate", "-b", str(toy_bundle)]
    small = subprocess.run(command, input=b"120/80\n", capture_output=True)
    huge = subprocess.run(command, input=line, capture_output=True)
    assert huge.returncode == 0 and huge.stdout == line
    assert int(huge.stderr) - int(small.stderr) < 60e6


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        ([""], b"", 2, "the text is empty"),
        ([" \n"], b"", 2, "the text is empty"),
        ([b"\xff\xfe"], b"", 2, "not valid UTF-8"),
        (["--to", "de", "好。"], b"", 2, "does not translate any language to de; it has zh to en, en to zh"),
        (["--from", "zh", "--to", "zh", "好。"], b"", 2, "does not translate zh to zh"),
        (["--beam", "0", "好。"], b"", 2, "--beam 0 is too small"),
        (["--threads", "-1", "好。"], b"", 2, "--threads -1 is too small"),
        (["-i", "nowhere.txt"], b"", 2, "nowhere.txt cannot be read (No such file or directory)"),
        (["-i", "."], b"", 2, "cannot be read (Is a directory)"),
        (["-i", "a.txt", "好。"], b"", 2, "either a text or -i FILE"),
        (["-o", "nowhere/out.txt", "好。"], b"", 2, "out.txt cannot be written (No such file or directory)"),
        (["-o", "/dev/full", "好。"], b"", 1, "/dev/full could not be written (No space left on device)"),
        (["--glossary", "nowhere.tsv", "好。"], b"", 2, "there is no glossary at nowhere.tsv"),
        ([], "好。\n第二".encode() + b"\xb5\n", 2, "standard input is not UTF-8 at byte 13 (line 2)"),
        ([], "好。".encode("gb18030"), 2, "standard input is not UTF-8 at byte 0 (line 1)"),
    ],
)
def test_bad_input(
    edgemt: Cli, toy_bundle: Path, tmp_path: Path, arguments: list[str], stdin: bytes, code: int, message: str
) -> None:
    command = [os.fsdecode(argument) for argument in arguments]
    result = edgemt("translate", "-b", toy_bundle, *command, stdin=stdin, cwd=tmp_path)
    assert message in one_sentence(result)
    assert result.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_a_full_standard_output(toy_bundle: Path) -> None:
    command = [sys.executable, "-m", "edgemt.cli", "translate", "-b", str(toy_bundle), "好。"]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr.decode().startswith(
        "edgemt translate: standard output could not be written (No space"
    )
    assert result.stderr.count(b"\n") == 1


def test_a_reader_that_goes_away(toy_bundle: Path) -> None:
    command = f'yes "好。" | {sys.executable} -m edgemt.cli translate -b {toy_bundle} | head -n 2'
    result = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert result.stdout.count(b"\n") == 2 and b"Traceback" not in result.stderr


def test_an_invalid_file_leaves_no_output(edgemt: Cli, toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes("好。\n".encode() * 3 + b"\xff")
    result = edgemt("translate", "-b", toy_bundle, "-i", tmp_path / "in.txt", "-o", tmp_path / "out.txt")
    assert "in.txt is not UTF-8 at byte 21 (line 4)" in one_sentence(result)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_interrupted_leaves_no_output(toy_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgemt.cli", "translate", "-b", str(toy_bundle), "-o", "out.txt"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdin
        process.stdin.write("好。\n".encode())
        process.stdin.flush()
        while not any(path.stat().st_size for path in tmp_path.iterdir()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        error = process.stderr.read() if process.stderr else b""
        process.stdin.close()
    assert process.returncode == 130 and error == b"edgemt translate: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["translate", "inspect"])
def test_bad_bundles(edgemt: Cli, toy_bundle: Path, tmp_path: Path, command: str) -> None:
    def fails(bundle: Path) -> str:
        arguments = ["inspect", bundle] if command == "inspect" else ["translate", "-b", bundle, "好。"]
        return one_sentence(edgemt(*arguments))

    assert "there is no bundle at" in fails(tmp_path / "nowhere")
    assert "is not a bundle" in fails(tmp_path)
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    step = (bundle / "step.onnx").read_bytes()
    (bundle / "step.onnx").write_bytes(step[:-9] + bytes([step[-9] ^ 1]) + step[-8:])
    assert "step.onnx is damaged" in fails(bundle)
    (bundle / "step.onnx").unlink()
    assert "step.onnx is missing" in fails(bundle)
    manifest = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(manifest.replace('"toy"', '"tox"'))
    assert "was changed after it was written" in fails(bundle)
    (bundle / MANIFEST).write_text(manifest.replace('"format_version": "1.0"', '"format_version": "3.1"'))
    assert "bundle format 3.1" in fails(bundle)


def test_inspect(edgemt: Cli, toy_bundle: Path) -> None:
    result = edgemt("inspect", toy_bundle)
    text = result.stdout.decode()
    assert result.returncode == 0 and result.stderr == b""
    for expected in (
        "zh to en, en to zh",
        "seq2seq",
        "onnxruntime",
        "Apache-2.0",
        "(verified)",
        "step.onnx",
        "fp32",
    ):
        assert expected in text
    assert "MatMul" in text and "head" not in text
    assert "head" in edgemt("inspect", toy_bundle, "--layers").stdout.decode()


def test_inspect_json(edgemt: Cli, toy_bundle: Path) -> None:
    data = json.loads(edgemt("inspect", toy_bundle, "--json").stdout)
    assert data["languages"] == [["zh", "en"], ["en", "zh"]]
    assert data["files"]["step.onnx"]["bytes"] == (toy_bundle / "step.onnx").stat().st_size


def test_the_default_bundle_needs_no_argument(edgemt: Cli, default_bundle: Path) -> None:
    result = edgemt("translate", "我对青霉素过敏。")
    assert result.returncode == 0 and b"penicillin" in result.stdout
    shown = edgemt("inspect").stdout.decode()
    assert "of FP32's time" in shown and "CC-BY-SA-4.0" in shown
    assert max(map(len, shown.splitlines())) < 400
