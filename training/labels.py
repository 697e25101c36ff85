"""Labels of a fit: the answer list, answer types, and the targets of each record as tensors.

The answer lists (``--vocabulary``) are made of each training question's target answer:

``report``  the most frequent answer among those given with confidence "yes"; of equals, the first one given
``paper``   the most frequent of all ten answers; of equals, the more frequent one in the whole training set, then the
            one with the smallest mean Levenshtein distance to the ten (arXiv 2206.05281, section 3.1)

The sets of answer types (``--types``) are the four that VizWiz annotates (``official``) and the paper's seven, which
are assigned to target answers by pattern. The paper names its types (section 3); the patterns are this project's.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.dataset import ANSWER_TYPES, ANSWERS_PER_QUESTION, Record
from training.metrics import accuracy_leave_one_out, accuracy_min3, normalise
from training.recipe import LABEL, OFFICIAL, PAPER, REPORT_RULE, Recipe
from vizwiz_client.contract.wording import UNANSWERABLE_LABELS

OTHER = "other"
IGNORED_TARGET = -100  # a record without a target in the answer list; PyTorch's cross_entropy ignores it
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
_SHADES = """
and blueish bluish bright brownish color colored dark deep greenish hot light medium neon off or pale pastel pinkish
plain purplish reddish royal sky solid stripe stripes very with yellowish
""".split()
_WORDS, _COLOR, _SHADE = "|".join(_NUMBER_WORDS), "|".join(_COLORS), "|".join(_SHADES)

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


@dataclass(frozen=True)
class Vocabulary:
    """An answer list, and the rule that chooses a record's target."""

    rule: str  # report or paper
    answers: list[str]
    frequency: Counter[str] = field(repr=False)  # of every annotator's answers in train; breaks ties of ``paper``

    def target(self, record: Record) -> str | None:
        """Target answer of a labelled record, in the list or not; None if the rule finds none."""
        return _target(record, self.rule, self.frequency)

    def oracle_accuracy(self, records: Sequence[Record]) -> float:
        """Leave-one-out accuracy, in percent, of always choosing the best answer of the list."""
        known = {normalise(answer) for answer in self.answers}
        best = [
            max((accuracy_leave_one_out(answer, record.answers) for answer in known & set(record.answers)), default=0.0)
            for record in records
        ]
        return 100 * float(np.mean(best))


def build_vocabulary(records: Sequence[Record], rule: str = REPORT_RULE) -> Vocabulary:
    """Collect the target answers of training records.

    Args:
        records: the training records.
        rule: report or paper.

    Returns:
        Every target once, in order of first appearance.
    """
    frequency = Counter(answer for record in records for answer in _answers(record)) if rule == PAPER else Counter()
    targets = [target for record in records if (target := _target(record, rule, frequency)) is not None]
    return Vocabulary(rule, list(dict.fromkeys(targets)), frequency)


def all_confidences_unknown(record: Record) -> bool:
    """Whether no annotator's confidence is known, so that no answer counts as confident."""
    return all(confidence is None for confidence in record.confidences)


def majority_answer(record: Record) -> str | None:
    """The report's target: the most frequent answer given with confidence "yes"; of equals, the first.

    All ten answers count if all confidences are unknown. Without a confident answer it is None: the record then has
    targets for the answer type and the answerability only.
    """
    if all_confidences_unknown(record):
        return _first_most_common(record.answers)
    pairs = zip(record.answers, record.confidences, strict=True)
    return _first_most_common([answer for answer, confidence in pairs if confidence == "yes"])


def one_line(answer: str) -> str:
    """An answer without line breaks, which would split it in Triton's label file."""
    return " ".join(answer.split())


def _target(record: Record, rule: str, frequency: Counter[str]) -> str | None:
    return majority_answer(record) if rule == REPORT_RULE else _paper_target(record, frequency)


def _answers(record: Record) -> list[str]:
    return [one_line(answer) for answer in record.answers if answer.strip()]


def _first_most_common(votes: Sequence[str]) -> str | None:
    counts = Counter(one_line(vote) for vote in votes if vote.strip())
    return counts.most_common(1)[0][0] if counts else None  # most_common keeps the order of first appearance


def _paper_target(record: Record, frequency: Counter[str]) -> str | None:
    answers = _answers(record)
    counts = Counter(answers)
    if not counts:
        return None
    highest = max(counts.values())
    tied = [answer for answer, count in counts.items() if count == highest]
    most_frequent = max(frequency[answer] for answer in tied)
    tied = [answer for answer in tied if frequency[answer] == most_frequent]
    if len(tied) == 1:
        return tied[0]
    return min(tied, key=lambda answer: (sum(levenshtein(answer, other) for other in answers), answer))


@lru_cache(maxsize=1 << 16)  # a tie compares the same few answers several times
def levenshtein(a: str, b: str) -> int:
    """Edit distance: insertions, deletions and substitutions that turn ``a`` into ``b``."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def type_of_answer(answer: str) -> str:
    """The paper's type of an answer."""
    text = " ".join(answer.lower().split())
    return next((name for name, pattern in _PATTERNS if pattern.fullmatch(text)), OTHER)


def type_of(record: Record, target: str | None, type_set: str) -> int:
    """Index, within ``type_set``, of the answer type of a labelled record with target answer ``target``."""
    name = record.answer_type or OTHER if type_set == OFFICIAL else type_of_answer(target or "")
    return TYPE_SETS[type_set].index(name)


class Targets(NamedTuple):
    """Targets of N records."""

    answer: Tensor  # int64 [N], index into the answer list, or IGNORED_TARGET
    answer_type: Tensor  # int64 [N]
    answerable: Tensor  # fp32 [N], in [0, 1]

    def select(self, rows: Tensor) -> Targets:
        """The targets of these rows."""
        return Targets(*(tensor[rows] for tensor in self))

    def to(self, device: torch.device) -> Targets:
        """The targets on ``device``."""
        return Targets(*(tensor.to(device) for tensor in self))


def make_targets(records: Sequence[Record], vocabulary: Vocabulary, recipe: Recipe) -> Targets:
    """Targets of labelled records by the recipe's settings; answers are looked up as they are written."""
    index = {answer: number for number, answer in enumerate(vocabulary.answers)}
    chosen = [vocabulary.target(record) for record in records]
    answers = [IGNORED_TARGET if target is None else index.get(target, IGNORED_TARGET) for target in chosen]
    types = [type_of(record, target, recipe.types) for record, target in zip(records, chosen, strict=True)]
    answerable = [_answerable(record, recipe.answerable_targets) for record in records]
    return Targets(*map(torch.tensor, (answers, types, answerable)))


def _answerable(record: Record, source: str) -> float:
    """The official label, or its mean with the share of annotators who found an answer."""
    label = float(record.answerable or 0)
    if source == LABEL:
        return label
    found = sum(answer not in UNANSWERABLE_LABELS for answer in record.answers) / len(record.answers)
    return (label + found) / 2


class AnswerScores:
    """Official accuracies of every answer of the list on N records, as a lookup table.

    Predictions are normalised once, when the table is built, so that scoring an epoch compares tensors only.
    """

    def __init__(self, records: Sequence[Record], answers: Sequence[str]) -> None:
        """Normalise the answer list and score the answers that annotators gave."""
        normal = [normalise(answer) for answer in answers]
        number = {answer: index for index, answer in enumerate(dict.fromkeys(normal))}
        self._normal = torch.tensor([number[answer] for answer in normal])  # int64 [V]
        given = np.full((len(records), ANSWERS_PER_QUESTION), -1, np.int64)
        scores = np.zeros((2, len(records), ANSWERS_PER_QUESTION))
        for row, record in enumerate(records):
            known = [answer for answer in dict.fromkeys(record.answers) if answer in number]
            for column, answer in enumerate(known):
                given[row, column] = number[answer]
                scores[0, row, column] = accuracy_leave_one_out(answer, record.answers)
                scores[1, row, column] = accuracy_min3(answer, record.answers)
        self._given, self._scores = torch.from_numpy(given), torch.from_numpy(scores)

    def select(self, rows: Tensor) -> AnswerScores:
        """The table of these rows."""
        selected = copy.copy(self)
        selected._given, selected._scores = self._given[rows], self._scores[:, rows]
        return selected

    def accuracies(self, predictions: Tensor) -> tuple[Tensor, Tensor]:
        """Leave-one-out and min(matches / 3, 1) accuracy, float64 [N] each, of predicted answers int64 [N]."""
        hit = self._normal[predictions.cpu()][:, None] == self._given
        leave_one_out, min3 = (hit * self._scores).sum(dim=2)
        return leave_one_out, min3
