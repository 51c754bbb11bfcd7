"""Text as spreadsheets write it: every encoding and separator gives the same rows, and what is none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from safety.errors import ArtifactFormatError
from safety.prompts.sources.text import read_csv, read_lines, read_text

TABLE = 'prompt;category\n"café; a table";one\nnaïve,two;two\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_table_is_read_however_it_is_written(encoding: str, separator: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    rows = [["category", "prompt"], ["one", 'a "café", two; three\tfour'], ["two", "naïve"]]
    text = ending.join(separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    path.write_bytes(text.encode(encoding))
    lines, found = read_csv(path, ["prompt", "category"], "prompts.path")
    assert [line.fields for line in lines] == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert found == {"utf-8": "utf-8", "utf-8-sig": "utf-8-sig", "utf-16": "utf-16", "cp1252": "cp1252"}[encoding]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nprompt;category\r\na;b\r\n",
        "\n\nprompt,category\na,b\n",
        'prompt,category,"free\nremarks"\na,b\n',
        " prompt , category \n a , b \n",
    ],
)
def test_what_spreadsheets_put_around_a_table_is_passed_over(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(text.encode())
    [line] = read_csv(path, ["prompt", "category"], "prompts.path")[0]
    assert (line.fields["prompt"], line.fields["category"]) == ("a", "b")


def test_lines_end_where_an_editor_ends_them(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_bytes("one\u2028and\x85more\rtwo\r\nthree\x0b\n\nlast".encode())
    assert read_lines(path, "prompts.path") == (["one\u2028and\x85more", "two", "three\x0b", "", "last"], "utf-8")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"caf\x81\xe9", "no mark".encode("utf-16-le")])
def test_what_is_no_text_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_bytes(data)
    with pytest.raises(ArtifactFormatError, match="is no text in UTF-8") as refused:
        read_text(path, "prompts.path")
    assert refused.value.fix.startswith("save it as UTF-8, or name its encoding")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactFormatError, match="none.csv cannot be read"):
        read_text(tmp_path / "none.csv", "prompts.path")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("text,label\na,b\n", "line 1: no column 'prompt', 'category' among 'text', 'label'"),
        ("prompt,prompt,category\na,b,c\n", "the column 'prompt' is there 2 times"),
        ("prompt;kind;x\na;b;c\n", "no column 'category' among 'prompt', 'kind', 'x'"),
        ("", "line 1: no column 'prompt', 'category' among "),
        ("prompt,category\na,b,c\n", "line 2: 3 fields under 2 columns"),
        ('prompt,category\n"a,b\n', "line 2: unexpected end of data"),
    ],
)
def test_what_is_no_such_table_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(text)
    with pytest.raises(ArtifactFormatError, match=said):
        list(read_csv(path, ["prompt", "category"], "prompts.path")[0])


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Zażółć gęślą jaźń", "cp1250"),
        ("příliš žluťoučký kůň", "cp1250"),
        ("красный воздушный змей", "cp1251"),
        ("ένας χαρταετός", "cp1253"),
        ("küçük şapkalı ağaç", "cp1254"),
        ("一只红色的风筝", "gb18030"),
        ("赤い凧", "shift_jis"),
        ("un café à Noël", "mac_roman"),
        ("un café à Noël", "cp850"),
    ],
)
def test_another_code_page_is_never_read_as_windows_1252_and_is_read_by_its_name(
    text: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(f"prompt\n{text}\n".encode(encoding))
    with pytest.raises(ArtifactFormatError, match="name its encoding"):
        read_text(path, "prompts.path")
    assert read_text(path, "prompts.path", encoding).text.split("\n")[1] == text


@pytest.mark.parametrize(
    "text",
    [
        "un café à Noël, l’œuvre",
        "ein Mädchen ißt Äpfel – süß",
        "¿dónde está el niño?",
        "um pão de açúcar",
        "smørrebrød på bordet",
        "costs 5 €",
    ],
)
def test_a_western_text_of_a_spreadsheet_is_read_as_it_is(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(text.encode("cp1252"))
    assert read_text(path, "prompts.path") == (text, "cp1252")


def test_an_encoding_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xff\x81")
    with pytest.raises(ArtifactFormatError, match="is no text in ascii"):
        read_text(path, "prompts.path", "ascii")
