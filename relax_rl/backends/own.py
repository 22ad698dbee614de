"""Environments and wrappers of the user's own: classes, functions and objects, or `module:name` of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import SyncVectorEnv, VectorEnv, VectorWrapper

from relax_rl.backends.frames import FrameStack
from relax_rl.backends.infos import require_names
from relax_rl.backends.masks import AskedMasks
from relax_rl.backends.registry import ATARI_FRAMES, is_atari
from relax_rl.backends.single import prepared
from relax_rl.backends.traits import Vectorization, vectorization_of
from relax_rl.errors import RelaxRLError, SettingsError
from relax_rl.settings.dictionaries import pairs
from relax_rl.settings.fields import whole
from relax_rl.settings.naming import is_own, name_of, named

__all__ = ["Making", "OwnWrapper", "own_wrappers", "vector_env_made_elsewhere", "wrapped_vector_env"]

_PAIR = re.compile(r"\s*\w+\s*=")
"""How a keyword argument of a wrapper begins."""


@dataclass(frozen=True)
class OwnWrapper:
    """A wrapper, and what it is called with beside the environment.

    Attributes:
        name: in messages.
        wrap: class or function.
        settings: keyword arguments.
    """

    name: str
    wrap: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_vector(self) -> bool:
        """Whether it goes around a vector environment."""
        kind = getattr(self.wrap, "func", self.wrap)
        return isinstance(kind, type) and issubclass(kind, VectorWrapper)

    def __call__(self, env: Any) -> Any:
        """The environment inside the wrapper.

        Raises:
            SettingsError: the wrapper fails, or makes something else.
        """
        try:
            made = self.wrap(env, **self.settings)
        except RelaxRLError:
            raise
        except (Exception, SystemExit) as error:  # whatever somebody's own wrapper does
            line = (str(error).splitlines() or [""])[0][:300]
            raise SettingsError(
                f"wrapper {self.name} cannot be put around it: {type(error).__name__}: {line}"
            ) from error
        kind = VectorEnv if self.is_vector else gym.Env
        if not isinstance(made, kind):
            raise SettingsError(f"wrapper {self.name} made {type(made).__name__}, expected a {kind.__name__}")
        return made


def own_wrappers(given: Sequence[Any]) -> tuple[list[OwnWrapper], list[OwnWrapper]]:
    """Wrappers of single environments and of vector environments, each kind in the order given, innermost first.

    Args:
        given: classes or functions of an environment, or texts: `module:Wrapper`, and behind it `name=value` for each
            keyword argument, values in JSON.

    Raises:
        SettingsError: something else, or a name of nothing.
    """
    found: list[OwnWrapper] = []
    for each in (given,) if isinstance(given, str) else given:
        if isinstance(each, str) and found and _PAIR.match(each):
            found[-1].settings.update(pairs(each))
        elif isinstance(each, str) and is_own(each):
            found.append(OwnWrapper(each, named(each, "wrapper")))
        elif callable(each):
            found.append(OwnWrapper(name_of(getattr(each, "func", each)), each))
        else:
            raise SettingsError(
                f"wrapper {each!r}, expected module:Wrapper, its name=value pairs behind it, or a class"
            )
        if not callable(found[-1].wrap):
            raise SettingsError(
                f"wrapper {found[-1].name} is {type(found[-1].wrap).__name__}, expected a class or function"
            )
    return [each for each in found if not each.is_vector], [each for each in found if each.is_vector]


@dataclass(frozen=True, kw_only=True)
class Making:
    """What is put around environments when they are made.

    Attributes:
        single: wrappers of each environment, the first of them innermost.
        vector: wrappers of all of them together.
        frame_stack: observations that are stacked; 0 for 4 in Atari and none elsewhere.
        drop_keys, info_keys, action_masks, mask_key: see `make_envs`.
    """

    single: Sequence[OwnWrapper] = ()
    vector: Sequence[OwnWrapper] = ()
    frame_stack: int = 0
    drop_keys: Sequence[str] = ()
    info_keys: Sequence[str] = ()
    action_masks: AskedMasks = "auto"
    mask_key: str | None = None

    @classmethod
    def of(
        cls,
        wrappers: Sequence[Any],
        frame_stack: int,
        drop_keys: Sequence[str],
        info_keys: Sequence[str] = (),
        action_masks: AskedMasks = "auto",
        mask_key: str | None = None,
    ) -> Making:
        """With wrappers of both kinds; raises SettingsError for what is none, or a stack or a name that cannot be."""
        single, vector = own_wrappers(wrappers)
        whole("frame_stack", frame_stack, least=0, below=1_025)
        if frame_stack and mask_key is not None and mask_key not in drop_keys:
            raise SettingsError(
                f"mask_key {mask_key!r} would be stacked by frame_stack; leave it out beside, by drop_keys"
            )
        return cls(
            single=single,
            vector=vector,
            frame_stack=frame_stack,
            drop_keys=drop_keys,
            info_keys=require_names(info_keys),
            action_masks=action_masks,
            mask_key=mask_key,
        )

    def frames(self, spec: EnvSpec | None) -> int:
        """How many observations are stacked; 0 for none."""
        return self.frame_stack or (ATARI_FRAMES if is_atari(spec) else 0)

    def around_each(self, spec: EnvSpec) -> str:
        """What native vector code cannot be had with, in a word; nothing if there is no such thing."""
        stacked = self.frame_stack and not is_atari(spec)
        return "drop_keys" if self.drop_keys else "a wrapper" if self.single else "frame_stack" if stacked else ""

    def prepared(self, env_id: str) -> Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]:
        """What goes around each environment that Python code steps; see `relax_rl.backends.single`."""
        masks: dict[str, Any] = {"action_masks": self.action_masks, "mask_key": self.mask_key}
        return prepared(env_id, self.drop_keys, info_keys=self.info_keys, **masks)

    def masks_of(self, made_here: bool) -> AskedMasks:
        """Where the masks of a vector environment are to be found: those of a method stand in the infos once it is prepared."""
        return "info" if self.action_masks == "method" and made_here else self.action_masks

    def native(self, spec: EnvSpec, env_kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of ale-py's vector code that say the same; raises SettingsError where both are given."""
        if not (self.frame_stack and is_atari(spec)):
            return {}
        if "stack_num" in env_kwargs:
            raise SettingsError(f"{spec.id} is given both frame_stack and stack_num, which are the same; leave one out")
        return {"stack_num": self.frame_stack}


def wrapped_vector_env(env: VectorEnv[Any, Any, Any], wrappers: Sequence[OwnWrapper]) -> VectorEnv[Any, Any, Any]:
    """A vector environment inside wrappers, the first of them innermost; closed where one fails."""
    inner = env
    try:
        for wrapper in wrappers:
            env = wrapper(env)
    except BaseException:
        inner.close()
        raise
    return env


def vector_env_made_elsewhere(
    env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any], making: Making, *, asked: Sequence[str] = ()
) -> tuple[VectorEnv[Any, Any, Any], Vectorization, str]:
    """An environment that is there already, as a vector environment; how that steps, and its name.

    Args:
        env: single, and then the only one of its vector; or a vector.
        making: what is put around it.
        asked: arguments that were given and say how environments are made.

    Raises:
        SettingsError: what is asked for comes too late.
    """
    inner = env.unwrapped
    name = inner.spec.id if inner.spec is not None else type(inner).__name__
    late = list(asked)
    if isinstance(env, VectorEnv):
        each = {"wrappers of single environments": making.single, "drop_keys": making.drop_keys}
        late += [word for word, given in {**each, "frame_stack": making.frame_stack}.items() if given]
    if late:
        raise SettingsError(
            f"{name} is made already, too late for {', '.join(late)}; give its id or class, or set it there"
        )
    if isinstance(env, VectorEnv):
        return wrapped_vector_env(env, making.vector), vectorization_of(env.unwrapped), name
    made: gym.Env[Any, Any] = env
    for wrap in making.single:
        made = wrap(made)
    made = making.prepared(name)(made)
    made = FrameStack(made, making.frame_stack) if making.frame_stack else made
    return wrapped_vector_env(SyncVectorEnv([lambda: made]), making.vector), "sync", name
