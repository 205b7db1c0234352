from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import BadReference, BadValue
from adapters.ref import ALIAS, MAX_VERSION, SEGMENT, Ref, check_alias, check_name, nearest, parse_ref

segments = st.from_regex(SEGMENT, fullmatch=True)
names = st.one_of(segments, st.builds("{}/{}".format, segments, segments))
refs = st.one_of(
    st.builds(Ref, names),
    st.builds(lambda name, version: Ref(name, version=version), names, st.integers(1, MAX_VERSION)),
    st.builds(lambda name, alias: Ref(name, alias=alias), names, st.from_regex(ALIAS, fullmatch=True)),
    st.builds(
        lambda name, hex_: Ref(name, digest=f"sha256:{hex_}"),
        names,
        st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    ),
)


@given(refs)
def test_what_is_written_is_read_again(ref: Ref) -> None:
    assert parse_ref(str(ref)) == ref


@given(st.text(max_size=150))
def test_any_text_is_a_reference_or_a_bad_one(text: str) -> None:
    try:
        ref = parse_ref(text)
    except BadReference:
        return
    assert str(ref) == text
    assert re.fullmatch(r"[\x21-\x7e]+", text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "empty"),
        (" a", "spaces"),
        ("a@", "version number or a digest"),
        ("a@0", "versions run from 1"),
        ("a@007", "leading zeros"),
        ("a@1000000", "versions run from 1"),
        ("a@v3", "version number"),
        ("a@production", "name:alias"),
        ("a@sha256:ABC", "64 lower-case hex"),
        ("a:3", "never a number"),
        ("a:", "an alias starts with"),
        ("a/b/c", "one tenant"),
        ("../secret", "a name starts with"),
        ("a\n", "spaces"),
        ("-a", "a name starts with"),
        ("a~b", "a name starts with"),
    ],
)
def test_the_message_says_what_is_wrong(text: str, hint: str) -> None:
    with pytest.raises(BadReference, match=hint):
        parse_ref(text)


def test_not_a_text() -> None:
    with pytest.raises(BadReference, match="not text"):
        parse_ref(None)  # type: ignore[arg-type]


def test_a_very_long_text_is_not_repeated_whole() -> None:
    with pytest.raises(BadReference) as caught:
        parse_ref("x" * 10_000)
    assert len(caught.value.message) < 500


def test_only_one_selector() -> None:
    with pytest.raises(BadReference, match="only one"):
        Ref("a", version=1, alias="production")


@pytest.mark.parametrize("name", ["a", "tenant/name", "A.b_c-9", "x" * 96])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 97, ".hidden", "a b", "a@1", "a:b", "a//b", "é"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadValue) as caught:
        check_name(name)
    assert (caught.value.code, caught.value.param) == ("bad_name", "name")


@pytest.mark.parametrize("alias", ["", "3", "3rd", "a b", "a/b", "x" * 65])
def test_bad_aliases(alias: str) -> None:
    with pytest.raises(BadValue) as caught:
        check_alias(alias)
    assert (caught.value.code, caught.value.param) == ("bad_alias", "alias")


def test_nearest_ignores_case_and_bounds_its_work() -> None:
    assert nearest("Suport", ["sales", "support", "Legal"]) == ["support"]
    assert nearest("x" * 10_000, ["support"]) == []
    assert nearest("zzz", ["support"]) == []
    assert nearest("name-4999", (f"name-{number}" for number in range(100_000)))
