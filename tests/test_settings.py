"""What people write: text files and names of words."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.settings import match_name, normal_name, read_text, read_toml


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("  Left ", "left"),
        ("LICHT\taus", "licht aus"),
        ("cafe\u0301", "caf\u00e9"),  # as macOS writes it
        ("l\u2019eau", "l'eau"),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947"),  # Hindi keeps its marks
        ("\u0130stanbul", "i\u0307stanbul"),
    ],
)
def test_a_name_has_one_form_whoever_wrote_it(written: str, name: str) -> None:
    assert normal_name(written) == name


def test_a_name_in_normal_form_stays_as_it_is() -> None:
    for character in map(chr, range(sys.maxunicode + 1)):
        name = normal_name(f"a{character}b")
        assert normal_name(name) == name


@given(st.text())
def test_the_form_does_not_depend_on_how_marks_and_case_are_written(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert normal_name(text) == normal_name(decomposed) == normal_name(f" {normal_name(text)}\n")


def test_a_known_name_is_found_in_another_case() -> None:
    assert match_name("yes ", ["No", "Yes"]) == "Yes"
    assert match_name("Maybe", ["No", "Yes"]) == "maybe"


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path) -> None:
    path = tmp_path / "words.toml"
    path.write_bytes("\ufeff[left]\nrun = ['true']\n".encode())
    assert read_text(path).startswith("[left]")
    assert read_toml(path) == {"left": {"run": ["true"]}}
