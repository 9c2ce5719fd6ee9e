"""Text files of examples: read as UTF-8, taken apart row by row, and their values checked.

Errors are one sentence that names the file and the line: FileNotFoundError for what is not there, ValueError for
everything else. A row that cannot be read is yielded as its error, so that it can keep its place among the others.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
from typing import Any, Iterator

from etils import epath

MAX_TEXT = 1_000_000  # characters of one caption or turn: a book is text, but not a caption

Row = tuple[str, Any]  # what errors call the row, and its value or the error that took its place


def read_text(file: epath.Path) -> str:
    """The text of a file, without the byte order mark that spreadsheets put first.

    Bytes that are not UTF-8 come as lone surrogates, which `check_utf8` finds.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig", "surrogateescape")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} does not exist; check the path") from error
    except Exception as error:  # a folder, no permission, or whatever a bucket's client raises
        raise ValueError(f"{file} cannot be opened ({error}); check path and permissions") from error
    if not text.strip():
        raise ValueError(f"{file} is empty; add a line or entry for each example")
    return text


def check_utf8(text: str, file: epath.Path, line: int) -> None:
    """Raises where `text`, which starts on `line` of the file, came from bytes that are not UTF-8."""
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise ValueError(f"{file}:{line} is not UTF-8 ({error.reason}); save the file as UTF-8") from error


def jsonl_rows(text: str, file: epath.Path) -> Iterator[tuple[int, Any]]:
    """(line number, value or error) for each line that is not blank."""
    for line, row in enumerate(text.split("\n"), start=1):  # splitlines() also splits at U+2028
        if row.strip():
            yield line, attempt(parse_json, row, file, line)


def csv_rows(text: str, file: epath.Path) -> Iterator[tuple[int, Any]]:
    """(line number, row or error) for each row; the number is that of the row's first line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    line = 1
    try:
        header = next(reader)
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                yield line, attempt(_csv_row, header, fields, file, line)
            line = reader.line_num + 1
    except csv.Error as error:  # where the next row begins is not known any more
        raise ValueError(f"{file}:{line} is not valid CSV ({error}); check the quotes") from error


def _csv_row(header: list[str], fields: list[str], file: epath.Path, line: int) -> dict[str, str]:
    check_utf8(" ".join(fields), file, line)
    if len(fields) != len(header):  # a caption cut off at its comma would train unnoticed
        raise ValueError(f"{file}:{line} has {len(fields)} fields for {len(header)} columns; "
                         f"put a caption with commas in double quotes")
    return dict(zip(header, fields))


def json_entries(text: str, file: epath.Path) -> Iterator[Row]:
    """(name for errors, value or error) of each entry of a JSON list, or of each line of a `.jsonl` file."""
    if file.suffix == ".jsonl":
        for line, value in jsonl_rows(text, file):
            yield f"{file}:{line}", value
        return
    values = parse_json(text, file, allow_bad_utf8=True)
    if not isinstance(values, list):
        raise ValueError(f"{file} must be a list of entries, not {values!r:.40}; one a line is .jsonl")
    for n, value in enumerate(values):
        name = value.get("id") if isinstance(value, dict) else None
        yield f"{file}, entry {n}" + (f" (id {name!r:.80})" if name is not None else ""), value


def parse_json(text: str, file: epath.Path, line: int = 1, allow_bad_utf8: bool = False) -> Any:
    """JSON to Python; `line` is the line of the file on which `text` starts."""
    if not allow_bad_utf8:
        check_utf8(text, file, line)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of 5,000 digits, or 5,000 brackets
        line, reason = line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", error)
        raise ValueError(f"{file}:{line} is not valid JSON ({reason}); correct it") from error


def attempt(function, *args) -> Any:
    """What the call returns, or the ValueError that it raises."""
    try:
        return function(*args)
    except ValueError as error:
        return error


def image_name(value: Any, where: str) -> str:
    """A relative path in its one spelling, so that `./a.png` and `a.png` are one image and in one split."""
    name = pathlib.PurePosixPath(string(value, "image", where))
    if not name.parts or name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{where}: image {value!r:.80} is not a relative path inside the image folder")
    return str(name)


def string(value: Any, what: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the {what} must be a string, not {value!r:.40}")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{where}: the {what} has {len(value):,} characters, over the limit of {MAX_TEXT:,}; shorten "
                         f"it or leave it out")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer takes
        raise ValueError(f"{where}: the {what} is not valid Unicode ({error.reason}); correct it") from error
    return value
