"""Numbers, dates, times, codes and money as people say them."""

from __future__ import annotations

import random
from collections.abc import Callable

UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
DIGITS = UNITS[:10]
TENS = ("zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
IRREGULAR_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
)  # fmt: skip
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABET = (
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima", "mike",
    "november", "oscar", "papa", "quebec", "romeo", "sierra", "tango", "uniform", "victor", "whiskey", "xray", "yankee",
    "zulu",
)  # fmt: skip


def cardinal(number: int) -> str:
    """A whole number below ten million in words."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        tens, unit = divmod(number, 10)
        return TENS[tens] + (f" {UNITS[unit]}" if unit else "")
    for size, name in ((1_000_000, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= size:
            count, rest = divmod(number, size)
            return f"{cardinal(count)} {name}" + (f" {cardinal(rest)}" if rest else "")
    raise ValueError(f"{number} has no words")


def ordinal(number: int) -> str:
    """First, second, … in words."""
    *front, last = cardinal(number).split()
    if last in IRREGULAR_ORDINALS:
        last = IRREGULAR_ORDINALS[last]
    elif last.endswith("y"):
        last = last[:-1] + "ieth"
    else:
        last += "th"
    return " ".join([*front, last])


def any_number(generator: random.Random) -> str:
    digits = generator.choices((1, 2, 3, 4, 5, 6, 7), weights=(3, 8, 6, 4, 2, 2, 1))[0]
    return cardinal(generator.randrange(10 ** (digits - 1), 10**digits))


def digits(generator: random.Random) -> str:
    spoken = generator.choices(DIGITS, k=generator.randint(1, 8))
    nought = generator.choice(("zero", "zero", "oh"))
    return " ".join(nought if digit == "zero" else digit for digit in spoken)


def pairs(generator: random.Random) -> str:
    """A code read in pairs: forty two seventeen."""
    return " ".join(cardinal(generator.randint(10, 99)) for _ in range(generator.randint(2, 4)))


def year(generator: random.Random) -> str:
    century, rest = generator.randint(15, 20), generator.randint(0, 99)
    if century == 20 and rest < 10:
        return "two thousand" + (f" and {UNITS[rest]}" if rest else "")
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} " + (cardinal(rest) if rest >= 10 else f"oh {UNITS[rest]}")


def date(generator: random.Random) -> str:
    month, day = generator.choice(MONTHS), ordinal(generator.randint(1, 31))
    weekday = generator.choice(WEEKDAYS)
    return generator.choice(
        (f"{month} {day}", f"the {day} of {month}", f"{weekday} {month} {day}", f"{month} {day} {year(generator)}")
    )


def clock(generator: random.Random) -> str:
    hour, minute = generator.randint(1, 12), generator.randint(1, 59)
    spoken = cardinal(minute) if minute >= 10 else f"oh {UNITS[minute]}"
    half = generator.choice(("a m", "p m", "in the morning", "in the evening", ""))
    exact = f"{cardinal(hour)} {spoken} {half}".strip()
    nearby = generator.choice(("half past", "quarter past", "quarter to", "ten past", "twenty to", "nearly", "about"))
    return generator.choice((exact, f"{cardinal(hour)} o'clock", f"{nearby} {cardinal(hour)}"))


def money(generator: random.Random) -> str:
    amount, cents = cardinal(generator.randint(2, 999)), cardinal(generator.randint(2, 99))
    return generator.choice((f"{amount} dollars", f"{amount} pounds", f"{amount} dollars and {cents} cents"))


def letters(generator: random.Random) -> str:
    return " ".join(generator.choices(LETTERS, k=generator.randint(1, 5)))


def alphabet(generator: random.Random) -> str:
    return " ".join(generator.choices(ALPHABET, k=generator.randint(1, 4)))


def code(generator: random.Random) -> str:
    """Letters and digits mixed, as on a number plate."""
    return " ".join(generator.choices([*LETTERS, *DIGITS], k=generator.randint(3, 6)))


SPOKEN: dict[str, Callable[[random.Random], str]] = {
    "number": any_number,
    "small": lambda generator: cardinal(generator.randint(2, 20)),
    "ordinal": lambda generator: ordinal(generator.randint(1, 99)),
    "digits": digits,
    "pairs": pairs,
    "year": year,
    "date": date,
    "clock": clock,
    "money": money,
    "letters": letters,
    "letter": lambda generator: generator.choice(LETTERS),
    "alphabet": alphabet,
    "code": code,
    "month": lambda generator: generator.choice(MONTHS),
    "weekday": lambda generator: generator.choice(WEEKDAYS),
}
"""Grammar slots that are computed instead of listed."""
