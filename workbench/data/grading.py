"""Grade an answer against the reference answer by a rule: 1.0 right, 0.0 wrong, None undecided.

exact     the whole text is the answer
final     the final answer (see `final_answer`) is the answer; without a marker, the last words of the text are
choice    the final answer names the same letter A to H: B, (B), B., "option B", "B: red"
numeric   the final answer holds exactly one number, equal within `tolerance`; without a marker, the text's last number
contains  the text contains the answer as whole words

Chinese, Japanese, Korean, Thai, Lao, Khmer, Arabic, Hebrew, Hindi, Russian and Greek are graded as English is
(scripts.py), with their digits, punctuation, particles, attached articles, "the answer is" and denials. In scripts
without spaces a single sign may be part of another word: then, and for numbers in Chinese signs, the result is None.

Decimal numbers are compared by value, except under "exact" (numerals.py). What lies between <think> and </think> is
no answer, nor is thinking that never ends.

Case, spaces, Markdown stars, outer quotes and end punctuation never count. The rules do not understand language; each
docstring says where its rule errs. No rule accepts hedging ("red or blue") or a denial ("not red"), except "contains".
"""

import math
import re
import unicodedata
from fractions import Fraction

from workbench.data import scripts
from workbench.data.numerals import numbers_in, same_number, spell_numbers
from workbench.errors import ConfigError, require_one_of

GRADERS = ("final", "exact", "choice", "numeric", "contains")
TOLERANCE = 1e-6  # relative error of rounding

_MARKER = re.compile(
    r"(?<![<\w/])answer\b(?: to\b[^.:\n]{0,80}?(?=\bis\b|:))?[\s:=*_→]*"
    r"(?:(?:is|was|are|would be|should be)\b[\s:=*_]*)?",
    re.I,
)
_BOXED = re.compile(r"\\boxed\s*\{")
_TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.I | re.S)
_TAG_END = re.compile(r"</answer>.*", re.I | re.S)
_WRAPPED = re.compile(r"(?:<answer>(.*)</answer>|\$*\\boxed\s*\{(.*)\}\$*)\.?", re.I | re.S)
_LATEX_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf|tt)|mbox|emph|operatorname)\s*\{([^{}]*)\}")
_WITH_UNIT = re.compile(
    r"(?<![\w.,])(\d[\d.,]*+)([cmkµ]?m[23]?|[kmµ]?g|lbs?|oz|m?l|mph|km/h|[km]?hz|[mgk]b|[mk]?w|ms|px|min)(?![^\W_])"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n")
_REASON = re.compile(r"[,;]?\s+(?:because|since)\b.*|,\s*not\s.*", re.I | re.S)
_LEADING_LETTER = re.compile(r"(?:(?:the )?(?:option|choice|letter)\s*)?[(\[]?([a-h])(?=$|\s*[)\].:])", re.I)
_LONE_LETTER = re.compile(r"[(\[]([A-Ha-h])[)\]]|(?<![\w'])([A-H])(?=[.)*]{0,4}$)")
_MARKERS_TRIED = 8
_LOOK_BACK = 60  # characters searched for a denial
_LONGEST_ANSWER = 1_000  # characters after a marker
_OUTER = " \t\n\r\"'`*_$“”‘’.,;:!?"
_ARTICLES = ("a", "an", "the")
_DENIALS = ("not", "no", "never", "neither", "nor", "cannot", "without", *scripts.DENIALS)
_HEDGES = ("or", *scripts.HEDGES)


def grade(
    text: str, answer: str | None, grader: str = "final", *, tolerance: float = TOLERANCE, prefix: str = ""
) -> float | None:
    """Return 1.0 if `text` gives `answer` under the rule `grader`, 0.0 if not, None if the rule cannot compare them.

    tolerance  largest relative error under "numeric" (0.05 accepts five percent)
    prefix     text that the prompt puts before `text`, where <think> may open
    Raises     ConfigError as check_grading
    """
    check_grading(grader, tolerance)
    if answer is None or not normalize(answer):
        return None
    text = without_thoughts(text, prefix)
    answer = scripts.unify(spell_numbers(unwrap(answer)))
    text = scripts.unify(spell_numbers(_TAG_END.sub("", text) if "<answer>" not in text.lower() else text))
    if _SENTENCE_END.search(answer.strip()):
        text = _without_inner_ends(text, answer)
    if grader == "numeric":
        return _grade_numeric(text, answer, tolerance)
    if grader == "choice":
        return _grade_choice(text, answer)
    same = {"exact": _is_exact, "final": _is_final, "contains": _is_contained}[grader]
    right = same(text, answer)
    return None if right is None else float(right)


def check_grading(grader: str, tolerance: float = TOLERANCE) -> None:
    """Raise ConfigError for an unknown grader, or for a tolerance that the grader does not use."""
    require_one_of("grader", grader, GRADERS)
    if not 0.0 <= tolerance < math.inf:
        raise ConfigError(f"the tolerance must be a relative error of 0 or more, got {tolerance:g}.")
    if tolerance != TOLERANCE and grader != "numeric":
        raise ConfigError(
            f'the tolerance {tolerance:g} applies to grader "numeric" only, got "{grader}". Choose numeric '
            "(evaluation.grader, --grader), or remove the tolerance."
        )


def without_thoughts(text: str, prefix: str = "") -> str:
    """Return the text after the last </think>, up to a <think> that is not closed; "" if `prefix` opens it so."""
    _, closing, rest = text.rpartition("</think>")
    if not closing and prefix.rfind("<think>") > prefix.rfind("</think>"):
        return ""
    return rest.partition("<think>")[0]


def _without_inner_ends(text: str, answer: str) -> str:
    """Remove the periods inside the answer where they end no sentence: St. Louis, J. K. Rowling, Dr. No."""
    parts = [re.escape(part) for part in re.split(r"[.!?]?\s+", answer.strip(_OUTER)) if part]
    return re.sub(r"[.!?]?\s+".join(parts), lambda match: _SENTENCE_END.sub(" ", match.group()), text, flags=re.I)


def unwrap(answer: str) -> str:
    """Remove <answer>...</answer> or \\boxed{...} around a reference answer."""
    wrapped = _WRAPPED.fullmatch(answer.strip())
    if wrapped is None or not normalize(inner := _LATEX_TEXT.sub(r"\1", wrapped.group(1) or wrapped.group(2) or "")):
        return answer
    return inner


def normalize(text: str) -> str:
    """Normalize a text: NFKC, lower case, single spaces, a plain minus, no punctuation at its ends."""
    return _plain(text).strip(_OUTER)


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).replace("−", "-").replace("’", "'").casefold().replace("i\u0307", "i")
    return _WITH_UNIT.sub(r"\1 \2", scripts.unify(" ".join(folded.split())))


def final_answer(text: str) -> str:
    """Return the part of the text that states the answer, verbatim.

    It is the last of `\\boxed{X}`, `<answer>X</answer>` and "answer X" (also "answer: X", "the answer is X", "answer =
    X") up to the end of its sentence, without a reason ("because ...") or a contrast (", not ..."); without any of
    them, the last sentence. Errs on answers of several sentences, and on "answer" used as a common word after the
    answer.
    """
    text = without_thoughts(text)
    marked = _marked_answer(text)
    if marked is not None:
        return marked
    sentences = [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip(_OUTER)]
    return sentences[-1] if sentences else ""


def _marked_answer(text: str) -> str | None:
    """Return the part after the last marker, "" if a box is never closed, None if the text has no marker."""
    candidates = [(match.start(), match.group(1)) for match in list(_TAG.finditer(text))[-1:]]
    candidates += [
        (match.start(), _to_sentence_end(text[match.end() :])) for match in list(scripts.MARKER.finditer(text))[-1:]
    ]
    for match in list(_MARKER.finditer(text))[: -_MARKERS_TRIED - 1 : -1]:
        phrase = _to_sentence_end(text[match.end() :])
        if phrase.strip(_OUTER):  # otherwise "answer" ends the sentence and is not a marker
            candidates.append((match.start(), phrase))
            break
    candidates += [(match.start(), _braced(text, match.end())) for match in list(_BOXED.finditer(text))[-1:]]
    return max(candidates)[1].strip() if candidates else None


def _braced(text: str, start: int) -> str:
    """Return the text from `start` to the brace that closes the one before it, with `\\text{...}` unwrapped."""
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return _LATEX_TEXT.sub(r"\1", text[start:end])
    return ""  # cut off before the brace: no answer


def _to_sentence_end(text: str) -> str:
    sentence = _SENTENCE_END.split(text.lstrip(), maxsplit=1)[0]
    return scripts.REASON.sub("", _REASON.sub("", " ".join(sentence[:_LONGEST_ANSWER].split())))


def _words(text: str) -> list[str]:
    return scripts.words(normalize(text))


def _is_same(word: str, expected: str) -> bool:
    return scripts.is_same_word(word, expected) or same_number(word, expected)


def _without_article(words: list[str]) -> list[str]:
    return words[1:] if len(words) > 1 and words[0] in _ARTICLES else words


def _is_withdrawn(before: list[str], blockers: tuple[str, ...]) -> bool:
    """Whether the last words before an answer deny it or offer it as one of several, ignoring articles."""
    words = [word for word in before[-3:] if word not in _ARTICLES]
    return bool(words) and (words[-1] in blockers or words[-1].endswith("n't"))


def _is_exact(text: str, answer: str) -> bool:
    """Errs on any other wording of the same answer."""
    return normalize(text) == normalize(answer)


def _is_final(text: str, answer: str) -> bool | None:
    """Errs on synonyms, units ("5 cm" is not "5"), and an unmarked answer that does not end the last sentence.

    None for a short answer at the end of a text without spaces, since it may be part of another word.
    """
    expected = _without_article(_words(answer))
    if not expected:  # signs only, such as "?" or "+"
        return normalize(final_answer(text)) == normalize(answer)
    marked = _marked_answer(text)
    if marked is None and len(expected) == 1 and expected[0] in scripts.VERDICTS and (first := scripts.verdict(text)):
        return first == expected[0]
    statement = normalize(final_answer(text) if marked is None else marked)
    is_number = re.fullmatch(r"[\d.,]+", expected[-1]) is not None
    results = [
        _is_stated(part, expected, is_whole=marked is not None)
        for part in dict.fromkeys((statement, scripts.strip_ending(statement, is_number=is_number)))
    ]
    return True if True in results else None if None in results else False


def _is_stated(statement: str, expected: list[str], *, is_whole: bool) -> bool | None:
    """Whether a statement is the answer, or ends with it unless `is_whole`."""
    words = scripts.words(statement)
    if is_whole:
        words = _without_article(words)
        return len(words) == len(expected) and all(map(_is_same, words, expected))
    start = len(words) - len(expected)
    if start < 0 or not all(map(_is_same, words[start:], expected)):
        return False
    before = statement[: statement.rfind(words[start])] if len(expected) == 1 else _before(statement, words, start)
    if _is_withdrawn(words[:start], _DENIALS + _HEDGES) or scripts.is_denied(before, "", hedges=True):
        return False
    return None if scripts.is_lone_sign(expected) and not scripts.begins_a_word(before) else True


def _before(text: str, words: list[str], start: int) -> str:
    """Return the part of a text before one of its words."""
    end = 0
    for word in words[:start]:
        end = text.index(word, end) + len(word)
    return text[: text.index(words[start], end)]


def _is_contained(text: str, answer: str) -> bool | None:
    """Errs on hedges: "red or blue" contains red. A denial just before the answer ("not red") does not match.

    None if a short answer occurs only where it may be part of another word, in a text without spaces.
    """
    expected, plain = _words(answer), normalize(text)
    words, result = scripts.words(plain), False
    ends, end = [], 0
    for word in words:
        end = plain.index(word, end) + len(word)
        ends.append(end)
    for start in range(len(words) - len(expected) + 1) if expected else ():
        if not _is_same(words[start], expected[0]):
            continue
        stop = start + len(expected)
        if not all(map(_is_same, words[start:stop], expected)):
            continue
        before = plain[: ends[start] - len(words[start])]
        if _is_withdrawn(words[max(0, start - 3) : start], _DENIALS) or scripts.is_denied(
            before[-20:], plain[ends[stop - 1] :][:20]
        ):
            continue
        if not scripts.is_lone_sign(expected) or scripts.begins_a_word(before[-1:]):
            return True
        result = None
    return result


def _grade_numeric(text: str, answer: str, tolerance: float) -> float | None:
    """Errs on number words ("ten"), decimal commas, percentages compared with fractions, and "10 of 12"."""
    expected = _numbers(answer)
    if len(expected) != 1:
        return None
    marked = _marked_answer(text)
    numbers = _numbers(text if marked is None else marked)
    if not numbers and scripts.has_numeral(text if marked is None else marked):
        return None  # 三
    if not numbers or (marked is not None and len(numbers) > 1):
        return 0.0
    before, number = numbers[-1]
    if _is_withdrawn(_words(before), _DENIALS + _HEDGES):
        return 0.0
    right = expected[0][1]
    return float(abs(number - right) <= Fraction(tolerance) * abs(right))


def _numbers(text: str) -> list[tuple[str, Fraction]]:
    """List the numbers of the text with the text before each."""
    plain = _plain(text)
    return [(plain[max(0, start - _LOOK_BACK) : start], number) for start, number in numbers_in(plain)]


def _grade_choice(text: str, answer: str) -> float | None:
    """Errs on "B is right, not A" without a marker, and on options that are named by their text only."""
    expected = _LEADING_LETTER.match(answer.strip(_OUTER))
    if expected is None:
        return None
    marked = _marked_answer(text)
    if not text.isascii():
        text, marked = (part and scripts.strip_ending(part, is_number=False) for part in (text, marked))
    if marked is None:
        letter = _whole_letter(text) or _last_lone_letter(text)
    else:
        leading = _LEADING_LETTER.match(marked.strip(_OUTER))
        letter = leading.group(1) if leading is not None else _last_lone_letter(marked)
    return float(letter is not None and letter.upper() == expected.group(1).upper())


def _whole_letter(text: str) -> str | None:
    """Return the letter of a text that is only a letter, or that starts like an option: "B. red"."""
    plain = text.strip(_OUTER)
    leading = _LEADING_LETTER.match(plain)
    if leading is None or len(_LONE_LETTER.findall(plain)) > 1:
        return None
    return leading.group(1)


def _last_lone_letter(text: str) -> str | None:
    """Return the last letter in brackets or at the text's end, unless the words before it deny or hedge it."""
    plain = text.strip()
    matches = list(_LONE_LETTER.finditer(plain))
    before = plain[max(0, matches[-1].start() - _LOOK_BACK) : matches[-1].start()] if matches else ""
    if not matches or _is_withdrawn(_words(before), _DENIALS + _HEDGES):
        return None
    return matches[-1].group(1) or matches[-1].group(2)
