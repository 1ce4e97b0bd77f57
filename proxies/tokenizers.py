"""Text to token ids: bytes, a `tokenizer.json`, or a byte-level BPE trained on the data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from nfsearch.proxies.cache import digest, publish
from nfsearch.proxies.sampling import training_texts
from nfsearch.proxies.sources import Entry, identity
from nfsearch.support.files import local_path

_END = "<|endoftext|>"
_ENDS = (_END, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")  # the first that a tokenizer knows
_END_OF_BYTES = 256  # behind the bytes
_BPE_CHARACTERS = 32_000_000  # of training text that merges are learned from


class Tokenizer(Protocol):
    """`vocab` is one more than the largest id; `digest` names the mapping itself, whatever file it came from; `end` is
    the id that ends a document (None where none does)."""

    vocab: int
    digest: str
    end: int | None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One integer array per text, with the end-of-document id at its end (where the tokenizer has one)."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text again, without end-of-document marks."""


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 ends a document."""

    vocab = 257
    digest = "bytes"
    end: int | None = _END_OF_BYTES

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [
            np.append(np.frombuffer(utf8(text), np.uint8).astype(np.uint16), np.uint16(_END_OF_BYTES)) for text in texts
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


class JsonTokenizer:
    """Any file that the `tokenizers` library reads. Raises ValueError, naming the file, when it does not."""

    def __init__(self, path: Path) -> None:
        import tokenizers

        known = "`tokenizer` is bytes, bpe:VOCAB or the path of a tokenizer.json"
        if path.exists() and not path.is_file():  # a pipe or a device could be read for ever
            raise ValueError(f"{path}: not a file; {known}")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}; {known}") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{path}: not a tokenizer.json ({error})") from None
        # Lengths are the data's business here, not those of the model that the file was saved for.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        ids = self._tokenizer.get_vocab()
        if not ids:
            raise ValueError(f"{path}: the tokenizer has an empty vocabulary")
        self.vocab = max(ids.values()) + 1
        self.digest = hashlib.blake2b(content, digest_size=10).hexdigest()
        self.end = next((ids[name] for name in _ENDS if name in ids), None)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        end = [] if self.end is None else [self.end]
        clean = [utf8(text).decode() for text in texts]
        encoded = self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)  # without offsets
        return [np.array(one.ids + end, dtype=np.uint32) for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)


def utf8(text: str) -> bytes:
    """Lone surrogates, which JSON can smuggle in, become question marks."""
    return text.encode("utf-8", "replace")


def load_tokenizer(name: str) -> Tokenizer:
    """`bytes`, or the path of a tokenizer.json: what `Corpus.tokenizer` holds."""
    return ByteTokenizer() if name == "bytes" else JsonTokenizer(local_path(name))


def resolve_tokenizer(name: str, entries: Sequence[Entry], cache: Path) -> str:
    """The name that `load_tokenizer` takes; `bpe:VOCAB` is trained on the data, once, and kept in `cache`."""
    if not name.startswith("bpe:"):
        return name
    vocab = int(name.removeprefix("bpe:"))
    folder = cache / "tokenizers" / digest(["bpe", vocab, _BPE_CHARACTERS, identity(entries)])
    if not folder.is_dir():
        with publish(folder) as scratch:
            _train_bpe(vocab, entries, scratch / "tokenizer.json")
    return str(folder / "tokenizer.json")


def _train_bpe(vocab: int, entries: Sequence[Entry], path: Path) -> None:
    """Learns merges from documents for training only, so that validation text stays unseen."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((utf8(text).decode() for text in training_texts(entries, _BPE_CHARACTERS)), trainer)
    path.write_text(bpe.to_str(pretty=True), encoding="utf-8")  # `save` does not say that a disk is full
