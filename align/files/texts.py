"""The one reader of texts, lines and tables that users write. Each function raises Unreadable: what, where, what to do.

Text is UTF-8, or UTF-16 and UTF-32 with their byte order mark; the mark is no text. A line ends at \\n or \\r\\n and
nowhere else: U+2028, U+0085 and form feeds stay within it. A row of a table has as many cells as the header; quotes in
a .tsv belong to the text, those of a .csv enclose it.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TABLES = {".csv": ",", ".tsv": "\t"}
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Unreadable(Exception):
    """Why a file is not the text, the lines or the table that was asked for; begins with its name."""


def read_text(path: str | Path) -> str:
    """The whole text of a file."""
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
    except OSError as error:
        said = f"{error.strerror}, in {file.absolute().parent}"
        raise Unreadable(f"{path}: cannot be read ({said}). Check the path.") from None
    return decode(data, str(path))


def decode(data: bytes, where: str) -> str:
    """Bytes -> text without its byte order mark; `where` is what the error calls it."""
    encoding = "utf-8"
    for mark, name in MARKS:
        if data.startswith(mark):
            data, encoding = data[len(mark) :], name
            break
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        named = "UTF-8" if encoding == "utf-8" else encoding.upper()
        raise Unreadable(f"{where}: byte {error.start} (line {line}) is not {named}. Save the file as UTF-8.") from None
    if "\0" in text:
        raise Unreadable(f"{where}: holds NUL bytes: it is no text, or UTF-16 without its mark. Save it as UTF-8.")
    return text


def lines(text: str, where: str) -> Iterator[tuple[int, str]]:
    """(number, line without its end and the blanks around it) of those that are not empty."""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if "\r" in line:
            raise Unreadable(
                f"{where}: line {number} holds a carriage return that ends no line here. Save the file with line ends "
                "of Unix (LF) or Windows (CRLF)."
            )
        if line.strip():
            yield number, line.strip()


def json_lines(text: str, where: str, example: str, wrong: list[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(number, value) of JSON lines. Those that are none are put into `wrong`, where it is given, and passed over."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line, object_pairs_hook=_once)
            except ValueError as error:
                said = f"line {number} is not JSON ({getattr(error, 'msg', error)})"
                if wrong is None:
                    raise Unreadable(f"{where}: {said}. Write one {example} a line.") from None
                wrong.append(said)


def json_value(text: str, where: str) -> Any:
    """The one JSON value of a file."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise Unreadable(f"{where}: line {error.lineno} is not JSON ({error.msg}). Correct it.") from None
    except ValueError as error:
        raise Unreadable(f"{where}: {error}. Correct it.") from None


def table(text: str, where: str, suffix: str, *, padded: bool = False) -> list[tuple[int, dict[str, str]]]:
    """(line, {column: cell}) of each row; column names in lower case, without the blanks around them. Empty rows are
    none, and so are empty cells behind the header's last. padded: a row may end early."""
    delimiter = TABLES[suffix]
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            first, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if len(header) == 1 and ";" in header[0] and delimiter == ",":
                    raise Unreadable(f"{where}: its cells are parted by semicolons. Save it with commas between them.")
                if twice := [name for name in header if name and header.count(name) > 1]:
                    raise Unreadable(f"{where}: the column {twice[0]} is there twice. Remove one.")
                continue
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if padded:
                cells += [""] * (len(header) - len(cells))
            if len(cells) != len(header):
                said = f"line {first} has {len(cells)} cells and the header {len(header)}"
                raise Unreadable(f"{where}: {said}. {_how(suffix)}")
            rows.append((first, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise Unreadable(f"{where}: line {line} is no row of a table ({error}). {_how(suffix)}") from None
    return rows


def _how(suffix: str) -> str:
    if suffix == ".tsv":
        return "Put exactly one tab between two cells."
    return 'Put cells that hold commas, quotes or line ends into quotes: "a circle, a square".'


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found
