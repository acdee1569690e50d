"""Glossaries: read, found in the sentence, spelt in tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemt.errors import UsageError
from edgemt.glossary import (
    INNER_STOP,
    Glossary,
    Wanted,
    cased,
    read_glossary,
    spellings,
    switched,
    uncapitalised,
    within,
)
from edgemt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return Tokenizer(vocabulary)


def found(terms: dict[str, str], sentence: str) -> list[str]:
    return [source for _, source in Glossary(terms).find(sentence)]


def test_the_longest_term_wins_and_none_overlap() -> None:
    terms = {"手术": "surgery", "手术室": "operating room", "室内": "indoor", "无菌": "sterile"}
    assert found(terms, "手术室内须无菌，手术后消毒。") == ["手术室", "无菌", "手术"]


def test_latin_terms_match_whole_words_in_any_case() -> None:
    terms = {"CT": "CT检查", "sterile": "无菌", "β-blocker": "β受体阻滞剂"}
    assert found(terms, "做CT前。ACT, CTs; Sterile? sterilely ct β-Blocker") == [
        "CT",
        "sterile",
        "CT",
        "β-blocker",
    ]


@given(st.text(), st.dictionaries(st.text(min_size=1).filter(str.strip), st.just("x"), max_size=5))
def test_what_is_found_is_there(sentence: str, terms: dict[str, str]) -> None:
    end = 0
    for position, source in Glossary(terms).find(sentence):
        assert position >= end
        end = position + len(source)
        assert sentence[position:end].lower() == source.lower() or not source.isascii()


def test_a_term_inside_another_is_wanted_once(tokenizer: Tokenizer) -> None:
    glossary = Glossary(
        {"无菌": "sterile", "无菌环境": "sterile field", "手术": "surgery", "外科手术": "surgery"}
    )
    wanted = glossary.wanted("外科手术和手术都要无菌环境和无菌", "en", tokenizer)
    assert wanted and list(wanted.terms) == ["surgery", "sterile field"]
    assert glossary.wanted("没有这些词", "en", tokenizer) is None


def test_a_term_s_place_in_tokens(tokenizer: Tokenizer) -> None:
    sentence = "５ｍｇ½后，手术和外科手术前禁食。"
    wanted = Glossary({"手术": "surgery", "禁食": "fasting"}).wanted(sentence, "en", tokenizer)
    assert wanted
    assert wanted.source == "５ｍｇ½后，surgery和外科surgery前fasting。"
    ids = tokenizer.encode(wanted.source)
    assert len(tokenizer.offsets(wanted.source)) == len(ids)
    for span, term in zip(wanted.spans, ("surgerysurgery", "fasting"), strict=True):
        assert term in tokenizer.decode(ids[i] for i in span).replace(" ", "")
    first = min(wanted.spans[0])
    assert tokenizer.decode(ids[:first]).endswith(",") or tokenizer.decode(ids[:first]).endswith("，")


@given(
    st.text("手术无菌ab ，。"), st.dictionaries(st.text("手术无菌ab", min_size=1), st.text("xyz", min_size=1))
)
def test_the_model_reads_target_terms_where_source_terms_were(sentence: str, terms: dict[str, str]) -> None:
    glossary = Glossary(terms)
    found = glossary.find(sentence)
    source, places = switched(sentence, glossary, found)
    assert all(source[a:b] == term for term, spans in places.items() for a, b in spans)
    back = source
    spans = sorted(span for spans in places.values() for span in spans)
    for (a, b), (_, term) in reversed(list(zip(spans, found, strict=True))):
        back = back[:a] + term + back[b:]
    assert back == sentence


def test_a_term_has_a_capital_only_where_a_sentence_begins() -> None:
    text = 'Sterile gloves, Sterile gown. "Sterile" field; NonSterile.'
    assert uncapitalised("sterile", text) == 'Sterile gloves, sterile gown. "Sterile" field; NonSterile.'
    assert uncapitalised("CT", "A CT scan") == "A CT scan"


@pytest.mark.parametrize(
    ("sentence", "ends"),
    [
        ("体温38.5，手术。", 0),
        ("疼！真疼。手术？", 2),
        ("Take 5.5 mg.", 0),
        ('"Stop!" he said.', 1),
        ("好……", 0),
    ],
)
def test_sentence_ends_inside_a_sentence(sentence: str, ends: int) -> None:
    assert len(INNER_STOP.findall(sentence)) == ends


def test_pieces_that_end_a_sentence(tokenizer: Tokenizer) -> None:
    closing = {tokenizer.pieces[i] for i in tokenizer.closing}
    assert {".", "。", "？"} <= closing
    assert not {piece for piece in closing if any(map(str.isalnum, piece))}
    assert not closing & {"，", ",", "、", ":", "▁"}


def test_spellings_decode_to_the_term(tokenizer: Tokenizer) -> None:
    for term, language in (("surgery", "en"), ("sterile field", "en"), ("手术", "zh"), ("CT检查", "zh")):
        sequences = spellings(term, True, language, tokenizer)
        assert {tokenizer.decode(ids) for ids in sequences} == set(cased(term))
        assert len(sequences) > len(cased(term))  # with and without a space before it
    starts = [tokenizer.pieces[ids[0]] for ids in spellings("surgery", False, "en", tokenizer)]
    assert all(piece.startswith("▁") for piece in starts)


def test_the_term_is_written_as_the_user_gave_it(tokenizer: Tokenizer) -> None:
    wanted = Wanted({"５ ｍｇ 片": False, "surgery": False}, "zh", tokenizer)
    assert wanted.check("每日5 mg 片。Surgery") == ("每日５ ｍｇ 片。Surgery", ())
    assert wanted.check("每日。surgerys")[1] == ("５ ｍｇ 片", "surgery")


def test_words_not_parts_of_words() -> None:
    assert within("surgery", "Surgery is near.") and within("surgery", "the (surgery)")
    assert not within("surgery", "neurosurgery") and not within("sterile", "sterilely")
    assert within("手术", "做手术时")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("terms.tsv", "zh\ten\n手术\tsurgery\n\n# note\n无菌\tsterile\textra\n"),
        ("terms.csv", '\ufeffsource,target\r\n手术,surgery\r\n"无菌","sterile"\r\n'),
        ("terms.txt", "手术,surgery\n无菌,sterile\n"),
        ("terms.json", '{"手术": "surgery", "无菌": "sterile"}'),
    ],
)
def test_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_glossary([str(tmp_path / name)]) == {"手术": "surgery", "无菌": "sterile"}


def test_pairs_and_files_add_up(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("手术\toperation\n", encoding="utf-8")
    terms = read_glossary([str(tmp_path / "a.tsv"), "手术=surgery", "a=b=c"])
    assert terms == {"手术": "surgery", "a": "b=c"}
    assert read_glossary([]) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"\xe6\x89\x8b\tx\nonly one column\n", "line 2 of the glossary .* lacks two columns"),
        ("a.tsv", b"a\tb\n\tsurgery\n", "line 2 "),
        ("a.csv", b"a,b\nc,\n", "line 2 "),
        ("a.json", b"[1]", "must be an object"),
        ("a.json", b'{"a": 1}', "must be an object"),
        ("a.json", b'{"a": ', "is not JSON"),
        ("a.json", b'{"a": " "}', "lacks a side"),
        ("a.tsv", b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_glossary([str(tmp_path / name)])


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="there is no glossary at nowhere"):
        read_glossary(["nowhere.tsv"])
    with pytest.raises(UsageError, match="lacks a side"):
        read_glossary(["手术="])


def test_a_term_that_the_model_cannot_write(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write the glossary term"):
        spellings("<unk>", False, "en", NoBytes(tokenizer))


class NoBytes(Tokenizer):
    """A tokenizer without byte pieces: what it does not know is unknown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.__dict__.update(tokenizer.__dict__)
        self.ids = {piece: i for piece, i in tokenizer.ids.items() if not piece.startswith("<0x")}
