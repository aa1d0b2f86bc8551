"""What of an item is embedded, and by whom: LangGraph's `index` (SPEC.md, section 17.8).

One call embeds all texts of a batch that have no vector yet.  A text that was embedded before keeps its vector: one
that this process has embedded lately is remembered by its hash; and the texts of the value that is replaced have theirs
in the log, if it is known that the same model made them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

from langchain_core.embeddings import Embeddings
from langgraph.store.base import IndexConfig, ensure_embeddings, get_text_at_path, tokenize_path
from langgraph.store.base.embed import EmbeddingsLambda

from stepwell.cache import Cache, Shelf
from stepwell.errors import UsageError

VECTORS: Final = "vectors"
"""Attachment of an item: its vectors, float32, little-endian, one after the other."""

TEXTS: Final = "texts"
"""Attachment of an item: hashes of the texts that the vectors were made of, in the same order."""

EMBEDDER: Final = "embedder"
"""Attachment of an item: the name of the model that made them, where it is known."""

Attachments = Mapping[str, tuple[str, bytes]]

_WHOLE: Final = "$"
_DIGEST_BYTES: Final = 16
_REMEMBERED_BYTES: Final = 1 << 24
_KEYS: Final = frozenset({"dims", "embed", "fields", "distance_type"})


class Text(NamedTuple):
    """A text to embed, and what its vector is remembered by."""

    text: str
    digest: bytes

    @classmethod
    def of(cls, text: str) -> Text:
        """The text with its hash; half surrogate pairs are left to the embedder."""
        return cls(text, blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest())


class Index:
    """How values become vectors.  Thread-safe.

    Args:
        config: LangGraph's IndexConfig.

    Attributes:
        dims: How many numbers a vector has.
        embeddings: Who embeds.

    Raises:
        UsageError: It lacks something, or asks for what is not there.
    """

    def __init__(self, config: IndexConfig) -> None:
        unknown = config.keys() - _KEYS
        if unknown:
            raise UsageError(f"index has no {sorted(unknown)!r}: it takes dims, embed and fields")
        if config.get("distance_type", "cosine") != "cosine":
            raise UsageError(f"distance_type is 'cosine', not {config.get('distance_type')!r}")
        if find_spec("numpy") is None:
            raise UsageError("an index needs numpy: pip install 'stepwell[search]'")
        dims = config.get("dims")
        if not isinstance(dims, int) or dims < 1:
            raise UsageError(f"index['dims'] is the number of dimensions of a vector, not {dims!r}")
        self.dims: int = dims
        embed = config.get("embed")
        self.embeddings: Embeddings = ensure_embeddings(embed)
        self._name = embed if isinstance(embed, str) else _model(self.embeddings)
        self._default = [_tokenized(path) for path in _paths(config.get("fields") or [_WHOLE])]
        self._remembered: Shelf[bytes, bytes] = Shelf(Cache(_REMEMBERED_BYTES))

    def texts(self, value: dict[str, Any], index: list[str] | None) -> list[Text]:
        """The texts of a value that are embedded.

        Args:
            value: The value.
            index: Paths to them; None for those of the configuration.
        """
        paths = self._default if index is None else [_tokenized(path) for path in _paths(index)]
        return [Text.of(text) for path in paths for text in get_text_at_path(value, path)]

    def remembered(self, texts: Iterable[Text]) -> dict[bytes, bytes]:
        """The vectors of those texts that were embedded lately, by hash."""
        found = {text.digest: self._remembered.get(text.digest) for text in texts}
        return {digest: vector for digest, vector in found.items() if vector is not None}

    def reusable(self, attachments: Attachments) -> dict[bytes, bytes]:
        """The vectors of an item that the same model has made, by the hash of their texts."""
        if self._name is None or attachments.get(EMBEDDER, ("", b""))[1] != self._name.encode():
            return {}
        vectors, digests = attachments[VECTORS][1], attachments[TEXTS][1]
        size = 4 * self.dims
        if len(vectors) * _DIGEST_BYTES != len(digests) * size:
            return {}
        return {
            digests[place * _DIGEST_BYTES : (place + 1) * _DIGEST_BYTES]: vectors[place * size : (place + 1) * size]
            for place in range(len(vectors) // size)
        }

    @property
    def may_reuse(self) -> bool:
        """Whether vectors in the log can be known to be of the same model."""
        return self._name is not None

    def attachments(self, texts: Sequence[Text], vectors: Mapping[bytes, bytes]) -> dict[str, tuple[str, bytes]]:
        """What is stored beside a value that has these texts."""
        if not texts:
            return {}
        attached = {
            VECTORS: ("float32", b"".join(vectors[text.digest] for text in texts)),
            TEXTS: ("blake2b-128", b"".join(text.digest for text in texts)),
        }
        return attached if self._name is None else {**attached, EMBEDDER: ("text", self._name.encode())}

    # --- documents ---

    def embed(self, texts: Sequence[Text]) -> dict[bytes, bytes]:
        """The vectors of some texts, in one call, by hash."""
        return self._noted(texts, self.embeddings.embed_documents([text.text for text in texts])) if texts else {}

    async def aembed(self, texts: Sequence[Text]) -> dict[bytes, bytes]:
        """`embed` for coroutines."""
        if not texts:
            return {}
        return self._noted(texts, await self.embeddings.aembed_documents([text.text for text in texts]))

    def _noted(self, texts: Sequence[Text], vectors: Sequence[Sequence[float]]) -> dict[bytes, bytes]:
        _check_count(vectors, len(texts), "texts")
        made = {text.digest: self._checked(vector).tobytes() for text, vector in zip(texts, vectors, strict=True)}
        for digest, vector in made.items():
            self._remembered.put(digest, vector, len(vector))
        return made

    # --- queries ---

    def embed_queries(self, queries: Iterable[str]) -> dict[str, Any]:
        """The vectors of some queries."""
        distinct = list(dict.fromkeys(queries))
        if isinstance(self.embeddings, EmbeddingsLambda) and len(distinct) > 1:  # which embeds both in the same way
            return self._as_queries(distinct, self.embeddings.embed_documents(distinct))
        return self._as_queries(distinct, [self.embeddings.embed_query(query) for query in distinct])

    async def aembed_queries(self, queries: Iterable[str]) -> dict[str, Any]:
        """`embed_queries` for coroutines."""
        distinct = list(dict.fromkeys(queries))
        if isinstance(self.embeddings, EmbeddingsLambda) and len(distinct) > 1:
            return self._as_queries(distinct, await self.embeddings.aembed_documents(distinct))
        made = await asyncio.gather(*(self.embeddings.aembed_query(query) for query in distinct))
        return self._as_queries(distinct, made)

    def _as_queries(self, queries: Sequence[str], vectors: Sequence[Sequence[float]]) -> dict[str, Any]:
        _check_count(vectors, len(queries), "queries")
        return {query: self._checked(vector) for query, vector in zip(queries, vectors, strict=True)}

    def _checked(self, vector: Sequence[float]) -> Any:
        """A vector in the form in which it is stored."""
        import numpy

        try:
            with numpy.errstate(over="ignore"):  # what single precision cannot hold is infinite, and refused below
                array = numpy.asarray(vector, dtype="<f4")
        except (TypeError, ValueError) as error:
            raise UsageError(f"the embedder made no vector of numbers, but {type(vector).__name__}: {error}") from error
        if array.shape != (self.dims,):
            raise UsageError(f"the embedder made a vector of shape {array.shape}, but index['dims'] is {self.dims}")
        if not numpy.isfinite(array).all():
            raise UsageError("the embedder made a vector with numbers that are not finite")
        return array


def _check_count(vectors: object, count: int, what: str) -> None:
    if not hasattr(vectors, "__len__"):
        raise UsageError(f"the embedder made no list of vectors, but {type(vectors).__name__}")
    if len(vectors) != count:
        raise UsageError(f"the embedder made {len(vectors)} vectors of {count} {what}")


def _paths(paths: object) -> list[str]:
    if isinstance(paths, str):
        return [paths]
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise UsageError(f"fields to index are a list of paths, not {paths!r}")
    return list(paths)


def _tokenized(path: str) -> str | list[str]:
    return path if path == _WHOLE else tokenize_path(path)


def _model(embeddings: Embeddings) -> str | None:
    """A name for who embeds, if it says which model it uses; a function may do anything."""
    for attribute in ("model", "model_name"):
        model = getattr(embeddings, attribute, None)
        if isinstance(model, str) and model:
            return f"{type(embeddings).__module__}.{type(embeddings).__qualname__}:{model}"
    return None
