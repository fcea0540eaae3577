"""The repairs that the archived ParlAI 1.7.2 needs on today's libraries, made at run time in the running process.

Each repair is small, named and guarded by a check, so that it does nothing where it is not needed; no file of ParlAI
is ever changed. `apply_all()` imports nothing: what ParlAI has not imported yet is repaired when it is. The defects
were found by running ParlAI with torch 2.13, numpy 2 and transformers 5. Left out are defects that no user of
training, evaluation or chat meets (dead downloads, dead optional packages, the analysis scripts of crowdsourcing).

The environment variable `PARLAI_SAFETY_SKIP_REPAIRS=name,name` leaves repairs out, to see ParlAI as it is.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple

from parlai_safety.compat.base import Repair, after_import
from parlai_safety.compat.errors import REPAIRS as _ERRORS
from parlai_safety.compat.parallel import REPAIRS as _PARALLEL
from parlai_safety.compat.single import REPAIRS as _SINGLE
from parlai_safety.errors import SafetyError, did_you_mean

__all__ = ["REPAIRS", "SKIP_VARIABLE", "Repair", "RepairStatus", "apply_all", "status"]

REPAIRS: tuple[Repair, ...] = (*_SINGLE, *_PARALLEL, *_ERRORS)
SKIP_VARIABLE = "PARLAI_SAFETY_SKIP_REPAIRS"

_states: dict[str, str] = {}
_scheduled: set[str] = set()


class RepairStatus(NamedTuple):
    """How a repair stands in this process.

    Attributes:
        name: the repair's name.
        state: "applied", "not needed", "waiting for <module>", "skipped", "not started" or "failed: <error>".
        symptom: what a user sees without the repair, in one line.
    """

    name: str
    state: str
    symptom: str


def apply_all() -> None:
    """Apply every repair that is needed, now or when its module is imported; a second call does nothing.

    A repair that fails is reported as a warning and by `status`, and ParlAI goes on as it was.

    Raises:
        SafetyError: `PARLAI_SAFETY_SKIP_REPAIRS` names an unknown repair.
    """
    skipped = _skipped()
    for repair in REPAIRS:
        if repair.name in _scheduled:
            continue
        _scheduled.add(repair.name)
        if repair.name in skipped:
            _states[repair.name] = "skipped"
        else:
            after_import(repair.lazy, functools.partial(_mend, repair))


def status() -> list[RepairStatus]:
    """How each repair stands, in the order of `REPAIRS`."""
    return [RepairStatus(repair.name, _state(repair), repair.symptom) for repair in REPAIRS]


def _state(repair: Repair) -> str:
    if repair.name not in _scheduled:
        return "not started"
    return _states.get(repair.name, f"waiting for {repair.lazy}")


def _mend(repair: Repair) -> None:
    try:
        needed = repair.needed()
        if needed:
            repair.apply()
        _states[repair.name] = "applied" if needed else "not needed"
    except Exception as error:
        # An exception here would surface inside an import of ParlAI, far from its cause.
        _states[repair.name] = f"failed: {type(error).__name__}: {error}"
        logging.getLogger("parlai_safety").warning(
            "The repair %r of %s failed (%s: %s). Without it: %s",
            repair.name,
            repair.where,
            type(error).__name__,
            error,
            repair.symptom,
        )


def _skipped() -> set[str]:
    names = {name.strip() for name in os.environ.get(SKIP_VARIABLE, "").split(",")} - {""}
    known = [repair.name for repair in REPAIRS]
    for name in sorted(names.difference(known)):
        raise SafetyError(
            f"{SKIP_VARIABLE} names the repair {name!r}",
            "There is no repair of that name",
            did_you_mean(name, known, f"The repairs are: {', '.join(known)}"),
        )
    return names
