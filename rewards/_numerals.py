"""Numbers as words and in digits."""

NUMERALS: dict[str, str] = dict(
    zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True)
)
"""{"three": "3", ...}"""
