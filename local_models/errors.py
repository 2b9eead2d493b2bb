"""This package raises these errors.

* ModelError
  - CannotOpen        the file is missing or not a GGUF file, or llama.cpp cannot load it
    - NoLlama         llama.cpp itself is not installed, or cannot be loaded
  - CannotQuantise    llama.cpp cannot write the file in another quantisation
  - CannotDequantise  the file cannot be written as safetensors
  - DecodeError       some rows of a pass were not decoded
    - BadSegment      the caller has a bug: a gap, an unknown token or sequence, too many rows
    - NoRoom          the sequence or the cache is full; nothing was decoded
    - DecodeFailed    llama.cpp failed; the sequences must be truncated before further use
  - InvalidCatalogue  a catalogue cannot be read, or defines a name twice
  - InvalidGrammar    a grammar is malformed or cannot be compiled; `where` names the part
  - GrammarFailed     a grammar reached a limit while a text was generated
  - CannotCheck       no grammar can be checked now; a later try may succeed
  - UnknownModel      no catalogue has the name, or a repository does not have the file
  - Unsuitable        a draft model is too large, or has other tokens than the target
  - NotPulled         the model is known, but the store does not have the file
  - PullError
    - SourceFailed    one source cannot provide the file; the next one is tried
      - Unreachable   it gave no usable answer at all; this pull does not ask it again
    - WrongHash       a fetched or stored file does not have the hash of the catalogue
    - DiskFull        the disk has no room for the file; the next pull resumes the download
"""


class ModelError(Exception): ...


class CannotOpen(ModelError): ...


class NoLlama(CannotOpen): ...


class CannotQuantise(ModelError): ...


class CannotDequantise(ModelError): ...


class DecodeError(ModelError): ...


class BadSegment(DecodeError): ...


class NoRoom(DecodeError): ...


class DecodeFailed(DecodeError): ...


class InvalidCatalogue(ModelError): ...


class InvalidGrammar(ModelError):
    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.where = where
        self.reason = reason

    def field(self, name: str) -> str:
        """Return the path of the invalid part. name: the field that contains the grammar."""
        return f"{name}.{self.where}" if self.where else name


class GrammarFailed(ModelError): ...


class CannotCheck(ModelError): ...


class UnknownModel(ModelError): ...


class Unsuitable(ModelError): ...


class NotPulled(ModelError): ...


class PullError(ModelError): ...


class SourceFailed(PullError): ...


class Unreachable(SourceFailed): ...


class WrongHash(PullError): ...


class DiskFull(PullError): ...
