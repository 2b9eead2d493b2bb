"""A draft model whose vocabulary is not the target's. (prototype)"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import Final

import numpy as np

from edge_agent.draft_model.drafter import CannotDraft, Drafter, DraftSlot
from edge_agent.draft_model.projection import Projection
from edge_agent.draft_model.retokeniser import Retokeniser
from models.kv_reuse import common_prefix
from models.vocabulary import Vocabulary
from speculation.protocol.messages import TokenId
from speculation.sampling.distributions import Logits
from speculation.sampling.draft_sampler import DraftSampler
from speculation.sampling.draft_token import DraftToken

REREAD_TOKENS: Final = 4
MAX_PENDING: Final = 8


def special_tokens(source: Vocabulary, into: Vocabulary) -> dict[int, int]:
    ends = dict.fromkeys(source.stop_tokens, into.eos)
    same = {t: into.markers[s] for s, t in source.markers.items() if s in into.markers}
    return ends | same


class Translation:
    def __init__(self, target, target_tokenize, draft, draft_tokenize, bos):
        self.target_vocabulary = target
        self.target = Retokeniser(target, target_tokenize)
        self.draft = Retokeniser(draft, draft_tokenize)
        self.specials = special_tokens(draft, target)
        self._to_draft = special_tokens(target, draft)
        self.projection = Projection(draft, self.target, len(target.pieces), self.specials)
        self._bos = bos
        self.drop = False

    def prompt(self, tokens: Sequence[int]) -> list[int]:
        out = [] if self._bos is None else [self._bos]
        for special, run in groupby(tokens, self.target_vocabulary.is_special):
            if not special:
                out += self.draft.tokenise(self.target.bytes_of(run))
                continue
            for token in run:
                if token in self._to_draft:
                    out.append(self._to_draft[token])
                elif not self.drop:
                    out += self.draft.tokenise(self.target_vocabulary.pieces[token])
        return out


class DraftText:
    def __init__(self, prompt, retokeniser):
        self.prompt = list(prompt)
        self.retokeniser = retokeniser
        self.tokens = []
        self.text = b""
        self.ends = []
        self.confidence = []

    heal = True

    def follow(self, text: bytes) -> bytes:
        if self.text.startswith(text):
            return b""
        same = common_prefix(self.text, text)
        kept = sum(end <= same for end in self.ends)
        kept = max(0, kept - REREAD_TOKENS)
        start = self.ends[kept - 1] if kept else 0
        del self.ends[kept:], self.confidence[kept:], self.tokens[kept:]
        self.text = text[:start]
        rest = self.retokeniser.tokenise(text[start:])
        if self.retokeniser.bytes_of(rest) != text[start:]:
            self._append(rest, [len(text)] * len(rest))
            self.text = text
            return b""
        if self.heal:
            rest = self.retokeniser.stable(text[start:])
        self._append(rest, self.retokeniser.ends(rest, start))
        self.text = text[: start + len(self.retokeniser.bytes_of(rest))]
        return text[len(self.text) :]

    def _append(self, tokens, ends):
        self.tokens += tokens
        self.ends += ends
        self.confidence += [1.0] * len(tokens)

    def append(self, token: int, confidence: float) -> None:
        self.text += self.retokeniser.vocabulary.pieces[token]
        self.tokens.append(token)
        self.ends.append(len(self.text))
        self.confidence.append(confidence)


class ForeignSlot:
    def __init__(self, inner: DraftSlot, tr: Translation, prompt_tokens: int, draft_prompt: list[int]) -> None:
        self._inner = inner
        self._tr = tr
        self._prompt_tokens = prompt_tokens
        self._text = DraftText(list(draft_prompt), tr.draft)
        self._draft_prompt_tokens = len(draft_prompt)
        self.context_tokens = inner.context_tokens * prompt_tokens // max(prompt_tokens, len(draft_prompt))
        self.decodes = 0
        self.mask = True
        self.eager = False

    async def step(self, context, sampler, *, ahead=()):
        tr = self._tr
        out = context[self._prompt_tokens :]
        text = tr.target.bytes_of(out)
        d = self._text
        owed = d.follow(text)
        if not owed and (ready := self._ready(len(text))):
            return ready
        last = out[-1] if out else None
        before = d.text[len(text) :]
        base = len(d.tokens)
        if base + len(d.prompt) >= self._inner.context_tokens:
            raise CannotDraft("full")
        read = tr.draft.tokenise(owed) if owed else []

        def draw(logits: Logits, position: int) -> DraftToken:
            so_far = tr.draft.bytes_of(read[: position - base])
            if rest := owed[len(so_far) :]:
                some = tr.draft.compatible(rest)
                w = np.exp(logits[some] - logits[some].max())
                return DraftToken(int(some[np.argmax(w)]), float(w.max() / w.sum()))
            pending = before
            n = len(out) + len(tr.target.tokenise(pending))
            projected = tr.projection(logits)
            for _ in range(8):
                drafted = sampler(projected, n)
                if pending or last is None or not self.mask or not self._merges(last, drafted.token):
                    break
                projected[drafted.token] = -1e9
            own = tr.projection.likeliest(logits, drafted.token)
            if own is None:
                own = tr.draft.prefix(tr.target.vocabulary.pieces[drafted.token])
            if own is None:
                raise CannotDraft("nothing")
            return DraftToken(own, drafted.confidence)

        drawn = await self._inner.step([*d.prompt, *d.tokens], draw, ahead=read)
        self.decodes += 1
        for each in drawn:
            if each.token in tr.specials:
                ready = self._with_confidence(len(text), tr.target.tokenise(d.text[len(text) :]))
                return [*ready, DraftToken(tr.specials[each.token], each.confidence)]
            d.append(each.token, each.confidence)
        return self._ready(len(text)) if len(d.text) > len(text) else []

    def _merges(self, last, token) -> bool:
        pieces = self._tr.target.vocabulary.pieces
        if self._tr.target_vocabulary.is_special(token) or self._tr.target_vocabulary.is_special(last):
            return False
        return len(self._tr.target.tokenise(pieces[last] + pieces[token])) == 1

    def _ready(self, at: int) -> list[DraftToken]:
        pending = self._text.text[at:]
        if not pending:
            return []
        if self.eager:
            return self._with_confidence(at, self._tr.target.tokenise(pending))
        tokens = self._tr.target.stable(pending)
        if not tokens and sum(end > at for end in self._text.ends) >= MAX_PENDING:
            tokens = self._tr.target.tokenise(pending)
            tokens = tokens[:-1] or tokens
        return self._with_confidence(at, tokens)

    def _with_confidence(self, at: int, tokens) -> list[DraftToken]:
        out = []
        starts = [0, *self._text.ends[:-1]]
        for token in tokens:
            end = at + len(self._tr.target.vocabulary.pieces[token])
            conf = prod(c for s, c in zip(starts, self._text.confidence) if at <= s < end)
            out.append(DraftToken(token, conf))
            at = end
        return out

    def leave(self):
        self._inner.leave()


class ForeignDrafter:
    def __init__(self, inner: Drafter, tr: Translation) -> None:
        self._inner = inner
        self._tr = tr

    def take(self, prompt):
        dp = self._tr.prompt(prompt)
        slot = self._inner.take(dp)
        return None if slot is None else ForeignSlot(slot, self._tr, len(prompt), dp)

    def close(self):
        self._inner.close()
