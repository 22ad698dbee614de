"""Whether `reset` and `step` of an environment are those of Gymnasium's API, and what is said where they are an older one's."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

__all__ = ["MEND_API", "called", "none_of_gymnasiums"]

MEND_API = "see Gymnasium's API, or wrap it by shimmy"
"""Ends what is said of a `reset` or `step` that is none of Gymnasium's."""
_GIVES = {"reset": ("obs", "info"), "step": ("obs", "reward", "terminated", "truncated", "info")}
_UNPACKED = re.compile(r"(not enough|too many) values to unpack \(expected \d+(?:, got (\d+))?\)")


def called(env: gym.Env[Any, Any], what: str, env_id: str, *args: Any, **kwargs: Any) -> tuple[Any, str]:
    """What `reset` or `step` of an environment gives, and a line if that, or how it has to be called, is not Gymnasium's API."""
    names = _GIVES[what]
    try:
        given = getattr(env, what)(*args, **kwargs)
    except (TypeError, ValueError) as error:
        if line := none_of_gymnasiums(error, what, env_id):
            return None, line
        raise
    if isinstance(given, tuple | list) and len(given) == len(names):
        info = given[-1]
        if info is None or isinstance(info, Mapping):
            return given, ""
        found = f"{len(given)} values, the last of them {type(info).__name__}"
    elif isinstance(given, tuple | list):
        found = f"{len(given)} value{'s' * (len(given) != 1)}"
    else:
        found = f"{type(given).__name__} alone"
    return None, _other_api(env_id, what, found)


def none_of_gymnasiums(error: Exception, what: str, env_id: str) -> str:
    """What is said of an error of whoever called an environment, a wrapper of Gymnasium's among them; nothing of its own."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if str(frame.f_globals.get("__name__")).partition(".")[0] not in ("gymnasium", "relax_rl"):
        return ""
    if found := _UNPACKED.search(str(error)):
        other = "fewer values" if found[1] == "not enough" else "other values"
        return _other_api(env_id, what, f"{found[2]} values" if found[2] else other)
    if what == "reset" and (missing := re.search(r"unexpected keyword argument '(seed|options)'", str(error))):
        return f"reset of {env_id} takes no {missing[1]}, expected reset(*, seed=None, options=None): {MEND_API}"
    return ""


def _other_api(env_id: str, what: str, found: str) -> str:
    return f"{what} of {env_id} returned {found}, expected ({', '.join(_GIVES[what])}): {MEND_API}"
