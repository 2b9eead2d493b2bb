"""What a task group raises, as the error that caused it."""

from __future__ import annotations


def first_error(errors: BaseException) -> BaseException:
    """Return the first error of a group, or of the groups in it; any other error as it is."""
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors
