"""Finds the error to report in what a TaskGroup raises."""

from __future__ import annotations


def first_error(error: BaseException) -> BaseException:
    """Return the first error in a group of groups; return an error that is no group itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
