"""The texts of ``--help``."""

from __future__ import annotations

import textwrap

from vizwiz_client.cli import _exits
from vizwiz_client.cli._settings import HEADERS, SETTINGS

PHOTO = "a JPEG, PNG, WEBP, GIF or BMP file, - for standard input; the last one is the question, unless there is -q"

TOP = """\
Ask a Triton server about photos. Start with: vizwiz-client ask --help"""

USAGE = {
    "ask": """\
vizwiz-client ask PHOTO [PHOTO ...] QUESTION [options]
       vizwiz-client ask PHOTO [PHOTO ...] -q QUESTION [-q QUESTION ...] [options]""",
    "batch": "vizwiz-client batch INPUT [-o FILE] [options]",
    "status": "vizwiz-client status [options]",
}

DESCRIPTION = {
    "ask": """\
Ask one question about a photo, or several questions about several photos.

The last argument is the question and those before it are photos. With -q, which can be repeated, every argument is
a photo, and every question is asked about every photo. A photo - is read from standard input; so are questions, one a
line, where the question is -. A question has at most 5,000 characters, of which about 50 words are read.

examples:
  vizwiz-client ask img.jpg "what is this?"
  vizwiz-client ask front.jpg back.jpg "when does this expire?"
  vizwiz-client ask *.jpg -q "what is this?" -q "what colour is it?"
  vizwiz-client ask img.jpg "what is this?" --top 3
  vizwiz-client ask - "what is this?" < img.jpg
  vizwiz-client ask img.jpg -q="- or +?"
  vizwiz-client ask *.jpg "what is this?" --json > answers.jsonl
""",
    "batch": """\
Ask the questions of a file: CSV with a header, or JSON Lines (one object a line).

The column (or key) `photo`, or `image`, names a photo, and `question` asks about it; all other columns are kept. With
-o the answers so far are kept in FILE.part, and the same command again goes on there, however it ended; FILE appears
when it is complete. A pipe is read once: to go on, give the same rows again. Its photos are relative to the current
folder.

examples:
  vizwiz-client batch questions.csv -o answers.csv
  vizwiz-client batch questions.jsonl --photos VizWiz/val -o answers.jsonl
  vizwiz-client batch - --photos . < questions.csv > answers.csv
""",
    "status": """\
Ask about a picture that is built in, and say whether server, models, contract and latency are right, and what to do
about each that is not.

examples:
  vizwiz-client status
  vizwiz-client status --url gpu.example.org:8001 --max-latency 0.2
  vizwiz-client status --json
""",
}

OUTPUT = {
    "ask": """\
output:
  One line per photo and question, in that order, as soon as it is known:
    banana, 92% sure
    The photo probably cannot answer this. Best guess: banana, 31% sure
  Several photos or questions are named at the start of the line. Errors and notes go to standard error.

  With --json each line is a JSON object (JSON Lines): photo, question, then answer, confidence, declined, answerable,
  answer_type, candidates, question_truncated, head_id, request_id, timings; or, for a photo or question that cannot be
  used, error.
""",
    "batch": """\
output:
  The input's columns, and answer, confidence, declined, answerable, answer_type, candidates, question_truncated,
  head_id, request_id, error; in the format of the input, or as JSON Lines with --json or where FILE ends in .jsonl.
  Of a row that has an error, the others are empty. A server's error ends the batch, so that it can go on later,
  unless there is --keep-going.
""",
    "status": """\
output:
  One line for each of server, models, contract and latency, such as "server: right, ..." or "server: wrong, ...". With
  --json, one object.
""",
}


def environment() -> str:
    """Which variables stand for which options."""
    names = ", ".join(setting.variable for setting in SETTINGS)
    headers = f"{HEADERS.variable}, one a line, for {HEADERS.flag}: the place for secrets"
    text = f"{names} stand in for the options of these names, {headers}"
    return "\n".join(["environment:", textwrap.fill(text, 116, initial_indent="  ", subsequent_indent="  ")])


def exits() -> str:
    """The exit codes."""
    lines = [
        textwrap.fill(text, 116, initial_indent=f"  {code:<5}", subsequent_indent=" " * 7)
        for code, text in _exits.MEANINGS.items()
    ]
    return "\n".join(["exit status:", *lines])
