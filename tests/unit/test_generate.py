"""The loop of one answer: greedy, sampled, streamed and cancelled, on tiny models with real graphs."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from causal_models import EOS, VOCABULARY, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_causal_graph import program_of
from transformers.generation import logits_process as hf

from edgemt.errors import UsageError
from edgemt.generate import Sampling, candidates, generate
from edgemt.manifest import Model
from edgemt.runtimes.protocol import Program

torch.set_num_threads(1)
START = 7
MODEL = Model(
    vocab_size=VOCABULARY,
    eos_id=EOS,
    pad_id=EOS,
    unk_id=EOS,
    start_id=START,
    max_positions=512,
    source_prefix={},
)


@pytest.fixture(scope="module", params=["hunyuan_v1_dense", "qwen2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Program]:
    model = model_of(request.param)
    return model, program_of(model, tmp_path_factory.mktemp(request.param))


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(3, VOCABULARY, draw.integers(1, 30)).tolist() for _ in range(count)]


def session_of(program: Program, prompt: list[int], limit: int) -> Any:
    source = program.encode(np.array([prompt], np.int32), np.array([len(prompt)], np.int32))
    return program.open(source, np.zeros(1, np.int32), limit)


def answer(program: Program, prompt: list[int], limit: int = 24, **how: Any) -> list[int]:
    session = session_of(program, prompt, limit)
    return list(generate(session, [*prompt, START], MODEL, limit, **how))


def test_greedy_is_transformers(pair: tuple[Any, Program]) -> None:
    model, program = pair
    ended = 0
    for prompt in prompts(20):
        with torch.inference_mode():
            ids = torch.tensor([[*prompt, START]])
            expected = model.generate(ids, max_new_tokens=24, do_sample=False)[0, len(prompt) + 1 :].tolist()
        ended += EOS in expected
        assert answer(program, prompt) == (expected[: expected.index(EOS)] if EOS in expected else expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 40),
    top_p=st.floats(0.05, 1),
    penalty=st.floats(0.5, 2),
)
def test_the_tokens_drawn_from_are_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, penalty: float
) -> None:
    draw = np.random.default_rng(seed)
    logits = (draw.standard_normal(VOCABULARY) * 3).astype(np.float32)
    history = draw.integers(0, VOCABULARY, 12).tolist()
    scores, ids = torch.from_numpy(logits).double()[None], torch.tensor([history])
    processors = [hf.RepetitionPenaltyLogitsProcessor(penalty), hf.TemperatureLogitsWarper(temperature)]
    processors += [hf.TopKLogitsWarper(top_k)] if top_k else []
    processors += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    for processor in processors:
        scores = processor(ids, scores)
    expected = torch.softmax(scores, -1)[0].numpy()
    found = np.zeros(VOCABULARY)
    tokens, shares = candidates(logits, history, MODEL, Sampling(temperature, top_k, top_p, penalty))
    found[tokens] = shares
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_what_is_drawn_follows_its_probabilities_and_its_seed(pair: tuple[Any, Program]) -> None:
    model, program = pair
    prompt = prompts(1)[0]
    hot = Sampling(temperature=1.5, top_k=4, top_p=1.0, repetition_penalty=1.0)
    first = [answer(program, prompt, 1, sampling=Sampling(1.5, 4, 1.0, 1.0, seed)) for seed in range(300)]
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, START]])).logits[0, -1].numpy()
    tokens, shares = candidates(logits, [*prompt, START], MODEL, hot)
    for token, share in zip(tokens.tolist(), shares.tolist(), strict=True):
        found = sum(line == ([] if token == EOS else [token]) for line in first) / len(first)
        assert abs(found - share) < 0.13  # over four standard deviations
    seeded = Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=5)
    assert answer(program, prompt, sampling=seeded) == answer(program, prompt, sampling=seeded)
    others = {tuple(answer(program, prompt, sampling=Sampling(2.0, 0, 1.0))) for _ in range(4)}
    assert len(others) > 1
    assert answer(program, prompt, sampling=Sampling(top_k=1, repetition_penalty=1.0)) == answer(
        program, prompt
    )


def test_what_is_suppressed_is_not_drawn() -> None:
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[4, 5]] = 9
    model = Model(**{**vars(MODEL), "suppress": [4]})
    tokens, shares = candidates(logits, [1], model, Sampling(1.0, 2, 1.0, 1.0))
    assert 4 not in tokens[shares > 0] and tokens[0] == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("repetition_penalty", -1.0)],
)
def test_a_wrong_number_is_one_sentence(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"sampling with {name} {value}; give a number"):
        Sampling(**{name: value})


def test_an_iterator_that_is_closed_closes_its_session(pair: tuple[Any, Program]) -> None:
    _, program = pair
    prompt = prompts(1)[0]
    session = session_of(program, prompt, 24)
    tokens = generate(session, [*prompt, START], MODEL, 24)
    some = [next(tokens), next(tokens)]
    assert session._caches
    tokens.close()
    assert not session._caches
    assert answer(program, prompt)[:2] == some


def test_an_interrupted_step_leaves_the_program_usable(
    pair: tuple[Any, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, program = pair
    prompt = prompts(1)[0]
    expected = answer(program, prompt)
    session = session_of(program, prompt, 24)
    run, steps = session.run, iter([False, True])

    def interrupted(*arguments: Any) -> None:
        run(*arguments)  # the signal's handler runs when the graph's run has returned
        if next(steps):
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "run", interrupted)
    tokens = generate(session, [*prompt, START], MODEL, 24)
    assert next(tokens) == expected[0]
    with pytest.raises(KeyboardInterrupt):
        next(tokens)
    assert not session._caches
    assert answer(program, prompt) == expected


def test_threads_share_a_program(pair: tuple[Any, Program]) -> None:
    _, program = pair
    lines = prompts(6)
    expected = [answer(program, line) for line in lines]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        found[i] = answer(program, lines[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(lines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(lines))] == expected
