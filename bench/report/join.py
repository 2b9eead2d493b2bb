"""Several runs as one, each a repeat or more of what was asked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from picospec.bench.data.results import Answer, Results, rows


def joined(found: Sequence[Results]) -> Results:
    """Return the runs as one, the repeats of each counted on from those before.

    An answer is compared with cloud's of its own run. The host is the first run's. Raises
    ValueError that names what differs where the runs are not repeats of one another.
    """
    first, repeats = found[0], 0
    answers: list[Answer] = []
    for each in found:
        for name, ours, theirs in (
            ("models", first.models, each.models),
            ("link", first.link, each.link),
            ("tokens", first.settings["tokens"], each.settings["tokens"]),
            ("processor", first.host.processor, each.host.processor),
        ):
            if ours != theirs:
                raise ValueError(f"{name}: the runs differ, {ours} and {theirs}")
        answers += [
            msgspec.structs.replace(answer, repeat=answer.repeat + repeats)
            for answer in each.answers
        ]
        repeats = 1 + max((answer.repeat for answer in answers), default=-1)
    arms = list(dict.fromkeys(answer.arm for answer in answers))
    settings = {**first.settings, "arms": arms, "repeats": repeats}
    commits = ", ".join(dict.fromkeys(each.commit for each in found))
    return msgspec.structs.replace(
        first, commit=commits, settings=settings, rows=rows(answers), answers=answers
    )
