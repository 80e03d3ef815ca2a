"""Numbers as words, in digits, and with what they count."""

NUMERALS: dict[str, str] = dict(
    zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True)
)
"""{"three": "3", ...}"""


def counted(number: int, noun: str) -> str:
    """ "1 prompt", "2 prompts", "3 prompts of a file": the noun stands first and takes a plain s."""
    first, blank, rest = noun.partition(" ")
    return f"{number} {first}{'' if number == 1 else 's'}{blank}{rest}"
