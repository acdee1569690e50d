"""The decoder-only graph computes what transformers computes, however a text is cut into steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causal_bundles import write_graphs
from causal_models import CASES, EOS, VOCABULARY, checkpoint_of, model_of
from transformers import PreTrainedModel

from edgemt.errors import EdgemtError
from edgemt.export.graphs import causal
from edgemt.export.targets import target
from edgemt.runtimes import open_program
from edgemt.runtimes.protocol import Program, Want

torch.set_num_threads(1)


def program_of(model: PreTrainedModel, directory: Path) -> Program:
    canonical = causal.build(checkpoint_of(model), 7, EOS, [])
    lowered = target("onnxruntime").lower(canonical, "fp32")
    manifest = write_graphs(directory, canonical, lowered)
    return open_program(directory, manifest)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Program]:
    model = model_of(request.param)
    return model, program_of(model, tmp_path_factory.mktemp(request.param))


def logits_of(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(ids).long()).logits.numpy()


def close(found: np.ndarray | None, expected: np.ndarray) -> None:
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, float(expected.std())))


@pytest.mark.parametrize("widths", [[1] * 9, [9], [4, 1, 3, 1]], ids=str)
def test_any_cut_of_a_text_gives_the_same_logits(pair: tuple[Any, Program], widths: list[int]) -> None:
    model, program = pair
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (3, 9)).astype(np.int32)
    session = program.open(None, np.arange(3, dtype=np.int32), 9)
    ends = np.cumsum(widths)
    steps = [
        session.step(ids[:, end - width : end], np.full(3, width, np.int32), Want(logits=True))
        for end, width in zip(ends, widths, strict=True)
    ]
    close(np.concatenate([step.logits for step in steps], axis=1), logits_of(model, ids))


def test_prompts_of_any_length_and_thirty_two_steps(pair: tuple[Any, Program]) -> None:
    model, program = pair
    draw = np.random.default_rng(1)
    prompts = [draw.integers(0, VOCABULARY, length).astype(np.int32) for length in (17, 1, 40)]
    new = draw.integers(0, VOCABULARY, (3, 32)).astype(np.int32)
    ids = np.zeros((3, 40), np.int32)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    source = program.encode(ids, np.array([17, 1, 40], np.int32))
    session = program.open(source, np.arange(3, dtype=np.int32), 32)
    ones = np.ones(3, np.int32)
    steps = [session.step(new[:, i : i + 1], ones, Want(logits=True)).logits for i in range(32)]
    found = np.concatenate(steps, axis=1)
    for row, prompt in enumerate(prompts):
        whole = np.concatenate([prompt, new[row]])[None]
        close(found[row], logits_of(model, whole)[0, len(prompt) :])


def test_beams_of_one_prompt_change_places_and_go_back(pair: tuple[Any, Program]) -> None:
    model, program = pair
    draw = np.random.default_rng(2)
    prompt = draw.integers(0, VOCABULARY, (1, 11)).astype(np.int32)
    source = program.encode(prompt, np.array([11], np.int32))
    session = program.open(source, np.zeros(3, np.int32), 40)
    targets = draw.integers(0, VOCABULARY, (3, 4)).astype(np.int32)
    first = session.step(targets, np.array([4, 2, 3], np.int32), Want(last=True, logits=True))
    assert first.logits is not None and first.logits.shape == (3, 1, VOCABULARY)
    lines = [list(targets[0]), list(targets[1][:2]), list(targets[2][:3])]
    for row, line in enumerate(lines):
        close(first.logits[row, 0], logits_of(model, np.array([[*prompt[0], *line]]))[0, -1])
    session.reindex(np.array([2, 0], np.int32))
    lines = [lines[2], lines[0]]
    session.rewind(np.array([11 + 1, 11 + 4], np.int32))
    lines[0] = lines[0][:1]
    for token in (5, 6, 7):
        step = session.step(np.full((2, 1), token, np.int32), np.ones(2, np.int32), Want(logits=True))
        lines = [[*line, token] for line in lines]
        for row, line in enumerate(lines):
            close(step.logits[row, 0], logits_of(model, np.array([[*prompt[0], *line]]))[0, -1])


def test_greedy_search_is_transformers(pair: tuple[Any, Program]) -> None:
    model, program = pair
    draw = np.random.default_rng(3)
    ids = draw.integers(3, VOCABULARY, (4, 12)).astype(np.int32)
    start = np.full((4, 1), 7, np.int32)
    source = program.encode(ids, np.full(4, 12, np.int32))
    lines = program.greedy(source, start, 20, np.array([EOS], np.int32))
    with torch.inference_mode():
        whole = torch.from_numpy(np.hstack([ids, start])).long()
        expected = model.generate(whole, max_new_tokens=20, do_sample=False)[:, 13:].tolist()
    for line, tokens in zip(lines, expected, strict=True):
        assert line.tolist() == (tokens[: tokens.index(EOS)] if EOS in tokens else tokens)


def test_what_it_cannot_compute_is_refused() -> None:
    model = model_of("qwen2")
    for changes, what in (
        ({"hidden_act": "gelu"}, "SwiGLU"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
    ):
        with pytest.raises(EdgemtError, match=what):
            causal.build(checkpoint_of(model, **changes), 7, EOS, [])
