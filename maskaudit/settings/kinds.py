"""Kinds of values that several options take."""

from __future__ import annotations

from maskaudit.declared import Anything, Checked, Items, Number, Text, Whole

#: Most entries of a list, largest magnitude of an input, largest count.
MAX_LIST = 10_000
LARGEST_INPUT = 1e6
LARGEST_COUNT = 2**31 - 1

#: The data sets that come with the program, by name; `maskaudit.data.NAMED` has their readers.
BUILT_IN_DATA = ("digits", "fashion-mnist", "cifar-10", "svhn")

WORD = Text(shortest=1)
WORDS = Items(WORD, MAX_LIST, single=True)
COUNT = Whole(1, LARGEST_COUNT)
SHARE = Number(0, 1, quotient=True)
INPUT = Number(-LARGEST_INPUT, LARGEST_INPUT, quotient=True)
PLAN = Checked(Anything(), "a Plan", lambda value: hasattr(value, "stages"))
LENGTH = Number(0, LARGEST_INPUT, above=True, quotient=True)
WEIGHT = Number(0, LARGEST_INPUT, quotient=True)
