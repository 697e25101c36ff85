"""The sets of answer types a head can tell apart, and the only home of the patterns that define the paper's.

``official``: VizWiz's own four, annotated per question. ``paper``: the seven of "Less Is More" (arXiv 2206.05281,
section 3), told from the answer that is a question's target; the paper names them, the patterns are this project's.
"""

from __future__ import annotations

import re

from training.dataset import ANSWER_TYPES, Record

OFFICIAL = "official"
PAPER = "paper"
OTHER = "other"
TYPE_SETS: dict[str, tuple[str, ...]] = {
    OFFICIAL: ANSWER_TYPES,
    PAPER: (OTHER, "unanswerable", "unsuitable", "yes", "no", "number", "color"),
}

_NUMBER_WORDS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand half
""".split()
_COLORS = """
amber aqua aquamarine beige black blond blonde blue bronze brown burgundy charcoal chrome copper coral cream crimson
cyan fuchsia gold golden gray green grey indigo ivory khaki lavender lilac lime magenta maroon mauve multicolor
multicolored mustard navy olive orange peach periwinkle pink plaid plum purple red rose rust salmon sand scarlet
silver striped tan taupe teal turquoise violet white yellow
""".split()
_SHADES = "and blueish bluish bright brownish color colored dark deep greenish hot light medium neon off or pale pastel"
_SHADES += " pinkish plain purplish reddish royal sky solid stripe stripes very with yellowish"
_WORDS = "|".join(_NUMBER_WORDS)
_COLOR, _SHADE = "|".join(_COLORS), "|".join(_SHADES.split())

# The first pattern that matches a whole answer, in lower case, is its type.
_PATTERNS = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("unanswerable", r"unanswerable"),
        ("unsuitable", r"unsuitable( image)?"),
        ("yes", r"(yes|yeah|yep)\b.*"),
        ("no", r"no|nope|no[, ]+(it|there|you|not)\b.*"),
        ("number", rf"[$£€#]?\d[\d\s.,:/%$-]*|({_WORDS})([ -]({_WORDS}))*"),
        ("color", rf"(({_SHADE})[ ,/-]+)*({_COLOR})(([ ,/&-]+({_COLOR}|{_SHADE}))*)"),
    )
)


def type_of_answer(answer: str) -> str:
    """The paper's type of an answer."""
    text = " ".join(answer.lower().split())
    return next((name for name, pattern in _PATTERNS if pattern.fullmatch(text)), OTHER)


def type_of(record: Record, answer: str | None, type_set: str) -> int:
    """The number, within ``type_set``, of the type of a labelled record whose target is ``answer``, if it has one."""
    name = record.answer_type or OTHER if type_set == OFFICIAL else type_of_answer(answer or "")
    return TYPE_SETS[type_set].index(name)
