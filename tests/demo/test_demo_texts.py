"""The documents that come with the package, and the grammar that wrote them."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import operator
import random
import re
from collections import Counter

import pytest
from demo_texts import grammar, lexicon, write
from demo_texts.writing import Writer

from basis_probe import demo

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
OPERATIONS |= {"plus": operator.add, "minus": operator.sub, "times": operator.mul}


@pytest.fixture(scope="module")
def documents() -> list[grammar.Document]:
    return grammar.labelled(800, 7)


# What comes with the package


@pytest.mark.slow
def test_the_documents_of_the_package_are_those_of_the_grammar() -> None:
    shipped = demo.labelled(write.NUMBER)
    for document, written in zip(shipped, grammar.documents(write.NUMBER, write.SEED), strict=True):
        assert document.text == written.text
        assert document.tokens == written.tokens
        assert document.concepts == written.concepts
    assert demo.texts(5) == [document.text for document in shipped[:5]]


@pytest.mark.slow
def test_the_file_is_small_and_can_be_written_again() -> None:
    assert write.FILE.stat().st_size <= 300_000
    assert json.loads(gzip.decompress(write.shipped())) == json.loads(
        gzip.decompress(write.FILE.read_bytes())
    )


def test_a_seed_is_an_order_of_the_documents() -> None:
    first = demo.texts(40, 7)
    random.seed(1)
    assert demo.texts(40, 7) == first
    assert demo.texts(60, 7)[:40] == first
    assert demo.texts(40, 8) != first
    assert [document.text for document in demo.labelled(40, 7)] == first
    assert sorted(demo.texts(3072, 7)) == sorted(demo.texts(3072))


@pytest.mark.parametrize(
    ("n", "seed", "words"),
    [
        (-1, 0, "n=-1: needs 0 or more; pass another"),
        (1, -2, "seed=-2: needs 0 or more; pass another"),
        (3073, 1, "n=3073: 3072 documents come with the package; ask for at most so many"),
    ],
)
def test_documents_that_are_not_there_are_refused(n: int, seed: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        demo.texts(n, seed)


# The grammar


def test_one_document_is_what_it_was_when_the_model_was_trained() -> None:
    """A change of the grammar asks for the model to be trained again."""
    assert grammar.texts(1, 0) == [
        "for z in range(3): print(z); # 0, 1, 2 if z > m: return z; else: return m; if k > z: "
        "return k; else: return z; for y in range(5): print(y); # 0, 1, 2, 3, 4 assert [9, 3, 7][2]"
        " == 7; if x < n: return x; else: return n;"
    ]


@pytest.mark.parametrize(("n", "seed", "name"), [(-1, 0, "n=-1"), (1, -2, "seed=-2")])
def test_negative_arguments_are_refused(n: int, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: needs 0 or more; pass another"):
        grammar.texts(n, seed)


def test_lengths_vocabulary_and_concepts_are_as_documented(
    documents: list[grammar.Document],
) -> None:
    assert all(30 <= len(document.tokens) <= 120 for document in documents)
    used = {word for document in documents for word in document.tokens}
    assert used == set(grammar.vocabulary())
    assert len(grammar.vocabulary()) <= 600
    counts = Counter(
        name for document in documents for name, where in document.concepts.items() if where
    )
    assert set(counts) == set(demo.CONCEPTS)
    assert min(counts.values()) >= 40


def test_words_carry_the_concepts_that_the_lexicon_gives_them(
    documents: list[grammar.Document],
) -> None:
    """Concepts that a word decides by itself hold exactly where the word is."""
    plurals = {noun.plural for noun in lexicon.NOUNS}
    singulars = {noun.singular for noun in lexicon.NOUNS}
    decided = {
        "digit": set("0123456789"),
        "opening bracket": set("([{"),
        "closing bracket": set(")]}"),
        "name": {*lexicon.WOMEN, *lexicon.MEN},
        "place": set(lexicon.PLACES),
        "month": set(lexicon.MONTHS),
        "weekday": set(lexicon.WEEKDAYS),
        "colour": set(lexicon.COLOURS),
        "adjective": set(lexicon.ADJECTIVES),
        "animal": {form for n in lexicon.NOUNS if n.kind == "animal" for form in n[:2]},
        "food": {form for n in lexicon.NOUNS if n.kind == "food" for form in n[:2]},
        "thing": {form for n in lexicon.NOUNS if n.kind == "thing" for form in n[:2]},
    }
    for document in documents:
        for name, words in decided.items():
            where = {i for i, word in enumerate(document.tokens) if word in words}
            assert document.concepts[name] == where, name
        for i in document.concepts["plural noun"]:
            assert document.tokens[i] in plurals
        for i in document.concepts["singular noun"]:
            assert document.tokens[i] in singulars
        people = document.concepts["feminine"] | document.concepts["masculine"]
        assert document.concepts["name"] <= people
        assert not document.concepts["feminine"] & document.concepts["masculine"]


def test_brackets_close_in_order_and_depth_is_counted(documents: list[grammar.Document]) -> None:
    partner = {")": "(", "]": "[", "}": "{"}
    deepest = 0
    for document in documents:
        open_brackets: list[str] = []
        depths: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}
        for i, word in enumerate(document.tokens):
            if word in partner:
                assert open_brackets.pop() == partner[word]
            if open_brackets:
                depths[len(open_brackets)].add(i)
            if word in partner.values():
                open_brackets.append(word)
            deepest = max(deepest, len(open_brackets))
        assert not open_brackets
        for depth, where in depths.items():
            assert document.concepts[f"depth {depth}"] == where
    assert deepest == 3


def test_sums_in_digits_and_in_words_are_right(documents: list[grammar.Document]) -> None:
    words = "|".join(lexicon.NUMBER_WORDS)
    spelled = rf"\b({words}) (plus|minus|times) ({words}) equals ({words})\."
    value = {word: number for number, word in enumerate(lexicon.NUMBER_WORDS)}
    found = Counter[str]()
    for document in documents:
        for left, sign, right, result in re.findall(
            r"(\d+) ([+*-]) (\d+) = (\d+)\.", document.text
        ):
            assert OPERATIONS[sign](int(left), int(right)) == int(result)
            found["digits"] += 1
        for left, sign, right, result in re.findall(spelled, document.text):
            assert OPERATIONS[sign](value[left], value[right]) == value[result]
            found["words"] += 1
        for first, second, total in re.findall(
            r"(\d+) \w+ and [a-z ]+ (\d+) more, so [a-z ]+ (\d+) ", document.text
        ):
            assert int(first) + int(second) == int(total)
            found["stories"] += 1
        for left, kind, right, answer in re.findall(
            r"is (\d+) (larger|smaller) than (\d+)\? (yes|no)\.", document.text
        ):
            true = int(left) > int(right) if kind == "larger" else int(left) < int(right)
            assert (answer == "yes") == true
            found["comparisons"] += 1
    assert min(found[kind] for kind in ("digits", "words", "stories", "comparisons")) >= 25


def test_results_are_labelled(documents: list[grammar.Document]) -> None:
    """What stands after the equals sign of a sum is a result, and the operands are not."""
    seen = 0
    for document in documents:
        for i, word in enumerate(document.tokens):
            if word == "=" and i in document.concepts["arithmetic"]:
                assert {i + 1} <= document.concepts["result"]
                assert i - 1 not in document.concepts["result"]
                seen += 1
    assert seen >= 50


def test_days_of_the_week_are_counted_right(documents: list[grammar.Document]) -> None:
    seen = 0
    for document in documents:
        for number, way, start, end in re.findall(
            r"(\w+) days? (after|before) (\w+) comes (\w+)\.", document.text
        ):
            steps = lexicon.NUMBER_WORDS.index(number) * (1 if way == "after" else -1)
            place = (lexicon.WEEKDAYS.index(start) + steps) % 7
            assert lexicon.WEEKDAYS[place] == end
            seen += 1
    assert seen >= 20


def test_code_computes_what_its_comments_say(documents: list[grammar.Document]) -> None:
    seen = Counter[str]()
    for document in documents:
        for first, low, second, step, printed, result in re.findall(
            r"let (\w) = (\d+); let (\w) = \w \+ (\d+); print\((\w)\); # (\d+)", document.text
        ):
            values = {first: int(low), second: int(low) + int(step)}
            assert values[printed] == int(result)
            seen["let"] += 1
        for sign, constant, argument, result in re.findall(
            r"return \w ([+*]) (\d+); print\(\w\((\d+)\)\); # (\d+)", document.text
        ):
            assert OPERATIONS[sign](int(argument), int(constant)) == int(result)
            seen["def"] += 1
        for items, place, value in re.findall(
            r"assert \[([\d, ]+)\]\[(\d)\] == (\d)", document.text
        ):
            assert items.split(", ")[int(place)] == value
            seen["assert"] += 1
    assert min(seen[kind] for kind in ("let", "def", "assert")) >= 25


def test_verbs_agree_with_their_first_noun(documents: list[grammar.Document]) -> None:
    plurals = {noun.plural for noun in lexicon.COUNTED}
    places = "|".join(lexicon.NEAR)
    seen = 0
    for document in documents:
        for noun, verb in re.findall(
            rf"\bthe (?:\w+ )?(\w+) (?:{places}) the \w+ (was|were|is|are)\b", document.text
        ):
            assert (noun in plurals) == (verb in ("were", "are"))
            seen += 1
    assert seen >= 50


def test_surprisal_is_minus_the_log_probability_of_the_choices() -> None:
    """On one choice among four places, two of them the same, and one of probability 0.3."""
    observed = set()
    for seed in range(60):
        writer = Writer(random.Random(seed))
        letter = writer.pick("abca")
        hit = writer.chance(0.3)
        expected = (1 / 2 if letter == "a" else 1 / 4) * (0.3 if hit else 0.7)
        assert math.exp(-writer.surprisal) == pytest.approx(expected)
        observed.add((letter, hit))
    assert observed == set(itertools.product("abc", (True, False)))
