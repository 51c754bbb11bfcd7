"""A filter that no setting switches off: it refuses prompts that put minors in a sexual context.

It runs wherever prompts are rendered, in generation, evaluation and serving. It is a word list over normalised text.
It errs on the side of refusing, and it is a floor under other measures, not a replacement.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

REFUSED = "refused_prompt"
MESSAGE = "the prompt is refused: it seems to put a minor in a sexual context"

HOMOGLYPHS = str.maketrans(
    "аеорсхуіјкнтмвѕԁɡɩıαοειικνρτυχη",
    "aeopcxyijkhtmbsdgiiaoeiikvptuxn",
)
LEET = {"0": "o", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i"}
LEET_ONES = ("i", "l")
LEET_SIGN = re.compile("[" + re.escape("".join(LEET)) + "1]")
OTHERS, OTHERS_BUT_SPACES = re.compile(r"[^a-z0-9]+"), re.compile(r"[^a-z0-9\s]+")
LETTERS_APART = re.compile(r"\b(?:[a-z0-9] ){2,}[a-z0-9]\b")
REPEATED = re.compile(r"([a-z])\1{2,}")

NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
AGE = rf"(?:1[0-7]|[1-9]|{NUMBERS})"
NOT_MINORS = re.compile(r"\b(?:no one|nobody|none|not|no persons?|no people) under (?:18|eighteen)\b|\badults? only\b")
MINORS = re.compile(
    r"\b(?:child(?:ren|s|hood|ish|like)?|kid(?:s|do|dos|die|dies|dy)?|toddlers?|bab(?:y|ies|yish)|infants?|newborns?"
    r"|minors?|under ?age[ds]?|pre ?teens?|tweens?|teens?|teen ?aged?|teen ?agers?|adolescents?|juveniles?|youngsters?"
    r"|school ?(?:girl|boy|child|kid)s?|schoolchildren|(?:kinder ?gartn?ers?|pre ?school(?:er)?s?|nursery)"
    r"|pre ?pubescent|pubescent|(?:young|little|small|tiny|school ?aged?) (?:girl|boy|lad|lass|son|daughter)s?"
    rf"|{AGE} ?(?:y(?:ea)?rs?) ?olds?|{AGE} ?y ?o|age[ds]? (?:of )?{AGE}"
    r"|under (?:the age of )?(?:18|eighteen))\b"
)
SEXUAL = re.compile(
    r"\b(?:naked(?:ness)?|nud(?:e|es|ity|ist|ists|ism)|topless|undress(?:ed|es|ing)?|unclothed|disrob(?:e|ed|es|ing)"
    r"|(?:without|no|removes?|removing|takes? off|taking off) (?:any |his |her |their |the )?cloth(?:es|ing)"
    r"|sex|sexy|sexier|sexual(?:ly|ity)?|sexuali[sz](?:e|ed|es|ing|ation)|erotic(?:a|ally|ism)?|porn\w*|nsfw|xxx|lewd\w*"
    r"|lust(?:ful|fully)?|seduc\w+|sensual\w*|arous\w+|lingerie|under ?wear|underpants|panties|briefs|thongs?|bikinis?"
    r"|brassieres?|bras?|fetish\w*|bondage|stripp(?:er|ers|ing)|strip ?tease|orgasm\w*|genital\w*|penis(?:es)?"
    r"|vagina\w*|breasts?|nipples?|buttocks|intercourse|masturbat\w+|molest\w*|rap(?:e|ed|es|ing|ist)|grop(?:e|ed|es|ing))\b"
)
ALONE = re.compile(
    r"\b(?:loli(?:s|con|cons|ta|tas)?|shota(?:s|con|cons)?|jail ?bait|p(?:a)?edophil\w*|child ?porn\w*)\b"
)
# What a negative prompt takes away: naming clothes there undresses, naming adults there makes younger.
CLOTHED = re.compile(
    r"\b(?:cloth(?:es|ed|ing|s)?|clad|dress(?:ed|es)?|cover(?:ed|s|ing)?|garments?|outfits?|wear(?:s|ing)?|shirts?"
    r"|t ?shirts?|pants|trousers|jeans|skirts?|shorts|coats?|jackets?|suits?|uniforms?|pyjamas|pajamas|modest\w*)\b"
)
ADULT = re.compile(
    r"\b(?:adult\w*|grown(?: ?ups?)?|matur\w+|old(?:er)?|elder(?:ly|s)?|aged|m[ae]n|wom[ae]n|lad(?:y|ies)|wrinkl\w+)\b"
)

SPACED = re.compile(r"\b(?:[a-z0-9] ){5,}[a-z0-9]\b")
MINOR_STEMS = re.compile(r"child|kid|toddler|teen|baby|infant|loli|minor|schoolgirl|schoolboy")
SEXUAL_STEMS = re.compile(r"naked|nud[ei]|undress|topless|sex|porn|erotic|lingerie|nsfw")


class Refusal(NamedTuple):
    """The reason that a prompt is refused; it never repeats the prompt."""

    reason: str
    message: str


class MinorSafetyFilter:
    """Refuses prompts that put minors in a sexual context."""

    def check(self, prompt: str, negative: str = "") -> Refusal | None:
        """Return the refusal of ``prompt``, or None when it is allowed.

        Args:
            prompt: What is to be drawn.
            negative: What is to be kept out of the image. Unsafe words are allowed there, but not those that complete
                a prompt: clothes beside a minor, adults beside a sexual context.
        """
        readings = _readings(prompt)
        # Words spelled with spaces between all letters have no word borders left: search for stems.
        spaced = [run.replace(" ", "") for text in readings for run in SPACED.findall(text)]
        minor = any(MINORS.search(NOT_MINORS.sub(" ", text)) for text in readings)
        minor = minor or any(MINOR_STEMS.search(run) for run in spaced)
        # One of both is no reason yet, and most prompts have neither.
        if minor or negative:
            sexual = any(SEXUAL.search(text) for text in readings) or any(SEXUAL_STEMS.search(run) for run in spaced)
            if negative:
                kept_out = _readings(negative)
                sexual = sexual or (minor and any(CLOTHED.search(text) for text in kept_out))
                minor = minor or (sexual and any(ADULT.search(text) for text in kept_out))
            if minor and sexual:
                return Refusal(REFUSED, MESSAGE)
        if any(ALONE.search(text) for text in readings):
            return Refusal(REFUSED, MESSAGE)
        return None


def _readings(prompt: str) -> set[str]:
    """Return the possible readings of a prompt: words of lower-case letters and digits, one space between.

    Look-alike letters, accents, invisible characters, digits for letters, spaced-out letters and repeated letters are
    folded. Most prompts have one reading, so equal ones are folded once.
    """
    plain = _fold(prompt)
    texts = {plain, *(_without_leet(plain, one) for one in LEET_ONES)}
    parted = {OTHERS.sub(" ", text) for text in texts} | {OTHERS_BUT_SPACES.sub("", text) for text in texts}
    joined = {LETTERS_APART.sub(lambda found: found.group().replace(" ", ""), text) for text in parted}
    words = {" ".join(text.split()) for text in parted | joined}
    once = {REPEATED.sub(r"\1", text) for text in words}
    twice = {REPEATED.sub(r"\1\1", text) for text in words}
    return words | once | twice


def _fold(prompt: str) -> str:
    """Return the prompt in lower case with look-alikes, accents and invisible characters folded."""
    if prompt.isascii() and prompt.isprintable():
        return prompt.lower()  # Nothing else is left to fold.
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", prompt).casefold())
    seen = "".join(c for c in decomposed if unicodedata.category(c) not in ("Cf", "Mn", "Cc") or c in "\n\t\r")
    return seen.translate(HOMOGLYPHS)


def _without_leet(text: str, one: str) -> str:
    """Return the text with digits and signs read as letters, in words that have letters too."""
    if LEET_SIGN.search(text) is None:
        return " ".join(text.split())
    table = str.maketrans({**LEET, "1": one})
    return " ".join(word.translate(table) if re.search(r"[a-z]", word) else word for word in text.split())
