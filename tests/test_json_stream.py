"""A JSON that is read in parts is the JSON that the standard library reads whole, or the same
error."""

from __future__ import annotations

import json
import random
import re

import pytest

from data import json_stream
from data.errors import DataError
from data.json_stream import read_parts

LISTS = ("images", "annotations")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So small that every place of a text is once the end of what is in memory."""
    monkeypatch.setattr(json_stream, "BLOCK", 64)
    monkeypatch.setattr(json_stream, "WINDOW", 24)


def put_together(path):
    whole = {}
    for key, value, first in list(read_parts(path, LISTS)):
        if key is None and not isinstance(value, list):
            return value
        if first:
            whole.pop(key, None)
        is_part = key is None or (key in LISTS and isinstance(value, list))
        whole[key] = whole.get(key, []) + value if is_part else value
    return whole.get(None, whole)


def written(folder, content, **options):
    path = folder / "a.json"
    text = content if isinstance(content, str) else json.dumps(content, **options)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


def random_value(rng, depth=3):
    kinds = [
        lambda: rng.choice([None, True, False, float("inf")]),
        lambda: rng.randint(-(10**20), 10**20),
        lambda: rng.random() * 10 ** rng.randint(-20, 20),
        lambda: "".join(rng.choice('ab"\\}{][,:é\n\u2028😀 ') for _ in range(rng.randint(0, 60))),
        lambda: [random_value(rng, depth - 1) for _ in range(rng.randint(0, 4))],
        lambda: {str(i): random_value(rng, depth - 1) for i in range(rng.randint(0, 4))},
    ]
    return rng.choice(kinds if depth else kinds[:4])()


@pytest.mark.parametrize("seed", range(60))
def test_any_content_comes_back(tmp_path, seed):
    rng = random.Random(seed)
    content = {
        rng.choice(["info", "images", "annotations", "x"]): random_value(rng) for _ in range(3)
    }
    content["images"] = [{"a": random_value(rng)} for _ in range(rng.randint(0, 20))]
    content["annotations"] = [random_value(rng) for _ in range(rng.randint(0, 9))]
    layout = rng.choice([{}, {"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}])
    assert put_together(written(tmp_path, content, **layout)) == content


@pytest.mark.parametrize("content", [[], {}, [1], [{"a": 1}] * 50, 7, None])
def test_other_top_levels(tmp_path, content):
    assert put_together(written(tmp_path, content)) == content


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_encodings(tmp_path, encoding):
    content = {"images": [{"name": "é😀" * 40}] * 9}
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert put_together(path) == content


def test_of_a_key_that_occurs_twice_the_last_value_counts(tmp_path):
    text = '{"images": [{"a": 1}, {"a": 2}], "info": 1, "images": [{"a": 3}], "info": 2}'
    assert put_together(written(tmp_path, text)) == json.loads(text)


def test_long_lists_come_in_several_parts(tmp_path):
    content = {"images": [{"id": i, "s": "}, {"} for i in range(100)]}
    path, sizes = written(tmp_path, content), []
    parts = [value for _, value, _ in read_parts(path, LISTS, sizes.append)]
    assert sum(sizes) == path.stat().st_size
    assert len(parts) > 20
    assert max(map(len, parts)) < 10


WHOLE = '{"info": {"a": [1, 2.5, null]}, "images": [{"id": 1}, {"id": -2}],\n "x": "é}, {"}'


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_text_that_is_cut_off_is_refused_in_the_same_words(tmp_path, length):
    assert_same_error(tmp_path, WHOLE[:length])


@pytest.mark.parametrize("place", range(len(WHOLE)))
@pytest.mark.parametrize("letter", ["}", "]", ",", '"', "x", "\n"])
def test_a_text_with_a_wrong_letter_is_refused_in_the_same_words(tmp_path, place, letter):
    text = WHOLE[:place] + letter + WHOLE[place + 1 :]
    try:
        expected = json.loads(text)
    except ValueError:
        # Python 3.13 has words of its own for a comma before a bracket.
        assert_same_error(tmp_path, text, same_words=not re.search(r",\s*[]}]", text))
    else:
        assert put_together(written(tmp_path, text)) == expected


def assert_same_error(folder, text, same_words=True):
    path = written(folder, text)
    with pytest.raises(ValueError, match=r"char \d") as theirs:
        json.loads(text)
    with pytest.raises(ValueError, match=r"char \d") as ours:
        put_together(path)
    assert str(ours.value) == str(theirs.value) or not same_words


def test_an_error_far_into_a_file_has_its_place(tmp_path):
    text = json.dumps({"images": [{"id": i} for i in range(500)]}, indent=1)
    assert_same_error(tmp_path, text.replace('"id": 400', '"id": x'))


def test_too_many_brackets(tmp_path):
    with pytest.raises(RecursionError):
        put_together(written(tmp_path, '{"images": [' + "[" * 100_000))


def test_a_wrong_checksum_is_noticed(tmp_path):
    from data.json_checksum import ChecksumWriter

    path = tmp_path / "a.json"
    with open(path, "w") as file:
        writer = ChecksumWriter(file)
        writer.write('{"images": [' + ", ".join(f'{{"id": {i}}}' for i in range(100)) + "]")
        writer.end()
    assert len(put_together(path)["images"]) == 100
    path.write_text(path.read_text().replace('"id": 50', '"id": 51'))
    with pytest.raises(DataError, match="is damaged, its checksum"):
        put_together(path)
