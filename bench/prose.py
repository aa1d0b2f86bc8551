"""English-like text that compresses like real text, from a seed.

A benchmark of storage that writes random bytes flatters whoever does not compress, and one that repeats a
sentence flatters whoever does.  This text is drawn by a Zipf law from 20,000 words, the commonest ones
English, the others made of syllables; each text has words of its own that it prefers, and now and then
repeats a phrase of its own.  Texts share nothing but the vocabulary.

Measured with zstandard at level 3 (original / compressed, medians):

    2 KB   13 KB   40 KB   1 MiB of 13 KB texts
    1.97   2.27    2.51    3.03                     this module
    2.23   2.87    3.14    3.95                     METADATA files of installed Python packages
    2.18   2.72    3.01    4.09                     pydoc_data.topics

so it compresses a little less well than the documentation that it stands for.
"""

import random
from itertools import accumulate

_COMMON_WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were all her she there would their we him been has when who will no more if out so up said
what its about than into them can only other time new some could these two may first then do any like my now
over such our man me even most made after also did many off before must well back through years where much
your way down should because long each just state those people too how little good make world still see own
work men here get between both life being under
"""
_ONSETS = "b c d f g h l m n p r s t v w br ch cl cr dr fl gr pl pr sh sp st str th tr"
_NUCLEI = "a e i o u a e i o ea ou ai io"
_CODAS = "- - - n r s t l m d ck nd nt rs st ng"
_SUFFIXES = "- - - ed ing s er ly tion al ment ive able"

VOCABULARY_WORDS = 20_000
ZIPF_EXPONENT = 0.75
ZIPF_OFFSET = 2.7
TOPIC_DRAWS = 300  # words drawn for a text to prefer; the long ones among them are its topic
TOPIC_SHARE = 0.25  # of its words come from its topic
PHRASE_SHARE = 0.06  # of its clauses repeat an earlier one of the same text


class Prose:
    """An endless source of texts, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._words = _vocabulary(self._random)
        self._weights = list(accumulate((rank + ZIPF_OFFSET) ** -ZIPF_EXPONENT for rank in range(VOCABULARY_WORDS)))

    def text(self, characters: int) -> str:
        """The next text, of exactly this length."""
        rng = self._random
        topic = [word for word in self._draw(TOPIC_DRAWS) if len(word) > 3]
        words: list[str] = []
        length = 0
        while length < characters:
            if len(words) > 20 and rng.random() < PHRASE_SHARE:
                start = rng.randrange(len(words) - 10)
                clause = words[start : start + rng.randint(3, 9)]
            else:
                clause = [
                    rng.choice(topic) if rng.random() < TOPIC_SHARE else word for word in self._draw(rng.randint(3, 10))
                ]
            if rng.random() < 0.35:
                clause[-1] = clause[-1].rstrip(".,") + rng.choice(".,,")
            words += clause
            length += sum(map(len, clause)) + len(clause)
        return " ".join(words)[:characters].ljust(characters, ".")

    def _draw(self, count: int) -> list[str]:
        return self._random.choices(self._words, cum_weights=self._weights, k=count)


def _vocabulary(rng: random.Random) -> list[str]:
    onsets, nuclei, codas, suffixes = (
        text.replace("-", "").split(" ") for text in (_ONSETS, _NUCLEI, _CODAS, _SUFFIXES)
    )
    words = dict.fromkeys(_COMMON_WORDS.split())
    while len(words) < VOCABULARY_WORDS:
        syllables = (
            rng.choice(onsets) + rng.choice(nuclei) + rng.choice(codas) for _ in range(rng.choice((1, 1, 2, 2, 3)))
        )
        words["".join(syllables) + rng.choice(suffixes)] = None
    return list(words)
