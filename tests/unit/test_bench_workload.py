"""The shipped workload and what a user may give instead of it."""

from collections import Counter
from gzip import open as gzip_open
from pathlib import Path

import pytest

from edgemt.bench.workload import BUCKETS, bucket_of, read_workload
from edgemt.errors import UsageError
from edgemt.text import pieces

CORPUS = Path(__file__).parents[2] / "examples/medical-zh-en/data/clinical.tsv.gz"


def test_the_shipped_workload_has_every_length_in_both_directions():
    sentences = read_workload(None).sentences
    found = Counter((s.bucket, s.source_lang, s.target_lang) for s in sentences)
    assert set(found) == {(b, *pair) for b in BUCKETS for pair in (("zh", "en"), ("en", "zh"))}
    assert min(found.values()) >= 10


def test_each_shipped_text_is_one_sentence_to_the_translator():
    for sentence in read_workload(None).sentences:
        assert sentence.source_lang
        parts = [p for p in pieces(sentence.source, sentence.source_lang, lambda _: True) if p.translate]
        assert [part.text for part in parts] == [sentence.source]


def test_the_shipped_workload_was_never_trained_on():
    with gzip_open(CORPUS, "rt", encoding="utf-8") as file:
        trained = {side for line in file if line.endswith("\ttrain\n") for side in line.split("\t")[3:5]}
    for sentence in read_workload(None).sentences:
        assert sentence.source not in trained


@pytest.mark.parametrize(
    ("tokens", "bucket"), [(0, 5), (1, 5), (7, 5), (8, 10), (20, 25), (60, 60), (100, 120), (1000, 960)]
)
def test_a_length_belongs_to_the_nearest_bucket_by_ratio(tokens, bucket):
    assert bucket_of(tokens) == bucket


def test_lines(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("\ufeff我头疼。\r\n\n  Take two tablets.  \n", encoding="utf-8")
    sentences = read_workload(path).sentences
    assert [(s.number, s.source) for s in sentences] == [(1, "我头疼。"), (3, "Take two tablets.")]
    assert sentences[0].bucket is None


def test_columns_in_any_order(tmp_path):
    path = tmp_path / "notes.tsv"
    path.write_text("target_lang\tsource\tnote\tbucket\nen\t我头疼。\tx\t5\nzh\tHello.\n", encoding="utf-8")
    first, second = read_workload(path).sentences
    assert (first.source, first.source_lang, first.target_lang, first.bucket) == ("我头疼。", None, "en", 5)
    assert (second.source, second.target_lang, second.bucket) == ("Hello.", "zh", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b"source\tbucket\n", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"zh\ten\nx\ty\n", "no column named source"),
        (b"source\tbucket\n\t5\n", "line 2 .* empty source"),
        (b"source\tbucket\nx\tfive\n", "line 2 .* bucket 'five'"),
    ],
)
def test_a_workload_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "workload.tsv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_workload(path)


def test_a_workload_that_is_not_there(tmp_path):
    for path in (tmp_path / "nowhere.tsv", tmp_path):
        with pytest.raises(UsageError, match="cannot read the workload"):
            read_workload(path)
