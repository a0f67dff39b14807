"""Words of a caption, as the COCO caption evaluation counts them."""

import re

from lit_depth.functional.arguments import checked

# Words whose period belongs to them wherever they stand; others ("ex.", "min.") lose it.
_ABBREVIATION = (
    r"adm|al|ala|apr|ariz|assn|atty|aug|ave|bhd|bldg|blvd|bros|calif|capt|cf|cmdr|co|col|colo|comdr|conn|corp|cpl|"
    r"ct|dak|dec|dept|dr|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|gov|govs|hon|inc|ind|insp|intl|jan|jr|jul|jun|kan|"
    r"ky|lt|ltd|maj|mar|messrs|mfg|mich|minn|mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|natl|neb|nev|nov|oct|okla|"
    r"penn|pfc|ph\.d|pres|prof|pty|pvt|rd|rep|reps|rev|sen|sens|sep|sept|sgt|spc|sq|sr|st|ste|supt|tel|tenn|thu|"
    r"thurs|tue|tues|univ|va|vs|vt|wed|wis|wyo"
)
# Capitalised words that open a sentence: the period of a single letter before them ("plan B. The") ended the last one.
_OPENER = "A|An|As|At|But|He|Her|If|In|It|Many|One|She|So|Some|That|The|There|These|They|This|We|What|When|You"
# Two words written as one, and where the second begins.
_MERGED = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3, "'tis": 2, "'twas": 2, "y'all": 2}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# Quotation marks, long dashes and the ellipsis are dropped and end a word; the curly apostrophe is one.
_CHARACTERS = str.maketrans(
    {"’": "'", "£": " # ", "€": " $ ", "¢": " cents ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 "}
    | dict.fromkeys('‘“”„«»‹›"–—…', " ")
)
_CLITIC = re.compile(r"(?<=\w)(?=n't(?!\w)|'(?:s|m|d|n|ll|re|ve)(?!\w))", re.IGNORECASE)
# What no alternative takes is dropped: periods, commas, colons, hyphens and apostrophes that stand alone.
_TOKEN = re.compile(
    rf"""
      [\w.+-]+@\w+(?:\.\w+)+ | https?://[^\s<>]*[\w/] | </?[a-z][^<>\s]*>      # me@x.com   http://x.com/a   <unk>
    | (?:{_ABBREVIATION})\.(?!\w) | no\.(?=\s?\d)                          # mr.   no. 7
    | (?:[a-z]\.){{2,}}(?!\w)                                              # u.s.
    | [a-z]\.(?=\s+\S)(?!\s+(?-i:{_OPENER})\b)                             # j. crew
    | n't(?!\w) | '(?:s|m|d|ll|re|ve)(?!\w)                                # do n't   dog 's
    | (?<!\d)'(?:n'?|em|cause|til|tis|twas|\d\ds?)(?!\w) | ol'(?!\w)       # rock 'n' roll   the '60s
    | (?-i:[A-Z]+&[A-Z]+)                                                  # AT&T
    | [-+]?\d*(?:[.,:]\d+)+ | (?<!\w)[-+]\d+(?![\w/-])                     # 1,000.5   10:30   -5
    | (?:[#@](?=[^\W\d_]))?                                                # stop-sign   and/or   o'clock   x.com
      [^\W_]+(?:[-_/][^\W_]+ | (?<=[^\W\d_])['.!?](?=[^\W\d_])[^\W_]+)*
    | [!?]{{2,}} | _+ | \*+ | [^\w\s\U00010000-\U0010ffff'`.,:;!?-]        # what !!!   $   %   but not emoji
    """,
    re.VERBOSE | re.IGNORECASE,
)


@checked
def tokenize_caption(text: str) -> list[str]:
    """Split a caption into the lower-case words that CIDEr compares.

    Follows the tokenizer of the COCO caption evaluation (Stanford's ``PTBTokenizer`` with ``-lowerCase``, then 17
    punctuation marks removed; Chen et al., 2015, https://arxiv.org/abs/1504.00325) for the English of captions:
    clitics are words of their own, hyphenated words, numbers and abbreviations stay whole, brackets stay as words
    (``-lrb-``), and so do repeated marks (``!!!``). It does without Java. Smileys, HTML entities and telephone
    numbers come out differently, and a single letter at the end always loses its period, where the Java tokenizer lets
    the first word of the next caption decide.

    Args:
        text: One caption; line breaks are white space.

    Returns:
        The words, in order.

    Example:
        >>> tokenize_caption("A man's well-groomed horse isn't here, at 10:30 a.m.")
        ['a', 'man', "'s", 'well-groomed', 'horse', 'is', "n't", 'here', 'at', '10:30', 'a.m.']
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(_CLITIC.sub(" ", text.translate(_CHARACTERS))):
        token = token.lower()
        middle = _MERGED.get(token)
        if middle is None:
            tokens.append(_BRACKETS.get(token, token))
        else:
            tokens += [token[:middle], token[middle:]]
    return tokens
