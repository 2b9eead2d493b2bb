"""What crosses the gateway's boundaries cannot be changed on the way."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import is_dataclass

from picospec import gateway
from picospec.gateway.accounts.account import Account
from picospec.gateway.doors.answer import Answer


def test_every_dataclass_but_the_account_is_frozen_and_all_have_slots() -> None:
    found = set()
    for info in pkgutil.walk_packages(gateway.__path__, "picospec.gateway."):
        for kind in vars(importlib.import_module(info.name)).values():
            if isinstance(kind, type) and kind.__module__ == info.name and is_dataclass(kind):
                found.add(kind)

    assert {kind for kind in found if not kind.__dataclass_params__.frozen} == {Account}
    assert all("__slots__" in vars(kind) for kind in found if kind.__base__ is not Answer)
