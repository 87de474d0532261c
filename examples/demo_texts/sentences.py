"""The sentences, sums, brackets and lines of code that documents are made of.

Each function writes one of them with a `Writer`, which is told of every word what it is. At most
`LONGEST_SENTENCE` tokens are written at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from demo_texts.lexicon import (
    ADJECTIVES,
    BRACKETS,
    COLOURS,
    COUNTED,
    FOODS,
    FUNCTIONS,
    HOLDABLE,
    LETTERS,
    MONTH_LENGTHS,
    MONTHS,
    NEAR,
    NOUNS,
    NUMBER_WORDS,
    PLACES,
    VARIABLES,
    WEEKDAYS,
    WHEN,
    WITH_FOOD,
    WITH_OBJECT,
    WITH_PLACE,
    WITHOUT_OBJECT,
    Noun,
    Verb,
)
from demo_texts.writing import Person, Writer

LONGEST_SENTENCE = 36


def _a(writer: Writer, next_word: str) -> None:
    writer.say("an" if next_word[0] in "aeiou" else "a")


def _noun(writer: Writer, noun: Noun, *, plural: bool) -> None:
    number = "plural noun" if plural else "singular noun"
    writer.say(noun.plural if plural else noun.singular, noun.kind, number)


def _name(writer: Writer, person: Person) -> None:
    writer.say(person.name, "name", person.gender)


def _subject(writer: Writer) -> None:
    if writer.chance(0.3):
        _name(writer, writer.person)
    else:
        writer.say(writer.person.pronoun, "pronoun", writer.person.gender)


def _verb(writer: Writer, verb: Verb, *, plural: bool = False) -> None:
    """The verb in the tense of the document."""
    if writer.tense == "future":
        writer.say("will", "future")
        writer.say(verb.base, "verb", "future")
    elif writer.tense == "past":
        writer.say(verb.past, "verb", "past")
    else:
        writer.say(verb.base if plural else verb.third, "verb", "present")


def _be(writer: Writer, *, plural: bool) -> None:
    if writer.tense == "future":
        writer.say("will be", "future")
    elif writer.tense == "past":
        writer.say("were" if plural else "was", "past")
    else:
        writer.say("are" if plural else "is", "present")


def _have(writer: Writer) -> None:
    if writer.tense == "future":
        writer.say("will have", "future")
    else:
        writer.say("had" if writer.tense == "past" else "has", writer.tense)


def _quality(writer: Writer) -> None:
    if writer.chance(0.6):
        writer.say(writer.pick(COLOURS), "colour")
    else:
        writer.say(writer.pick(ADJECTIVES), "adjective")


def _one(writer: Writer, nouns: Sequence[Noun] = NOUNS) -> None:
    """One thing: 'a red box', 'the fox', 'an old map'."""
    noun = writer.pick(nouns)
    if writer.chance(0.3):
        writer.say("the")
        _noun(writer, noun, plural=False)
    elif writer.chance(0.6):
        colour = writer.chance(0.6)
        quality = writer.pick(COLOURS if colour else ADJECTIVES)
        _a(writer, quality)
        writer.say(quality, "colour" if colour else "adjective")
        _noun(writer, noun, plural=False)
    else:
        _a(writer, noun.singular)
        _noun(writer, noun, plural=False)


def _several(writer: Writer, nouns: Sequence[Noun] = NOUNS) -> None:
    """Several things: 'three red boxes', '12 nuts', 'some wolves'."""
    if writer.chance(0.2):
        writer.say("some")
    elif writer.chance(0.5):
        writer.say(NUMBER_WORDS[writer.number(2, 12)], "number word")
    else:
        writer.digits(writer.number(2, 19))
    if writer.chance(0.3):
        _quality(writer)
    _noun(writer, writer.pick(nouns), plural=True)


def _things(writer: Writer, nouns: Sequence[Noun] = NOUNS) -> None:
    if writer.chance(0.6):
        _one(writer, nouns)
    else:
        _several(writer, nouns)


def _date(writer: Writer) -> None:
    """A date in one of three notations: '12 March 1994', 'May 3, 2001', '2001 - 05 - 03'."""
    year = writer.number(1950, 2029)
    month = writer.number(0, 11)
    day = writer.number(1, MONTH_LENGTHS[month])
    form = writer.pick(("day first", "month first", "digits"))
    with writer.within("date"):
        if form == "day first":
            writer.digits(day)
            writer.say(MONTHS[month], "month")
            writer.digits(year, "year")
        elif form == "month first":
            writer.say(MONTHS[month], "month")
            writer.digits(day)
            writer.mark(",")
            writer.digits(year, "year")
        else:
            writer.digits(year, "year")
            for part in (month + 1, day):
                writer.mark("-")
                writer.mark(str(part // 10), "digit")
                writer.mark(str(part % 10), "digit")


def _journey(writer: Writer) -> None:
    if writer.chance(0.5):
        writer.say(WHEN[writer.tense])
    else:
        writer.say("on")
        writer.say(writer.pick(WEEKDAYS), "weekday", "date")
    _subject(writer)
    _verb(writer, writer.pick(WITH_PLACE))
    if writer.chance(0.3):
        writer.say("from")
        writer.say(writer.pick(PLACES), "place")
    writer.say("to")
    writer.say(writer.pick(PLACES), "place")
    writer.end()


def _deed(writer: Writer) -> None:
    _subject(writer)
    if writer.chance(0.25):
        _verb(writer, writer.pick(WITH_FOOD))
        _things(writer, FOODS)
    else:
        _verb(writer, writer.pick(WITH_OBJECT))
        _things(writer)
    if writer.chance(0.3):
        writer.say("in")
        writer.say(writer.pick(PLACES), "place")
    writer.end()


def _habit(writer: Writer) -> None:
    """What somebody did, and why: 'she slept in Rome because she was sad'."""
    _subject(writer)
    _verb(writer, writer.pick(WITHOUT_OBJECT))
    if writer.chance(0.4):
        writer.say("in")
        writer.say(writer.pick(PLACES), "place")
    if writer.chance(0.5):
        writer.say("because")
        writer.say(writer.person.pronoun, "pronoun", writer.person.gender)
        _be(writer, plural=False)
        if writer.chance(0.3):
            writer.say("not", "negation")
        writer.say(writer.pick(ADJECTIVES), "adjective")
    writer.end()


def _order(writer: Writer) -> None:
    """Two deeds in order: 'first he went to Rome, then he bought a hat'."""
    writer.say("first")
    writer.say(writer.person.pronoun, "pronoun", writer.person.gender)
    _verb(writer, writer.pick(WITH_PLACE))
    writer.say("to")
    writer.say(writer.pick(PLACES), "place")
    writer.mark(",")
    writer.say("then")
    writer.say(writer.person.pronoun, "pronoun", writer.person.gender)
    _verb(writer, writer.pick(WITH_OBJECT))
    _things(writer)
    writer.end()


def _scene(writer: Writer) -> None:
    """What is there: 'there were three owls between the lamp and the box'."""
    plural = writer.chance(0.5)
    writer.say("there")
    _be(writer, plural=plural)
    if plural:
        _several(writer, COUNTED)
    else:
        noun = writer.pick(NOUNS)
        _a(writer, noun.singular)
        _noun(writer, noun, plural=False)
    writer.say("between")
    for joint in ("and", None):
        writer.say("the")
        _noun(writer, writer.pick(COUNTED), plural=writer.chance(0.3))
        if joint:
            writer.say(joint)
    writer.end()


def _choice(writer: Writer) -> None:
    """A question with an alternative: 'was the fox red or blue? blue'."""
    noun = writer.pick(NOUNS)
    qualities, concept = (COLOURS, "colour") if writer.chance(0.6) else (ADJECTIVES, "adjective")
    first = writer.pick(qualities)
    second = writer.pick(tuple(each for each in qualities if each != first))
    past = writer.chance(0.5)
    with writer.within("question"):
        writer.say("was" if past else "is", "past" if past else "present")
        if writer.chance(0.3):
            writer.say("each")
        else:
            writer.say("the")
        _noun(writer, noun, plural=False)
        writer.say(first, concept)
        writer.say("or")
        writer.say(second, concept)
        writer.mark("?", "sentence end")
    writer.say(writer.pick((first, second)), concept)
    writer.end()


def _pair(writer: Writer) -> None:
    _name(writer, writer.person)
    writer.say("and")
    _name(writer, writer.other)
    if writer.chance(0.5):
        _verb(writer, writer.pick(WITHOUT_OBJECT), plural=True)
        writer.end()
        writer.say("they", "pronoun")
        _be(writer, plural=True)
        writer.say(writer.pick(ADJECTIVES), "adjective")
    else:
        _verb(writer, writer.pick(WITH_PLACE), plural=True)
        writer.say("to")
        writer.say(writer.pick(PLACES), "place")
    writer.end()


def _continuing(writer: Writer) -> None:
    """What goes on: 'the wolves near the lamp were waiting'; the first noun rules the verb."""
    plural = writer.chance(0.5)
    writer.say("the")
    if writer.chance(0.4):
        _quality(writer)
    _noun(writer, writer.pick(COUNTED), plural=plural)
    if writer.chance(0.6):
        writer.say(writer.pick(NEAR))
        writer.say("the")
        _noun(writer, writer.pick(COUNTED), plural=writer.chance(0.5))
    _be(writer, plural=plural)
    if writer.chance(0.2):
        writer.say("not", "negation")
    if writer.chance(0.3):
        writer.say(writer.pick(WITHOUT_OBJECT).gerund, "verb")
    elif writer.chance(0.3):
        writer.say(writer.pick((*WITH_OBJECT, *WITH_FOOD)).gerund, "verb")
        _one(writer, FOODS)
    elif writer.chance(0.3):
        writer.say(writer.pick(WITH_PLACE).gerund, "verb")
        writer.say("to")
        writer.say(writer.pick(PLACES), "place")
    else:
        _quality(writer)
    writer.end()


def _denial(writer: Writer) -> None:
    writer.say("but")
    writer.say(writer.person.pronoun, "pronoun", writer.person.gender)
    if writer.tense == "future":
        writer.say("will", "future")
        writer.say("not", "negation")
    else:
        writer.say("did" if writer.tense == "past" else "does", writer.tense)
        writer.say("not", "negation")
    concepts = ("verb", "future") if writer.tense == "future" else ("verb",)
    if writer.chance(0.4):
        writer.say(writer.pick(WITHOUT_OBJECT).base, *concepts)
    else:
        writer.say(writer.pick(WITH_OBJECT).base, *concepts)
        writer.say("the")
        _noun(writer, writer.pick(NOUNS), plural=writer.chance(0.5))
    writer.end()


def _enumeration(writer: Writer) -> None:
    _subject(writer)
    _verb(writer, writer.pick(WITH_OBJECT))
    with writer.within("list"):
        items = writer.number(2, 4)
        for _ in range(items):
            _things(writer, HOLDABLE)
            writer.mark(",")
        writer.say("and")
        _things(writer, HOLDABLE)
    writer.end()


def _speech(writer: Writer) -> None:
    speaker = writer.other if writer.chance(0.5) else writer.person
    _name(writer, speaker)
    writer.say(writer.pick(("said", "answered")), "verb", "past")
    writer.mark(":")
    with writer.quotation():
        if writer.chance(0.5):
            writer.say("i")
            if writer.chance(0.3):
                writer.say("never", "negation")
            writer.say(writer.pick(WITH_OBJECT).base, "verb", "present")
            _things(writer)
        else:
            writer.say("the")
            plural = writer.chance(0.4)
            _noun(writer, writer.pick(COUNTED), plural=plural)
            writer.say("are" if plural else "is", "present")
            _quality(writer)
        writer.end()


def _exchange(writer: Writer) -> None:
    """A question by one person, and the answer by the other."""
    _name(writer, writer.other)
    writer.say("asked", "verb", "past")
    writer.say(writer.person.object_pronoun, "pronoun", writer.person.gender)
    writer.mark(":")
    kind = writer.pick(("where", "what", "how many"))
    with writer.quotation(), writer.within("question"):
        if kind == "where":
            writer.say("where do you")
            writer.say(writer.pick(WITH_PLACE).base, "verb", "present")
        elif kind == "what":
            writer.say("what do you")
            writer.say(writer.pick(WITH_OBJECT).base, "verb", "present")
        else:
            counted = writer.pick(COUNTED)
            writer.say("how many")
            _noun(writer, counted, plural=True)
            writer.say("do you")
            writer.say(writer.pick(WITH_OBJECT).base, "verb", "present")
        writer.mark("?", "sentence end")
    with writer.quotation():
        if kind == "where":
            writer.say("to")
            writer.say(writer.pick(PLACES), "place")
        elif kind == "what":
            _things(writer)
        else:
            writer.say(NUMBER_WORDS[writer.number(2, 12)], "number word")
        writer.end()


def _riddle(writer: Writer) -> None:
    """A deed, and the question who did it: the answer is in the sentence before."""
    doer = writer.other if writer.chance(0.5) else writer.person
    verb, noun = writer.pick(WITH_OBJECT), writer.pick(NOUNS)
    _name(writer, doer)
    writer.say(verb.past, "verb", "past")
    writer.say("the")
    _noun(writer, noun, plural=False)
    writer.end()
    with writer.within("question"):
        writer.say("who")
        writer.say(verb.past, "verb", "past")
        writer.say("the")
        _noun(writer, noun, plural=False)
        writer.mark("?", "sentence end")
    _name(writer, doer)
    writer.end()


def _aside(writer: Writer) -> None:
    """A sentence with a remark in brackets, which may hold another."""
    writer.say("the")
    noun = writer.pick(COUNTED)
    _noun(writer, noun, plural=False)
    writer.opening("(")
    _quality(writer)
    if writer.chance(0.4):
        writer.opening("[")
        writer.say(writer.pick(("not", "never")), "negation")
        _quality(writer)
        writer.closing("]")
    writer.closing(")")
    _be(writer, plural=False)
    writer.say(writer.pick(NEAR))
    _one(writer)
    writer.end()


def _possession(writer: Writer) -> None:
    """A sum told as a story: 'she had 3 figs and found 4 more, so she had 7 figs'."""
    noun = writer.pick(tuple(each for each in HOLDABLE if each in COUNTED))
    verb = writer.pick((WITH_OBJECT[1], WITH_OBJECT[2]))
    first, second = writer.number(2, 9), writer.number(2, 9)
    with writer.within("arithmetic"):
        writer.say(writer.person.pronoun, "pronoun", writer.person.gender)
        _have(writer)
        writer.digits(first)
        _noun(writer, noun, plural=True)
        writer.say("and")
        _verb(writer, verb)
        writer.digits(second)
        writer.say("more")
        writer.mark(",")
        writer.say("so")
        writer.say(writer.person.pronoun, "pronoun", writer.person.gender)
        _have(writer)
        writer.digits(first + second, "result")
        _noun(writer, noun, plural=True)
        writer.end()


def _birth(writer: Writer) -> None:
    _name(writer, writer.person if writer.chance(0.5) else writer.other)
    writer.say("was", "past")
    writer.say("born", "verb", "past")
    if writer.chance(0.5):
        writer.say("in")
        writer.say(writer.pick(PLACES), "place")
    writer.say("on")
    _date(writer)
    writer.end()


def _meeting(writer: Writer) -> None:
    writer.say("the meeting in")
    writer.say(writer.pick(PLACES), "place")
    _be(writer, plural=False)
    writer.say("on")
    writer.say(writer.pick(WEEKDAYS), "weekday", "date")
    writer.mark(",", "date")
    _date(writer)
    writer.end()


def _weekdays(writer: Writer) -> None:
    """Counting days of the week: 'two days after Monday comes Wednesday'."""
    start = writer.number(0, 6)
    steps = writer.number(1, 4)
    after = writer.chance(0.7)
    end = (start + steps if after else start - steps) % 7
    writer.say(NUMBER_WORDS[steps], "number word")
    writer.say("day" if steps == 1 else "days")
    writer.say("after" if after else "before")
    writer.say(WEEKDAYS[start], "weekday", "date")
    writer.say("comes", "verb", "present")
    writer.say(WEEKDAYS[end], "weekday", "date", "result")
    writer.end()


def _months(writer: Writer) -> None:
    start = writer.number(0, 11)
    if writer.chance(0.5):
        writer.say("after")
        writer.say(MONTHS[start], "month", "date")
        writer.say("comes", "verb", "present")
        writer.say(MONTHS[(start + 1) % 12], "month", "date", "result")
    else:
        writer.say(MONTHS[start], "month", "date")
        writer.say("has", "present")
        writer.digits(MONTH_LENGTHS[start], "result")
        writer.say("days")
    writer.end()


def _year(writer: Writer) -> None:
    writer.say("in")
    writer.digits(writer.number(1950, 2029), "year", "date")
    writer.mark(",")
    _name(writer, writer.person)
    writer.say(writer.pick(WITH_OBJECT).past, "verb", "past")
    _things(writer)
    writer.end()


def _sum_of_digits(writer: Writer) -> None:
    """A sum, difference or product in digits: '3 + 14 = 17'."""
    operator = writer.pick(("+", "-", "*"))
    left, right, result = _operands(writer, operator)
    with writer.within("arithmetic"):
        writer.digits(left)
        writer.say(operator, "operator")
        writer.digits(right)
        writer.say("=", "operator")
        writer.digits(result, "result")
        writer.end()


def _sum_of_words(writer: Writer) -> None:
    """The same in words: 'three plus four is seven'."""
    operator = writer.pick(("+", "-", "*"))
    left, right, result = _operands(writer, operator)
    words = {"+": "plus", "-": "minus", "*": "times"}
    with writer.within("arithmetic"):
        writer.say(NUMBER_WORDS[left], "number word")
        writer.say(words[operator], "operator")
        writer.say(NUMBER_WORDS[right], "number word")
        writer.say("equals", "operator")
        writer.say(NUMBER_WORDS[result], "number word", "result")
        writer.end()


def _operands(writer: Writer, operator: str) -> tuple[int, int, int]:
    """Two numbers and what the operator makes of them, all between 0 and 20."""
    if operator == "+":
        left = writer.number(0, 12)
        right = writer.number(0, 8)
        return left, right, left + right
    if operator == "-":
        left = writer.number(0, 20)
        right = writer.number(0, min(left, 12))
        return left, right, left - right
    left = writer.number(0, 5)
    right = writer.number(0, 4)
    return left, right, left * right


def _counting(writer: Writer) -> None:
    """Counting up by a step: '3, 5, 7, 9'."""
    start, step, length = writer.number(0, 8), writer.number(1, 3), writer.number(3, 5)
    with writer.within("list", "arithmetic"):
        for index in range(length):
            if index:
                writer.mark(",")
            concepts = ("result",) if index > 1 else ()
            writer.digits(start + index * step, *concepts)
        writer.end()


def _comparison(writer: Writer) -> None:
    """'is 7 larger than 4? yes'."""
    left, right = writer.number(0, 20), writer.number(0, 20)
    larger = writer.chance(0.5)
    true = left > right if larger else left < right
    with writer.within("arithmetic"):
        with writer.within("question"):
            writer.say("is", "present")
            writer.digits(left)
            writer.say("larger than" if larger else "smaller than", "operator")
            writer.digits(right)
            writer.mark("?", "sentence end")
        writer.say("yes" if true else "no", "result", *(() if true else ("negation",)))
        writer.end()


def _nest(writer: Writer, *, depth: int, budget: int) -> int:
    """A bracket with letters and brackets inside; the budget that is left."""
    opening, closing = writer.pick(BRACKETS)
    writer.opening(opening)
    budget -= 2
    for _ in range(writer.number(1, 3)):
        if depth < 3 and budget >= 3 and writer.chance(0.5):
            budget = _nest(writer, depth=depth + 1, budget=budget)
        else:
            writer.say(writer.pick(LETTERS))
            budget -= 1
    writer.closing(closing)
    return budget


def _brackets(writer: Writer) -> None:
    _nest(writer, depth=1, budget=16)


def _definition(writer: Writer) -> None:
    """A function of one argument and what it gives: 'def f(x): return x + 2; print(f(3)); # 5'."""
    function, variable = writer.pick(FUNCTIONS), writer.pick(VARIABLES)
    operator = writer.pick(("+", "*"))
    constant, argument = writer.number(1, 5), writer.number(1, 4)
    with writer.within("code"):
        writer.say("def", "keyword")
        writer.say(function)
        writer.opening("(", glued=True)
        writer.say(variable, "variable")
        writer.closing(")")
        writer.mark(":")
        writer.say("return", "keyword")
        writer.say(variable, "variable")
        writer.say(operator, "operator")
        writer.digits(constant)
        writer.mark(";")
        writer.say("print", "keyword")
        writer.opening("(", glued=True)
        writer.say(function)
        writer.opening("(", glued=True)
        writer.digits(argument)
        writer.closing(")")
        writer.closing(")")
        writer.mark(";")
        result = argument + constant if operator == "+" else argument * constant
        _comment(writer, result)


def _comment(writer: Writer, result: int) -> None:
    with writer.within("comment"):
        writer.say("#")
        writer.digits(result, "result")


def _assignments(writer: Writer) -> None:
    """Two variables and their sum or difference, with its value in a comment."""
    first = writer.pick(VARIABLES)
    second = writer.pick(tuple(name for name in VARIABLES if name != first))
    low, step = writer.number(0, 9), writer.number(1, 9)
    with writer.within("code"):
        writer.say("let", "keyword")
        writer.say(first, "variable")
        writer.say("=", "operator")
        writer.digits(low)
        writer.mark(";")
        writer.say("let", "keyword")
        writer.say(second, "variable")
        writer.say("=", "operator")
        writer.say(first, "variable")
        writer.say("+", "operator")
        writer.digits(step)
        writer.mark(";")
        writer.say("print", "keyword")
        writer.opening("(", glued=True)
        printed = writer.pick((first, second))
        writer.say(printed, "variable")
        writer.closing(")")
        writer.mark(";")
        _comment(writer, low if printed == first else low + step)


def _branch(writer: Writer) -> None:
    first = writer.pick(VARIABLES)
    second = writer.pick(tuple(name for name in VARIABLES if name != first))
    with writer.within("code"):
        writer.say("if", "keyword")
        writer.say(first, "variable")
        sign = writer.pick((">", "<"))
        writer.say(sign, "operator")
        writer.say(second, "variable")
        writer.mark(":")
        writer.say("return", "keyword")
        writer.say(first, "variable")
        writer.mark(";")
        writer.say("else", "keyword")
        writer.mark(":")
        writer.say("return", "keyword")
        writer.say(second, "variable")
        writer.mark(";")


def _loop(writer: Writer) -> None:
    """A loop and what it prints: 'for x in range(3): print(x); # 0, 1, 2'."""
    variable, length = writer.pick(VARIABLES), writer.number(2, 5)
    with writer.within("code"):
        writer.say("for", "keyword")
        writer.say(variable, "variable")
        writer.say("in", "keyword")
        writer.say("range", "keyword")
        writer.opening("(", glued=True)
        writer.digits(length)
        writer.closing(")")
        writer.mark(":")
        writer.say("print", "keyword")
        writer.opening("(", glued=True)
        writer.say(variable, "variable")
        writer.closing(")")
        writer.mark(";")
        with writer.within("comment"):
            writer.say("#")
            for value in range(length):
                if value:
                    writer.mark(",", "list")
                writer.digits(value, "list", "result")


def _assertion(writer: Writer) -> None:
    items = tuple(writer.number(0, 9) for _ in range(3))
    with writer.within("code"):
        writer.say("assert", "keyword")
        writer.opening("[")
        with writer.within("list"):
            for index, item in enumerate(items):
                if index:
                    writer.mark(",")
                writer.digits(item)
        writer.closing("]")
        writer.opening("[", glued=True)
        place = writer.number(0, 2)
        writer.digits(place)
        writer.closing("]")
        writer.say("=", "operator")
        writer.mark("=", "operator")
        writer.digits(items[place], "result")
        writer.mark(";")


Segment = Callable[[Writer], None]

STORY: tuple[Segment, ...] = (
    _journey, _deed, _deed, _habit, _order, _scene, _choice, _pair, _continuing, _continuing,
    _denial, _enumeration, _speech, _exchange, _riddle, _aside, _possession,
)  # fmt: skip
CALENDAR: tuple[Segment, ...] = (_birth, _meeting, _weekdays, _months, _year, _journey)
SUMS: tuple[Segment, ...] = (
    _sum_of_digits, _sum_of_digits, _sum_of_words, _counting, _comparison, _possession,
)  # fmt: skip
NESTS: tuple[Segment, ...] = (_brackets,)
CODE: tuple[Segment, ...] = (_definition, _assignments, _branch, _loop, _assertion)
THEMES: tuple[tuple[Segment, ...], ...] = (
    STORY, STORY, STORY, STORY, CALENDAR, SUMS, NESTS, CODE, (*STORY, *CALENDAR, *SUMS),
)  # fmt: skip
"""What a document is about: a theme is drawn first, then its segments, each equally likely."""
