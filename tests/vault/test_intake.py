"""Intake: formats, line numbers, and errors that say nothing of what they saw."""

from __future__ import annotations

import gzip
import json
import logging
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privft.errors import InputError, NotForThisKey, PrivftError, UsageError
from privft.vault.fields import FieldMap
from privft.vault.intake import (
    BadRow,
    Row,
    format_of,
    identifier,
    parse_record,
    source_digest,
    stream_rows,
)
from privft.vault.manifest import Caps
from privft.vault.services import ExecService
from tests.vault.columnkeys import reader, write_columns

MARK = "Marker-7f3a"
FIELDS = FieldMap(text="note", subject="patient")


def parse(columns: dict[str, Any], fields: FieldMap = FIELDS, **options: Any) -> Any:
    row = Row(line=3, columns=columns)
    options = {"caps": Caps(), "by_subject": True, "made_id": "made-3", **options}
    return parse_record(row, fields, **options)


JSONL = b"\xef\xbb\xbf" + (
    b'{"patient": "007", "note": "a\\u00e4"}\r\n'
    b"\n"
    b'{"patient": 8, "note": "line\xe2\x80\xa8separator \x0bin it"}\n'
    b"not json\n"
    b"[1]\n"
    b'{"patient": "9", "note": "\xff\xfe"}\n'
    b'{"patient": "10", "note": "no newline at the end"}'
)
CSV = b'patient,note\r\n007,"two\r\nlines"\n8,9,10\n9,"quote"out of place\n10,end\n'


def rows_of(path: Path) -> list[tuple[int, dict[str, Any], str | None]]:
    return [(row.line, dict(row.columns), row.fault) for row in stream_rows(path)]


@pytest.mark.parametrize("zipped", [False, True])
def test_json_lines_have_true_line_numbers(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / ("a [1]*.jsonl.gz" if zipped else "a [1]*.jsonl")
    path.write_bytes(gzip.compress(JSONL) if zipped else JSONL)
    rows = rows_of(path)
    assert [row[0] for row in rows] == [1, 3, 4, 5, 6, 7]
    assert rows[0][1] == {"patient": "007", "note": "aä"}
    assert rows[2][2] == "not JSON"
    assert rows[3][2] == "not a JSON object"
    with pytest.raises(BadRow, match="not UTF-8"):
        parse(rows[4][1])


def test_a_line_may_hold_any_unicode_separator(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"note": "a\u2028b\u2029c\x85d"}\n{"note": "e"}\n', encoding="utf-8")
    assert [row[1]["note"] for row in rows_of(path)] == ["a\u2028b\u2029c\x85d", "e"]


@pytest.mark.parametrize("zipped", [False, True])
def test_csv_keeps_text_as_text(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / ("a.csv.gz" if zipped else "a.csv")
    path.write_bytes(gzip.compress(CSV) if zipped else CSV)
    assert rows_of(path) == [
        (2, {"patient": "007", "note": "two\r\nlines"}, None),
        (4, {}, "3 columns where the first line has 2"),
        (5, {}, "not CSV: a quote or line end out of place"),
        (6, {"patient": "10", "note": "end"}, None),
    ]


def test_a_quote_that_is_not_closed_says_how_much_it_swallows(tmp_path: Path) -> None:
    """Left out with --skip-bad it counts as one row, and is more."""
    path = tmp_path / "a.csv"
    path.write_text('patient,note\n1,"open\n2,x\n3,y\n')
    fault = "not CSV: a quote or line end out of place, and with it all up to line 4"
    assert rows_of(path) == [(2, {}, fault)]


def test_a_csv_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("note,note\n1,2\n")
    with pytest.raises(InputError, match="twice"):
        rows_of(path)


PARQUET_KEY = bytes(range(32))


@pytest.mark.parametrize("plaintext_footer", [False, True])
def test_encrypted_parquet(tmp_path: Path, plaintext_footer: bool) -> None:
    import pyarrow.parquet
    from pyarrow.parquet.encryption import create_encryption_properties

    count = 1000
    table = pyarrow.table({"note": [f"{MARK} {number}" for number in range(count)]})
    path, plain = tmp_path / "a.parquet", tmp_path / "plain.parquet"
    properties = create_encryption_properties(PARQUET_KEY, plaintext_footer=plaintext_footer)
    pyarrow.parquet.write_table(table, path, encryption_properties=properties)
    pyarrow.parquet.write_table(table, plain)
    assert MARK.encode() not in path.read_bytes()
    for source in (path, plain):  # with a key at hand, a file that needs none is read too
        rows = list(stream_rows(source, parquet=PARQUET_KEY))
        assert [(row.line, row.columns["note"]) for row in rows] == [
            (number + 1, f"{MARK} {number}") for number in range(count)
        ]
    whole = path.read_bytes()
    for key, data in (
        (bytes(32), whole),
        (bytes(5), whole),
        (PARQUET_KEY, whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]),
        (PARQUET_KEY, whole[:-9]),
        (None, whole),
    ):
        path.write_bytes(data)
        with pytest.raises(InputError) as caught:
            list(stream_rows(path, parquet=key))
        assert MARK not in str(caught.value)
        assert PARQUET_KEY.hex() not in str(caught.value)


@pytest.mark.parametrize("plaintext_footer", [False, True])
@pytest.mark.parametrize("double_wrapping", [False, True])
def test_parquet_with_keys_of_its_columns(
    tmp_path: Path, plaintext_footer: bool, double_wrapping: bool
) -> None:
    """A service unwraps them; the column that nobody asks for may lie under any key."""
    notes = [f"{MARK} {number}" for number in range(250)]
    path = write_columns(
        tmp_path / "a.parquet",
        {"note": notes, "patient": [f"p{number}" for number in range(250)], "ssn": notes},
        {"text": ["note"], "people": ["patient"], "nobody's": ["ssn"]},
        plaintext_footer=plaintext_footer,
        double_wrapping=double_wrapping,
    )
    assert MARK.encode() not in path.read_bytes()
    asked: list[str] = []

    class Service:
        def unwrap_parquet(self, wrapped: bytes, master_key: str) -> bytes:
            asked.append(master_key)
            return reader(tmp_path).unwrap_parquet(wrapped, master_key)

    rows = list(stream_rows(path, parquet=Service(), columns=FIELDS.columns()))
    assert [(row.line, row.columns) for row in rows] == [
        (number + 1, {"note": note, "patient": f"p{number}"}) for number, note in enumerate(notes)
    ]
    assert {"text", "people"} <= set(asked) <= {"text", "people", "footer"}
    another = reader(tmp_path, key=bytes(31) + b"\1", name="another")
    with pytest.raises(NotForThisKey, match="'another' does not know this key"):
        list(stream_rows(path, parquet=another))
    broken = ExecService(name="kms", command=["/nonexistent"])
    with pytest.raises(PrivftError, match="key service 'kms' failed: FileNotFoundError"):
        list(stream_rows(path, parquet=broken))
    for key in (PARQUET_KEY, None):  # one key for the whole file opens none such
        with pytest.raises(InputError) as caught:
            list(stream_rows(path, parquet=key))
        assert "--parquet-service" in str(caught.value.hint)
        assert MARK not in f"{caught.value}"


def test_a_key_service_is_asked_about_parquet_as_the_protocol_says(tmp_path: Path) -> None:
    said = tmp_path / "said.json"
    spy = tmp_path / "spy.py"
    spy.write_text(
        f"import sys; text = sys.stdin.read(); open({str(said)!r}, 'w').write(text)\n"
        'print(\'{"data": "00ff"}\')\n'
    )
    service = ExecService(name="kms", command=[sys.executable, str(spy)])
    assert service.unwrap_parquet(b"AbC=", "ward 7") == b"\x00\xff"
    assert json.loads(said.read_text()) == {
        "context": b"ward 7".hex(),
        "data": b"AbC=".hex(),
        "operation": "unwrap-parquet",
        "version": 1,
    }


def test_parquet_and_saved_folders(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    table = {"patient": [1, 2], "note": [f"{MARK} one", None]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "saved")
    expected = [
        (1, {"patient": 1, "note": f"{MARK} one"}, None),
        (2, {"patient": 2, "note": None}, None),
    ]
    assert rows_of(tmp_path / "a.parquet") == expected
    assert rows_of(tmp_path / "saved") == expected
    assert source_digest(tmp_path / "saved")[1] > 0


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.parquet", f"{MARK} PAR1".encode()),
        ("a.jsonl.gz", gzip.compress(f'{{"note": "{MARK}"}}\n'.encode() * 50, mtime=0)[:-9]),
        ("b.jsonl.gz", MARK.encode()),
    ],
)
def test_broken_files_say_nothing_of_their_content(
    tmp_path: Path,
    name: str,
    data: bytes,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(data)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(InputError) as caught:
        rows_of(tmp_path / name)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    shown += "".join(capfd.readouterr())
    assert MARK not in shown
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.parquet.gz", "noending", "a.jsonl.zip"])
def test_unknown_formats_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="no known format"):
        format_of(tmp_path / name)


def test_missing_files_and_strange_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        format_of(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="did not save"):
        format_of(tmp_path)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"patient": "p"}, "'note' is missing"),
        ({"patient": "p", "note": None}, "'note' is missing"),
        ({"patient": "p", "note": " \n"}, "'note' is empty"),
        ({"patient": "p", "note": 5}, "'note' is not text"),
        ({"patient": "p", "note": [MARK]}, "'note' is not text"),
        ({"note": "x"}, "'patient' is missing"),
        ({"patient": "", "note": "x"}, "'patient' is missing"),
        ({"patient": 1.5, "note": "x"}, "neither text nor a whole number"),
        ({"patient": True, "note": "x"}, "neither text nor a whole number"),
        ({"patient": "p" * 513, "note": "x"}, "more than 512 bytes"),
        ({"patient": 10**512, "note": "x"}, "more than 512 bytes"),
        ({"patient": "p", "note": "\ud800"}, "not UTF-8"),
        ({"patient": "\udcff", "note": "x"}, "not UTF-8"),
        ({"patient": "p", "note": "x" * (1 << 20) + "y"}, "more than 1048576 bytes"),
    ],
)
def test_bad_rows_have_reasons_without_content(columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason) as caught:
        parse(columns)
    assert MARK not in str(caught.value)


@pytest.mark.parametrize(
    "spelling", ["Andr\u00e9 7", "Andre\u0301 7", " Andr\u00e9 7\t", "Andr\u00e9 7\u00a0"]
)
def test_one_id_has_one_spelling(spelling: str) -> None:
    """Else one person would be two units, and protected half as well."""
    fields = FieldMap(text="note", subject="patient", id="n")
    parsed = parse({"patient": spelling, "note": "a", "n": spelling}, fields)
    assert (parsed.unit, parsed.record["id"]) == ("Andr\u00e9 7", "Andr\u00e9 7")
    assert identifier(spelling) == parsed.unit
    with pytest.raises(BadRow, match="missing or empty"):
        parse({"patient": " \t", "note": "a"})


@pytest.mark.parametrize("unseen", ["\u200b", "\ufeff", "\u00ad", "\x00", "\u2028", "\u202e"])
def test_an_id_with_a_character_that_nobody_sees_is_a_bad_row(unseen: str) -> None:
    """Two ids that look alike would be one person twice."""
    with pytest.raises(BadRow, match="column 'patient' has a character that cannot be seen"):
        parse({"patient": f"p{unseen}7", "note": "a"})
    assert parse({"patient": "p 7-\u5c71/\u00e9_.", "note": unseen + "a"}).unit.startswith("p 7")


def test_json_that_names_a_column_twice_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    twice = ('{"patient": "1", "note": "a", "patient": "2"}', '{"note": [{"a": 1, "a": 2}]}')
    path.write_text("\n".join(twice))
    fault = "an object that has a name twice"
    assert rows_of(path) == [(1, {}, fault), (2, {}, fault)]


def test_every_form_becomes_its_record() -> None:
    turn = {"role": "user", "content": "hello", "name": "ignored"}
    cases: list[tuple[FieldMap, dict[str, Any], dict[str, Any]]] = [
        (FieldMap(text="t"), {"t": "x"}, {"text": "x"}),
        (
            FieldMap(prompt="p", completion="c"),
            {"p": "", "c": "y"},
            {"prompt": "", "completion": "y"},
        ),
        (
            FieldMap(messages="m"),
            {"m": [turn]},
            {"messages": [{"role": "user", "content": "hello"}]},
        ),
        (FieldMap(text="t", label="l"), {"t": "x", "l": 3}, {"text": "x", "label": 3}),
        (FieldMap(text="t", label="l"), {"t": "x", "l": "yes"}, {"text": "x", "label": "yes"}),
    ]
    for fields, columns, expected in cases:
        parsed = parse(columns, fields, by_subject=False)
        assert parsed.record == {"id": "made-3", **expected}
        assert parsed.unit == "made-3"
    own = parse({"t": "x", "key": 12, "who": 7}, FieldMap(text="t", id="key", subject="who"))
    assert (own.record["id"], own.unit) == ("12", "7")


@pytest.mark.parametrize("value", [None, [], "x", [{}], [{"role": "u"}], [1], [["role"]]])
def test_bad_messages_are_refused(value: object) -> None:
    with pytest.raises(BadRow, match="'m'"):
        parse({"m": value}, FieldMap(messages="m"), by_subject=False)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"prompt": "p"},
        {"label": "l"},
        {"text": "t", "prompt": "p", "completion": "c"},
        {"text": "t", "messages": "m"},
    ],
)
def test_a_field_map_has_one_form(columns: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="field map"):
        FieldMap(**columns)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), values))
def test_any_row_is_a_record_or_a_bad_row(columns: dict[str, Any]) -> None:
    for fields in (
        FieldMap(text="a", subject="d", id="c"),
        FieldMap(messages="b", subject="d"),
        FieldMap(text="a", label="b", subject="d"),
    ):
        try:
            parsed = parse(columns, fields)
        except BadRow:
            continue
        parsed.unit.encode()
        assert set(parsed.record) == {"id", *fields.content()}


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_an_input_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.jsonl", "a.csv"):
            path = Path(folder) / name
            path.write_bytes(data)
            try:
                for row in stream_rows(path):
                    assert row.line >= 1
            except InputError:
                pass


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    places = {name: tmp_path / name for name in ("tmp", "home", "hf", "work")}
    for place in places.values():
        place.mkdir()
    source = tmp_path / "a [1]*.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"note": [MARK] * 100}), source)
    monkeypatch.setattr(tempfile, "tempdir", str(places["tmp"]))
    monkeypatch.setenv("HOME", str(places["home"]))
    monkeypatch.setenv("HF_HOME", str(places["hf"]))
    monkeypatch.chdir(places["work"])
    stream = stream_rows(source)
    assert next(stream).columns["note"] == MARK
    during = [Path(at) / name for at, _, names in os.walk(places["tmp"]) for name in names]
    assert all(path.is_symlink() or path.stat().st_size == 0 for path in during)
    stream.close()
    left = [
        name
        for place in places.values()
        for _, folders, files in os.walk(place)
        for name in folders + files
    ]
    assert left == []
