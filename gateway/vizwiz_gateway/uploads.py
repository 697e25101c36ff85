"""Multipart bodies, read in memory within limits while they stream: no byte touches the disk."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vizwiz_gateway.problems import ProblemError, problem

MAX_QUESTIONS = 16
MAX_TEXT_BYTES = 20_000  # of a text field: 5,000 characters, the tokenizer's limit, of 4 bytes
OVERHEAD_BYTES = 400_000  # of a body beside its photo: text fields, headers and boundaries
MAX_TOP = 50
MAX_NAMED, NAME_LENGTH = 8, 40  # parts that a message names, and characters of a name
_FIELDS = ("photo", "question", "top")


@dataclass
class Upload:
    """The fields of one request.

    Attributes:
        photo: the photo's file; None if the form has none.
        questions: texts of the fields ``question``, blank ones left out.
        top: number of candidates to return.
        fields: names of the parts that came, at most :data:`MAX_NAMED` of them, shortened.
    """

    photo: bytes | None = None
    questions: list[str] = field(default_factory=list)
    top: int = 1
    fields: list[str] = field(default_factory=list)

    @property
    def got(self) -> str:
        """The names of the fields that came, for messages."""
        return f"got {', '.join(self.fields) or 'no field'}"


async def read_upload(
    content_type: str | None, body: AsyncIterable[bytes], max_photo_bytes: int, upload: Upload
) -> None:
    """Parse a multipart/form-data body.

    Args:
        content_type: the request's ``Content-Type``.
        body: its chunks.
        max_photo_bytes: size of the largest photo, bytes.
        upload: the fields, filled as they arrive.

    Raises:
        ProblemError: 415 not multipart/form-data, 400 malformed or several photos, 413 too large.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "not-a-form",
            f"got a body of type {kind.decode(errors='replace') or 'unknown'}, expected multipart/form-data with its "
            "boundary: curl -F photo=@img.jpg -F question='what is this?'",
        )
    form = _Form(max_photo_bytes, upload)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        size = 0
        async for chunk in body:
            size += len(chunk)
            if size > max_photo_bytes + OVERHEAD_BYTES:
                raise too_large(max_photo_bytes)
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise _malformed("the multipart body is malformed; send the form again") from error
    if not form.complete:
        raise _malformed("the multipart body ends before its last boundary; send the form again")
    if form.photo_error:
        raise form.photo_error


def too_large(max_photo_bytes: int) -> ProblemError:
    """The 413 of a body that is longer than the largest photo."""
    return problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too-large",
        f"the photo has more than {max_photo_bytes:,} bytes; make it smaller",
    )


def _is_text(data: bytes | bytearray) -> bool:
    """Whether ``data`` is UTF-8, which no photo is: curl sends a file's name where its @ was forgotten."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _malformed(detail: str) -> ProblemError:
    return problem(HTTPStatus.BAD_REQUEST, "malformed", detail)


class _Form:
    """Callbacks of the parser: collect the parts of one body."""

    def __init__(self, max_photo_bytes: int, upload: Upload) -> None:
        self.upload = upload
        self.complete = False
        self.photo_error: ProblemError | None = None  # raised at the end: the page keeps a question that comes after it
        self._max_photo_bytes = max_photo_bytes
        self._header = (bytearray(), bytearray())  # name and value of the header that is being read
        self._name = ""
        self._is_file, self._file_name = False, b""
        self._data = bytearray()

    def callbacks(self) -> Any:
        """The callbacks, in the format of MultipartParser."""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": self._callback(name) for name in names}

    def _callback(self, name: str) -> Callable[..., None]:
        return getattr(self, f"_{name}")  # type: ignore[no-any-return]

    def _part_begin(self) -> None:
        self._name, self._data = "", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._header = (bytearray(), bytearray())
        if name.lower() == b"content-disposition":
            options = parse_options_header(value)[1]
            self._name = options.get(b"name", b"").decode(errors="replace")
            self._is_file, self._file_name = b"filename" in options, options.get(b"filename", b"")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name not in _FIELDS:
            return
        self._data += memoryview(data)[start:end]
        if self._name == "photo" and len(self._data) > self._max_photo_bytes:
            raise too_large(self._max_photo_bytes)
        if self._name != "photo" and len(self._data) > MAX_TEXT_BYTES:
            raise problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "too-large",
                f"the field {self._name} has more than {MAX_TEXT_BYTES:,} bytes; shorten it",
            )

    def _part_end(self) -> None:
        name, data = self._name, self._data
        self._name, self._data = "", bytearray()
        if len(self.upload.fields) < MAX_NAMED:
            self.upload.fields.append(name[:NAME_LENGTH])
        if name == "photo":
            if data or self._file_name:  # of the page's two file controls, the unused one sends no name
                self._add_photo(data)
        elif name == "question":
            self._add_question(data)
        elif name == "top":
            text = bytes(data.strip())
            top = int(text) if re.fullmatch(rb"[0-9]{1,9}", text) else 0
            if not 1 <= top <= MAX_TOP:
                raise problem(
                    HTTPStatus.UNPROCESSABLE_ENTITY, "bad-top", f"expected top to be a whole number from 1 to {MAX_TOP}"
                )
            self.upload.top = top

    def _add_photo(self, data: bytearray) -> None:
        wrong_type = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        if not data:
            self.photo_error = problem(wrong_type, "not-a-photo", "the photo is an empty file; send another one")
        elif self.upload.photo:
            self.photo_error = problem(
                HTTPStatus.BAD_REQUEST, "several-photos", "the form has more than one photo; send one in a request"
            )
        elif not self._is_file and _is_text(data):
            self.photo_error = problem(
                wrong_type, "not-a-photo", "the field photo is text, not a file; with curl, write photo=@img.jpg"
            )
        else:
            self.upload.photo = bytes(data)

    def _add_question(self, data: bytearray) -> None:
        try:
            question = data.decode().strip()
        except UnicodeDecodeError:
            raise problem(
                HTTPStatus.UNPROCESSABLE_ENTITY, "no-question", "the question is not UTF-8 text; encode it as UTF-8"
            ) from None
        if not question:
            return
        if len(self.upload.questions) == MAX_QUESTIONS:
            raise problem(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "too-many-questions",
                f"expected at most {MAX_QUESTIONS} questions in a request; send the others in another one",
            )
        self.upload.questions.append(question)

    def _end(self) -> None:
        self.complete = True
