"""The words that the grammar chooses from, and the forms that they take."""

from __future__ import annotations

from typing import NamedTuple

WOMEN = ("Anna", "Clara", "Emma", "Grace", "Ines", "Julia", "Lucy", "Maria", "Nora", "Sara")
MEN = ("Adam", "Ben", "David", "Felix", "Hugo", "Ivan", "Leo", "Mark", "Paul", "Tom")
PLACES = (
    "Athens", "Berlin", "Cairo", "Dublin", "Lima", "Lisbon", "London", "Madrid",
    "Oslo", "Paris", "Prague", "Rome", "Tokyo", "Vienna",
)  # fmt: skip
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "brown", "grey", "orange", "purple")
ADJECTIVES = (
    "big", "small", "old", "new", "happy", "sad", "quiet", "loud", "heavy", "clean", "cold", "warm",
    "empty", "strange",
)  # fmt: skip


class Noun(NamedTuple):
    """A noun in both numbers, and the concept that it names."""

    singular: str
    plural: str
    kind: str


NOUNS = (
    *(
        Noun(singular, plural, "animal")
        for singular, plural in (
            ("cat", "cats"), ("dog", "dogs"), ("horse", "horses"), ("bird", "birds"),
            ("mouse", "mice"), ("sheep", "sheep"), ("fox", "foxes"), ("cow", "cows"),
            ("goose", "geese"), ("rabbit", "rabbits"), ("owl", "owls"), ("wolf", "wolves"),
        )
    ),
    *(
        Noun(singular, plural, "food")
        for singular, plural in (
            ("apple", "apples"), ("pear", "pears"), ("cake", "cakes"), ("egg", "eggs"),
            ("onion", "onions"), ("potato", "potatoes"), ("carrot", "carrots"),
            ("cherry", "cherries"), ("nut", "nuts"), ("fig", "figs"), ("loaf", "loaves"),
        )
    ),
    *(
        Noun(singular, plural, "thing")
        for singular, plural in (
            ("book", "books"), ("box", "boxes"), ("key", "keys"), ("lamp", "lamps"),
            ("chair", "chairs"), ("hat", "hats"), ("letter", "letters"), ("boat", "boats"),
            ("knife", "knives"), ("ball", "balls"), ("coin", "coins"), ("umbrella", "umbrellas"),
            ("map", "maps"), ("bag", "bags"),
        )
    ),
)  # fmt: skip
FOODS = tuple(noun for noun in NOUNS if noun.kind == "food")
HOLDABLE = tuple(noun for noun in NOUNS if noun.kind != "animal")
COUNTED = tuple(noun for noun in NOUNS if noun.singular != noun.plural)


class Verb(NamedTuple):
    """The forms of a verb."""

    base: str
    third: str
    past: str
    gerund: str


WITH_OBJECT = tuple(
    Verb(*forms.split())
    for forms in (
        "see sees saw seeing", "find finds found finding", "buy buys bought buying",
        "carry carries carried carrying", "paint paints painted painting",
        "like likes liked liking", "lose loses lost losing", "bring brings brought bringing",
        "draw draws drew drawing", "sell sells sold selling", "need needs needed needing",
        "count counts counted counting",
    )
)  # fmt: skip
WITH_FOOD = tuple(
    Verb(*forms.split())
    for forms in ("eat eats ate eating", "cook cooks cooked cooking", "cut cuts cut cutting")
)
WITHOUT_OBJECT = tuple(
    Verb(*forms.split())
    for forms in (
        "sleep sleeps slept sleeping", "sing sings sang singing", "wait waits waited waiting",
        "jump jumps jumped jumping", "laugh laughs laughed laughing", "swim swims swam swimming",
        "rest rests rested resting", "dance dances danced dancing",
    )
)  # fmt: skip
WITH_PLACE = tuple(
    Verb(*forms.split())
    for forms in (
        "walk walks walked walking", "go goes went going", "drive drives drove driving",
        "travel travels travelled travelling", "fly flies flew flying", "run runs ran running",
    )
)  # fmt: skip

TENSES = ("past", "present", "future")
WHEN = {"past": "yesterday", "present": "today", "future": "tomorrow"}
NEAR = ("near", "behind", "under", "beside")
LETTERS = ("p", "q", "r", "s", "t", "u", "v", "w")
VARIABLES = ("x", "y", "z", "n", "m", "k")
FUNCTIONS = ("f", "g", "h")
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))

CLOSED_CLASS = (
    *"0123456789+-*=><.,;:?#\"()[]{}",
    "a", "after", "an", "and", "answered", "are", "asked", "assert", "be", "because", "before",
    "between", "born", "but", "comes", "day", "days", "def", "did", "do", "does", "each", "else",
    "equals", "first", "for", "from", "had", "has", "have", "he", "her", "him", "how", "i", "if",
    "in", "is", "larger", "let", "many", "meeting", "minus", "more", "never", "no", "not", "on",
    "or", "plus", "print", "range", "return", "said", "she", "smaller", "so", "some", "than", "the",
    "then", "there", "they", "times", "to", "was", "were", "what", "where", "who", "will", "yes",
    "you",
)  # fmt: skip
"""Digits, marks and the words of the templates."""


def vocabulary() -> tuple[str, ...]:
    """All words that a document can contain, sorted, each once.

    Example:
        >>> words = vocabulary()
        >>> "seven" in words, len(words) == len(set(words)), len(words) < 600
        (True, True, True)
    """
    verbs = (*WITH_OBJECT, *WITH_FOOD, *WITHOUT_OBJECT, *WITH_PLACE)
    words = {
        *WOMEN, *MEN, *PLACES, *MONTHS, *WEEKDAYS, *NUMBER_WORDS, *COLOURS, *ADJECTIVES,
        *(form for noun in NOUNS for form in (noun.singular, noun.plural)),
        *(form for verb in verbs for form in verb),
        *WHEN.values(), *NEAR, *LETTERS, *VARIABLES, *FUNCTIONS, *CLOSED_CLASS,
    }  # fmt: skip
    return tuple(sorted(words))
