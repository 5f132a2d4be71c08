"""Text from files is shown in one line, without what a terminal would act on."""

from __future__ import annotations

import io
import pickle

import pytest

from data.errors import DataError
from data.plain_text import printable, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain a.jpg", "plain a.jpg"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nerror: fake\r\t", "a\\nerror: fake\\r\\t"),
        ("\x9b31m", "\\x9b31m"),  # the 8-bit form of ESC [
        ("gpj.\u202etxt", "gpj.\\u202etxt"),  # what follows would be shown right to left
        ("\u2066a\u2069\u200f\ufeff", "\\u2066a\\u2069\\u200f\\ufeff"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("caf\udce9", "caf\\udce9"),  # a byte that is not UTF-8
        ("\U000e0041", "\\U000e0041"),
        ("小さい café é 👩\u200d🌾", "小さい café é 👩\u200d🌾"),
    ],
)
def test_only_what_cannot_be_seen_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_a_line_stays_a_line_in_any_encoding() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="")
    say("left out: \x1b[2Jé小\n.jpg", stream)
    assert stream.buffer.getvalue().decode("cp1252") == "left out: \\x1b[2Jé\\u5c0f\\n.jpg\n"


def test_errors_are_harmless_and_survive_a_process() -> None:
    error = DataError("a\x1b[31m\n.jpg: is missing")
    assert str(error) == "a\\x1b[31m\\n.jpg: is missing"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
