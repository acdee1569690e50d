"""What goes wrong with a program or a bundle is said by name; and taps, which listen to a graph's inside."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sessions import SOURCES, TOLERANCE, ints, naive_greedy, padded, start, take
from toy import EOS, PAD, Toy

from edgemt.errors import EdgemtError
from edgemt.runtimes import open_program
from edgemt.runtimes.onnxruntime import OrtProgram


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


@pytest.fixture(scope="module")
def program(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> OrtProgram:
    directory = tmp_path_factory.mktemp("toy")
    return open_program(directory, toy.write(directory))


# What a caller can do wrong.


@pytest.mark.parametrize("bad", [-1, 23, 2**31 - 1])
def test_ids_outside_the_vocabulary_are_refused(program, bad):
    with pytest.raises(EdgemtError, match=f"{bad} is outside the model's vocabulary of 23"):
        program.encode(ints([[5, bad]]), ints([2]))
    with pytest.raises(EdgemtError, match=str(bad)):
        take(start(program), [[2], [bad], [2]])
    with pytest.raises(EdgemtError, match=str(bad)):
        program.greedy(program.encode(*padded(SOURCES[:1])), ints([[bad]]), 5, ints([EOS]))


def test_too_many_tokens_are_refused_by_name(program):
    with pytest.raises(EdgemtError, match="65 tokens, and the model has 64 positions"):
        program.encode(np.full((1, 65), 5, np.int32), ints([65]))
    source = program.encode(*padded(SOURCES[:1]))
    with pytest.raises(EdgemtError, match="64 positions"):
        program.open(source, ints([0]), 65)
    with pytest.raises(EdgemtError, match="64 positions"):
        program.greedy(source, ints([[PAD]]), 65, ints([EOS]))
    session = program.open(source, ints([0]), 64)
    take(session, [[5] * 64])
    with pytest.raises(EdgemtError, match="64 positions"):
        take(session, [[5]])


def test_the_last_position_can_be_used(tmp_path):
    toy = Toy(eos_bonus=-99.0)
    program = open_program(tmp_path, toy.write(tmp_path))
    (line,) = program.greedy(program.encode(*padded(SOURCES[:1])), ints([[PAD]]), 64, ints([EOS]))
    assert line.tolist() == naive_greedy(toy, SOURCES[0], [PAD], 64)


def test_empty_rows_and_rows_that_are_not_there(program):
    with pytest.raises(EdgemtError, match="lengths"):
        program.encode(ints([[5, 6]]), ints([0]))
    with pytest.raises(EdgemtError, match="rows"):
        start(program, rows=[3])
    with pytest.raises(EdgemtError, match="rows"):
        start(program).reindex(ints([0, 3]))


def damaged(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": b"not a graph" * 50}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "noise"])
def test_a_damaged_graph_is_named(toy, tmp_path, how):
    manifest = toy.write(tmp_path)
    damaged(tmp_path / "step.onnx", how)
    with pytest.raises(EdgemtError, match=r"step\.onnx cannot be loaded"):
        open_program(tmp_path, manifest)


def test_a_missing_graph_or_weight_file_is_named(toy, tmp_path):
    manifest = toy.write(tmp_path, external=True)
    (tmp_path / "step.bin").unlink()
    with pytest.raises(EdgemtError, match=r"step\.onnx cannot be loaded"):
        open_program(tmp_path, manifest)
    (tmp_path / "encoder.onnx").unlink()
    with pytest.raises(EdgemtError, match=r"encoder\.onnx cannot be loaded"):
        open_program(tmp_path, manifest)


def test_a_manifest_that_does_not_fit_its_graphs(toy, tmp_path):
    manifest = toy.write(tmp_path)
    for change, what in (
        ({"input": "past_key.9"}, "no input 'past_key.9'"),
        ({"output": "present_key.9"}, "output 'present_key.9'"),
        ({"update": "write_at"}, "written at an offset"),
        ({"length_axis": 1}, "does not grow"),
    ):
        states = [dataclasses.replace(manifest.states[0], **change), *manifest.states[1:]]
        with pytest.raises(EdgemtError, match=what):
            open_program(tmp_path, dataclasses.replace(manifest, states=states))


def test_an_unknown_target_is_named(toy, tmp_path):
    manifest = dataclasses.replace(toy.write(tmp_path), target="abacus")
    with pytest.raises(EdgemtError, match=r"'abacus'.*onnxruntime"):
        open_program(tmp_path, manifest)


# Taps.


@pytest.mark.parametrize("external", [False, True])
def test_taps_hear_every_run(toy, tmp_path, external):
    manifest = toy.write(tmp_path, external=external)
    heard: list[tuple[str, dict[str, np.ndarray]]] = []
    taps = {"encoder": ["encoder.out"], "step": ["decoder.1.out", "present_key.0", "past_key.0", "logits"]}
    program = open_program(
        tmp_path, manifest, taps=taps, on_tap=lambda role, t: heard.append((role, dict(t)))
    )
    source = program.encode(*padded(SOURCES[:1]))
    (line,) = program.greedy(source, ints([[PAD]]), 6, ints([EOS]))
    assert line.tolist() == naive_greedy(toy, SOURCES[0], [PAD], 6)
    roles = [role for role, _ in heard]
    assert roles == ["encoder"] + ["step"] * min(6, len(line) + 1)
    assert heard[0][1]["encoder.out"].shape == (1, len(SOURCES[0]), toy.d)
    logits = toy.logits(SOURCES[0], [PAD, *line.tolist()])
    for at, (_, tensors) in enumerate(heard[1:]):
        assert list(tensors) == taps["step"]
        assert tensors["past_key.0"].shape == (at, 1, 2, 8) and tensors["present_key.0"].shape == (1, 1, 2, 8)
        np.testing.assert_allclose(tensors["logits"][0, 0], logits[at], atol=TOLERANCE)
        if at:
            np.testing.assert_array_equal(tensors["past_key.0"][-1], heard[at][1]["present_key.0"][0])
        expected = tensors["decoder.1.out"] @ toy.weights["head"] + toy.weights["head_bias"]
        np.testing.assert_allclose(expected, tensors["logits"], atol=TOLERANCE)


def test_a_tap_that_is_not_in_the_graph(toy, tmp_path):
    with pytest.raises(EdgemtError, match="no tensor 'nowhere'"):
        open_program(tmp_path, toy.write(tmp_path), taps={"step": ["nowhere"]}, on_tap=lambda *_: None)
