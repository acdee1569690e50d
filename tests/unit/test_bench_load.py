"""Open loop, soak, drift: what the clock makes of texts that come at a rate, or for a long time."""

import json
import time
from dataclasses import dataclass

import numpy as np
import pytest
from support import one_sentence

from edgemt.bench.arrivals import Arrivals, queueing
from edgemt.bench.drift import drift
from edgemt.bench.measure import measure
from edgemt.bench.sampler import Moment
from edgemt.bench.workload import Sentence

NOTES = "我头疼。\n请每天吃两片药，饭后服用。\nTake two tablets a day.\nShe is allergic to penicillin.\n"
SERVICE_MS, RATE = 20.0, 200.0


@dataclass
class Sleeper:
    """A contender that takes its time, and remembers what it was given."""

    label: str = "sleeper"

    def __post_init__(self):
        self.seen = []

    def translate(self, sentence):
        self.seen.append(sentence.number)
        time.sleep(SERVICE_MS / 1000)


def test_arrivals_come_at_their_rate_and_the_same_every_time():
    fixed = Arrivals(4, "fixed").schedule(5)
    assert fixed.tolist() == [0, 0.25, 0.5, 0.75, 1]
    random = Arrivals(4).schedule(20_000)
    gaps = np.diff(random)
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential
    assert (random == Arrivals(4).schedule(20_000)).all()


def test_a_slow_translator_makes_texts_wait_and_their_waiting_counts():
    """No coordinated omission: counted from the start of each translation, all latencies would be alike."""
    sentences = [Sentence(n, "x") for n in range(5)]
    samples = measure([Sleeper()], sentences, rounds=3, warmup=0, arrivals=Arrivals(RATE, "fixed"))
    due = np.sort(samples.at_s.ravel())
    ms = samples.ms.ravel()[np.argsort(samples.at_s, axis=None)]
    assert np.diff(due) == pytest.approx(1 / RATE, abs=1e-6)
    # Text n is done when n + 1 of them have had their service: sooner is impossible.
    earliest = (np.arange(15) + 1) * SERVICE_MS - np.arange(15) * 1000 / RATE
    assert (ms >= earliest - 1e-3).all()
    assert (samples.ms - samples.wait_ms >= SERVICE_MS).all()


def test_a_stream_has_every_text_in_every_round_and_the_same_for_all():
    sentences = [Sentence(n, "x") for n in range(4)]
    first, second = Sleeper("a"), Sleeper("b")
    measure([first, second], sentences, rounds=2, warmup=0, arrivals=Arrivals(1000))
    kept = first.seen[1:]  # the first one is not kept: it warms up
    assert sorted(kept[:4]) == sorted(kept[4:]) == [0, 1, 2, 3]
    assert first.seen == second.seen


def test_a_closed_loop_waits_for_nobody():
    sentences = [Sentence(n, "x") for n in range(2)]
    samples = measure([Sleeper()], sentences, rounds=2, warmup=0)
    assert (samples.wait_ms == 0).all()
    assert (samples.ms >= SERVICE_MS).all()


def test_queueing_by_hand():
    # Due at 0, 1, 2 and 10 s; each takes 2 s: they end at 2, 4, 6 and 12.
    at_s = np.array([[0.0], [1.0], [2.0], [10.0]])
    wait_ms = np.array([[0.0], [1000.0], [2000.0], [0.0]])
    found = queueing(Arrivals(0.4, "fixed"), wait_ms + 2000, wait_ms, at_s)
    assert found["capacity_per_s"] == pytest.approx(0.5)
    assert found["utilisation"] == pytest.approx(8 / 12.5)  # until one gap after the last one came
    assert (found["queue_max"], found["queue_mean"]) == (1, 0.5)  # at 1 s and at 2 s one was not done
    assert (found["wait_max_ms"], found["overloaded"]) == (2000, False)
    assert queueing(Arrivals(0.5, "fixed"), wait_ms + 2000, wait_ms, at_s)["overloaded"]


def rounds(factors, seconds=10.0, noise=0.01):
    """[texts, rounds] ms and s: rounds of `seconds` in which everything takes `factors` as long."""
    rng = np.random.default_rng(3)
    ms = 20 * rng.lognormal(0, 0.3, (30, 1)) * np.array(factors) * rng.lognormal(0, noise, (30, len(factors)))
    at_s = np.arange(len(factors)) * seconds + np.linspace(0, seconds, 30, endpoint=False)[:, None]
    return ms, at_s


def test_a_soak_that_gets_slower_is_named_with_the_heat():
    heat = [Moment(t, 50 + t / 10, 2400 - t, None, None, None) for t in range(300)]
    found = drift(*rounds([1] * 20 + [1.2] * 10), heat)
    assert found["verdict"] == "slower"
    assert found["window_s"] == 60
    assert found["interval"][0] <= found["ratio"] <= found["interval"][1]
    assert found["ratio"] == pytest.approx(1.2, rel=0.02)
    assert found["first"]["temperature_c"] == pytest.approx(53, abs=0.2)
    assert found["last"]["frequency_mhz"] == pytest.approx(2131, abs=2)


@pytest.mark.parametrize(
    ("factors", "seconds", "verdict"),
    [
        ([1] * 30, 10, "steady"),
        ([1] * 20 + [1.02] * 10, 10, "steady"),  # shown, but too little to be called a change
        ([1.3] * 10 + [1] * 20, 1, "faster"),  # half a minute: compared by thirds
    ],
)
def test_a_soak_that_does_not(factors, seconds, verdict):
    assert drift(*rounds(factors, seconds), [])["verdict"] == verdict


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(NOTES, encoding="utf-8")
    return path


def test_a_rate_beyond_the_bundle_is_said(edgemt, toy_bundle, notes, tmp_path):
    out = tmp_path / "run.json"
    options = ("--rate", "100000", "--arrivals", "fixed", "--rounds", "3", "--budget-ms", "60000")
    result = edgemt("bench", "-b", toy_bundle, "--workload", notes, *options, "--json", out)
    assert result.returncode == 0, result.stderr.decode()
    data = json.loads(out.read_text())
    assert data["load"] == {"kind": "open", "rate_per_s": 1e5, "arrivals": "fixed", "soak_minutes": None}
    (row,) = data["bundles"]
    assert row["open"]["overloaded"]
    assert row["open"]["queue_max"] == 11  # when the last one came, none was done
    assert "Overload: 100000 texts a second came" in result.stdout.decode()
    assert row["energy"] is None and row["drift"] is None
    waits = np.array([text["wait_ms"] for text in row["texts"]])
    times = np.array([text["ms"] for text in row["texts"]])
    assert (waits < times).all() and waits.max() > 0
    tokens = 3 * sum(text["target_tokens"] for text in row["texts"])
    assert row["overall"]["ms_per_target_token"] == pytest.approx((times - waits).sum() / tokens, rel=1e-3)


def test_a_soak(edgemt, toy_bundle, notes, tmp_path):
    out, page = tmp_path / "run.json", tmp_path / "run.html"
    options = ("--soak", "0.03", "--budget-ms", "60000", "--json", out, "--report", page)
    result = edgemt("bench", "-b", toy_bundle, "--workload", notes, *options)
    assert result.returncode == 0, result.stderr.decode()
    data = json.loads(out.read_text())
    assert (data["load"]["kind"], data["load"]["soak_minutes"]) == ("soak", 0.03)
    (row,) = data["bundles"]
    assert data["settings"]["rounds"] == len(row["texts"][0]["ms"]) > 2
    assert max(text["at_s"][-1] for text in row["texts"]) > 0.5
    assert row["drift"]["verdict"] in result.stdout.decode()
    assert data["conditions"]["timeline"]  # looked at during the run, not only around it
    assert "soak" in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", "fast"), "--rate is 'fast'"),
        (("--rate", "0"), "above 0"),
        (("--rate", ""), "--rate is ''"),
        (("--soak", "-1"), "above 0"),
        (("--soak", "1", "--rate", "2"), "leave out --rate"),
        (("--soak", "1", "--rounds", "2"), "leave out --rate and --rounds"),
        (("--arrivals", "fixed"), "give --rate too"),
    ],
)
def test_loads_that_cannot_be(edgemt, toy_bundle, tmp_path, options, message):
    result = edgemt("bench", "-b", toy_bundle, *options, "--json", "run.json", cwd=tmp_path)
    assert message in one_sentence(result)
    assert result.returncode == 2
    assert list(tmp_path.iterdir()) == []
