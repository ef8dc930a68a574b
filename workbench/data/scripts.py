"""Writing systems for grading: marks, digits, words without spaces, particles, denials, "the answer is".

unify normalizes a text to ASCII digits and punctuation with spaces between scripts. words splits it. Chinese, Japanese,
Thai, Lao, Khmer and Burmese have no spaces between words: each sign, and each run of katakana, is a word there.
"""

import re
import unicodedata

_MARKS = "".join(chr(code) for code in range(0x300, 0xABF0) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3041-\u3096"  # and hiragana
_SOUTH_EAST = (
    "\u0e01-\u0e30\u0e32\u0e40-\u0e46\u0e81-\u0eb0\u0eb2\u0ebd-\u0ec6"
    "\u1000-\u102a\u1050-\u1055\u1780-\u17b3\u0f40-\u0f6c"
)
_SPACELESS = f"{_HAN}{_KATAKANA}{_SOUTH_EAST}"
_HANGUL = "\uac00-\ud7a3"
_LETTER = f"(?:(?![{_SPACELESS}])[^\\W_]|[{_MARKS}])"
_WORD = re.compile(
    f"(?:(?<![\\w.,])[-+](?=\\d))?{_LETTER}+(?:[.,:/'-]{_LETTER}+)*(?:(?<=[a-z])(?:\\+\\+?|#)(?![\\w+#]))?"
    f"|[{_KATAKANA}]+|[{_SPACELESS}][{_MARKS}]*"
)
_BETWEEN_SCRIPTS = re.compile(
    f"(?<=[{_SPACELESS}{_HANGUL}{_MARKS}])(?=[-+]?[A-Za-z0-9])(?<![A-Za-z0-9][{_MARKS}])"
    f"|(?<=[A-Za-z0-9])(?=[{_SPACELESS}{_HANGUL}])"
)
_BETWEEN_SIGNS = re.compile(f"(?<=[{_SPACELESS}{_MARKS}])[ \\t]+(?=[{_SPACELESS}])")
_IN_NUMBER = re.compile(r"(?<=\d)([,:]) (?=\d)")
_DROPPED = re.compile(
    "[\u00ad\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u0652\u0670\u0640\u200b-\u200f\u2060\ufeff]"
)  # vowel points

_SIGNS = {
    ord(sign): text
    for signs, text in (
        ("。｡।॥۔។៕։።။", ". "),
        ("！", "! "),
        ("？؟", "? "),
        ("，、､،", ", "),
        ("：", ": "),
        ("；", "; "),
        ("٫", "."),
        ("٬", ","),
        ("٪", "%"),
        ("「」『』《》〈〉【】〔〕«»„", '"'),
        ("\u0e33", "\u0e4d\u0e32"),
        ("\u0eb3", "\u0ecd\u0eb2"),
        ("أإآٱ", "ا"),
        ("ё", "е"),
        ("Ё", "Е"),
        ("\u3000", " "),
    )
    for sign in signs
}
_WIDE = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFEF)}
_TABLE = _WIDE | _SIGNS


def unify(text: str) -> str:
    """Normalize to ASCII digits, ASCII punctuation with a space after it, spaces between scripts, no vowel points."""
    if text.isascii():
        return text
    text = _DROPPED.sub("", text.translate(_TABLE))
    digits = {char for char in text if char > "\x7f" and char.isdecimal()}
    if digits:
        text = text.translate({ord(char): str(unicodedata.decimal(char)) for char in digits})
    text = _IN_NUMBER.sub(r"\1", text)
    return _BETWEEN_SCRIPTS.sub(" ", _BETWEEN_SIGNS.sub("", text))


def is_blank(text: str) -> bool:
    """Whether a text has only invisible characters: blanks, zero-width and control characters, a byte order mark."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def words(text: str) -> list[str]:
    """Split a unified text into words; in scripts without spaces, into signs with their marks."""
    return _WORD.findall(text)


def is_spaceless(word: str) -> bool:
    """Whether a word is a sign of a script without spaces, which may be part of a longer word."""
    return re.match(f"[{_HAN}{_SOUTH_EAST}]", word) is not None


def is_lone_sign(expected: list[str]) -> bool:
    """Whether an answer is so short that another word may contain it: one sign of Chinese, two of Thai, and so on."""
    is_short = len(expected) == 1 or (len(expected) == 2 and re.match(f"[{_SOUTH_EAST}]", expected[0]) is not None)
    return is_short and all(map(is_spaceless, expected))


def _any(texts: str) -> str:
    return "|".join(sorted((unify(text) for text in texts.split()), key=len, reverse=True))


# "the answer is", with a colon or a verb behind it
MARKER = re.compile(
    "(?:(?:(?:正确|正確|最终|最終|参考|參考)?(?:答案|答え|解答|正解|回答|答))[^\\S\\n]*"
    "(?:[:=→]|应该是|應該是|就是|是|为|為|は)"
    f"|(?<![{_HANGUL}])(?:최종 ?)?(?:정답|답변|답)[^\\S\\n]*(?:[:=→]|은|는)"
    f"|(?:{_any('คำตอบ ຄຳຕອບ ຄໍາຕອບ ចម្លើយ အဖြေ')})[^\\S\\n]*(?:[:=→]|คือ|ແມ່ນ|គឺ)"
    f"|\\b(?:{_any('ответ απάντηση απαντηση الجواب الإجابة جواب إجابة תשובה התשובה उत्तर जवाब উত্তর')})[^\\S\\n]*"
    f"(?:[:=→—–-]|(?:{_any('είναι هو هي היא הוא это')})(?=\\s)))[^\\S\\n]*",
    re.I,
)
REASON = re.compile(
    "[,;]?\\s*(?:因为|因為|なぜなら|왜냐하면|เพราะ)[\\s\\S]*|,\\s*(?:而不是|不是|而非)[\\s\\S]*"
    + f"|,?\\s+(?:{_any('потому так-как لأن כי क्योंकि επειδή γιατί')})\\b[\\s\\S]*".replace("-", " ")
    + f"|,\\s*(?:{_any('а-не όχι وليس ולא न-कि')})\\b[\\s\\S]*".replace("-", " "),
    re.I,
)
_INSTEAD = re.compile("而是|ではなく|じゃなく|아니라|아닌")  # "not X but"
_ENDING = re.compile(
    f"(?:{_any('です でした だ である ですね ですよ だよ になります となります')}"
    f"|{_any('입니다 이다 이에요 예요 이야 이죠 다')}|{_any('है हैं था थी थे')}|{_any('ครับ ค่ะ คะ')}|[的了呢啊哦吧ね])$"
)
_COUNTER = re.compile("(?<=\\d) ?[个個只隻条條张張把辆輛本件位头頭匹座块塊片朵颗顆枚台匹つ人名개명마리대권장]$")
_DENIED_BEFORE = re.compile(
    f"(?:{_any('不是 不 没有 沒有 没 沒 非 並非 并非 无 無')}|{_any('ไม่ใช่ ไม่ មិនមែន មិន ບໍ່ແມ່ນ ບໍ່')})$"
)
_OFFERED_BEFORE = re.compile(f"(?:{_any('或者 或是 或 还是 還是 または もしくは か หรือ ឬ ຫຼື')})$")
_DENIED_AFTER = re.compile(
    "\\s*(?:(?:では|じゃ)(?:ない|ありません|なく|なかった)|でない|(?:이|가|은|는|것은)?\\s*(?:아니|아닙|아닌|아님)|नहीं|नही|မဟုတ်)"
)
_BEFORE_A_WORD = re.compile(
    "[是为為叫有在は이の个個只隻条條张張把辆輛本件位头頭匹座块塊片朵颗顆枚台一二两兩三四五六七八九十\\W\\d]$"
)
_PARTICLES = frozenset(
    [
        *("은", "는", "이", "가", "을", "를", "의", "에", "도", "로", "으로", "과", "와", "만", "이나", "나", "에서"),
        *(
            "입니다",
            "이다",
            "다",
            "이에요",
            "예요",
            "이며",
            "이고",
            "라고",
            "이라고",
            "인",
            "임",
            "이었습니다",
            "였습니다",
        ),
    ]
)
DENIALS = tuple(
    unify(word)
    for word in [
        *("не", "ни", "нет", "δεν", "όχι", "μη", "ليس", "ليست", "لا", "غير", "לא", "אינו", "אינה", "אין"),
        *("nicht", "kein", "keine", "keinen", "nie", "pas", "jamais", "sans", "ni", "non", "não", "nem", "sem"),
        *("nunca", "jamás"),
        *("niet", "geen", "inte", "ikke", "bukan", "tidak", "không"),
    ]
)  # words before what they deny
HEDGES = tuple(
    unify(word)
    for word in [
        *("или", "ή", "أو", "או", "या", "또는", "혹은", "아니면", "অথবা"),
        *("oder", "ou", "o", "eller", "lub", "veya", "atau", "hoặc"),
    ]
)
VERDICTS = tuple(
    unify(word)
    for word in [
        *("yes", "no", "ja", "nein", "oui", "non", "sí", "si", "sim", "não", "да", "нет", "ναι", "όχι"),
        *("نعم", "لا", "כן", "לא", "हाँ", "हां", "नहीं", "네", "예", "아니요"),
        *("はい", "いいえ", "是", "否", "不是", "ใช่", "ไม่ใช่"),
    ]
)  # answers that may be followed by a sentence: "No, it is red."
_VERDICT = re.compile(f"\\W*({'|'.join(sorted(VERDICTS, key=len, reverse=True))})\\s*[,.;:!]", re.I)


def verdict(text: str) -> str:
    """Return the yes or no at the start of a unified text, in lower case, if punctuation follows it; else ""."""
    match = _VERDICT.match(text)
    return match.group(1).casefold() if match else ""


def strip_ending(text: str, *, is_number: bool) -> str:
    """Remove "not X but", a final verb or particle, and the counter after a number from a statement."""
    for instead in list(_INSTEAD.finditer(text))[-1:]:
        if instead.group() != "而是" or "不是" in text[: instead.start()]:
            text = text[instead.end() :].lstrip(" ,、")
    for _ in range(3):
        shorter = _ENDING.sub("", text.rstrip(" .,!?;:\"'")).rstrip()
        shorter = _COUNTER.sub("", shorter) if is_number else shorter
        if shorter == text or not shorter:
            break
        text = shorter
    return text


def is_denied(before: str, after: str, *, hedges: bool = False) -> bool:
    """Whether the words around an answer deny it, or offer it as one of several: 不是红色, 赤ではない, लाल नहीं."""
    before = before.rstrip(" \"'(")
    offered = hedges and _OFFERED_BEFORE.search(before) is not None
    return offered or _DENIED_BEFORE.search(before) is not None or _DENIED_AFTER.match(after) is not None


def has_numeral(text: str) -> bool:
    """Whether a text has numbers in Chinese signs, which the graders do not parse: 三, 十二."""
    return re.search("[〇零一二两兩三四五六七八九十百千万萬]", text) is not None


def begins_a_word(before: str) -> bool:
    """Whether a new word surely begins after a text in a script without spaces."""
    return not before or _BEFORE_A_WORD.search(before) is not None


def is_same_word(word: str, expected: str) -> bool:
    """Whether two words are equal except for a Korean particle after, or an Arabic or Hebrew article before."""
    if word == expected:
        return True
    if word.startswith(expected) and re.match(f"[{_HANGUL}]", word):
        return word[len(expected) :] in _PARTICLES
    longer, shorter = (word, expected) if len(word) > len(expected) else (expected, word)
    return any(longer == article + shorter and len(shorter) > 1 for article in ("ال", "ה"))
