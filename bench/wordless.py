"""Text without words: letters drawn one by one, so that nothing in it can be learnt but the letters' frequencies.

The frequencies are those of English (per mille, from any table of them), because text that compresses to nothing
would teach a compressor the wrong thing about text.
"""

import random
from itertools import accumulate

_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
_PER_MILLE = (127, 91, 82, 75, 70, 67, 63, 61, 60, 43, 40, 28, 28, 24, 24, 22, 20, 20, 19, 15, 10, 8, 2, 2, 1, 1)
_WEIGHTS = list(accumulate(_PER_MILLE))
_WORD_LETTERS = (1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 12)
_BREAKS = (" ",) * 40 + (", ",) * 4 + (". ",) * 4 + ("\n", "\n\n", "; ", ": ", " - ", "? ")
_TOKEN = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz123456789"


class Source:
    """An endless source of texts, names and tokens, the same for the same generator."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def text(self, least: int, most: int) -> str:
        """A text of so many characters; short ones are as likely as long ones."""
        characters = round(least * (most / least) ** self.rng.random())
        parts: list[str] = []
        length = 0
        while length < characters:
            word = self._word(self.rng.choice(_WORD_LETTERS))
            if self.rng.random() < 0.05:
                word = self.digits(self.rng.randint(1, 4))
            elif not parts or parts[-1][0] in ".?\n":
                word = word.capitalize()
            parts += word, self.rng.choice(_BREAKS)
            length += len(parts[-2]) + len(parts[-1])
        return "".join(parts)[:characters].strip() or "e"

    def name(self) -> str:
        """A name as programmers give them: one word, or two joined."""
        words = [self._word(self.rng.randint(4, 9)) for _ in range(self.rng.choice((1, 1, 2)))]
        return "_".join(words)

    def token(self, characters: int) -> str:
        return "".join(self.rng.choices(_TOKEN, k=characters))

    def digits(self, count: int) -> str:
        return "".join(self.rng.choices("0123456789", k=count))

    def _word(self, letters: int) -> str:
        return "".join(self.rng.choices(_LETTERS, cum_weights=_WEIGHTS, k=letters))

    def call_id(self) -> str:
        """The id of a tool call, by one provider's fashion or another's."""
        return self.rng.choice((f"toolu_01{self.token(22)}", f"call_{self.token(24)}"))
