"""A user's reference to a model on the hub, and the file of its repository that it means.

owner/repo                   the file whose quantisation suits the model's use best
owner/repo:Q4_K_M            the file of that quantisation
hf://owner/repo/file.gguf    that very file
hf://owner/repo              a directory of safetensors for vLLM, or else as owner/repo
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from local_models.errors import UnknownModel

Role = Literal["draft", "target"]
"""A model is used for this; a pair has one model for each."""

PREFERRED: Final[Mapping[Role, str]] = {
    "target": "Q8_0 BF16 F16 F32 Q6_K Q5_K_M Q4_K_M Q4_K_S Q4_0",
    "draft": "Q4_0 Q4_K_M Q4_K_S Q4_1 Q5_K_M Q6_K Q8_0 F16 BF16 F32",
}
"""These quantisations are looked for, best first. A target is judged with Q8_0 weights, which
the store makes from other ones, so the files that lose least in this come first. A draft model
needs speed: Q4_0 drafts as well as Q4_K_M, in two thirds of the time."""

_QUANTISATION: Final = re.compile(r"(?i)[-._/]((?:IQ|TQ|Q)\d\w*|BF16|F16|F32|MXFP4\w*)\.gguf$")
_REFERENCE: Final = re.compile(
    r"(?P<scheme>hf://)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?::(?P<quantisation>\w+)|/(?P<file>.+))?"
)
_NO_MODEL: Final = re.compile(r"(?i)(^|/)(mmproj|imatrix)")
_PART: Final = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


_File = TypeVar("_File")


@dataclass(frozen=True, slots=True)
class HubReference:
    """Names a file of a repository; without a file or a quantisation, the best for a role."""

    repository: str
    quantisation: str = ""
    file: str = ""

    @property
    def name(self) -> str:
        """Return the repository's name without owner and suffix of GGUF repositories."""
        return re.sub(r"(?i)[-.]gguf$", "", self.repository.partition("/")[2])

    def choose(self, files: Collection[str], role: Role) -> str:
        """Return which of a repository's GGUF files this means. Raises UnknownModel."""
        whole = {each for each in files if not (_PART.search(each) or _NO_MODEL.search(each))}
        if self.file in whole:
            return self.file
        tags = (self.quantisation,) if self.quantisation else PREFERRED[role].split()
        for tag in () if self.file else tags:
            match [file for file in whole if quantisation_of(file) == tag.upper()]:
                case [file]:
                    return file
                case [_, *_] as several:
                    raise UnknownModel(f"{self}: {_listed(several)} are {tag}; use hf://…/FILE")
        if len(whole) == 1 and not (self.file or self.quantisation):
            return whole.pop()
        split = " (files in several parts are not read)" if len(whole) < len(files) else ""
        raise UnknownModel(f"{self} is not there; there are {_listed(whole) or 'none'}{split}")

    def select(self, files: Mapping[str, _File]) -> list[_File]:
        """Return the files that this may mean for any role. files: a mapping by file name."""
        kind = self.quantisation.upper()
        return [
            file
            for name, file in files.items()
            if self.file in ("", name) and kind in ("", quantisation_of(name))
        ]

    def __str__(self) -> str:
        if self.file:
            return f"hf://{self.repository}/{self.file}"
        return ":".join(filter(None, (self.repository, self.quantisation)))


def parse_reference(text: str) -> HubReference | None:
    """Parse a reference. Return None for another form, such as a name or a path."""
    match = _REFERENCE.fullmatch(text)
    if match is None or (match["file"] and not match["scheme"]):
        return None
    return HubReference(match["repository"], match["quantisation"] or "", match["file"] or "")


def quantisation_of(file: str) -> str:
    """Return the quantisation in a file's name, in capitals; empty if there is none."""
    match = _QUANTISATION.search(f"/{file}")
    return match[1].upper() if match else ""


def _listed(files: Collection[str]) -> str:
    return ", ".join(sorted(files))
