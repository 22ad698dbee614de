"""Packages of environments, the versions that were tried, and the set-up that each needs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PACKAGES", "Case", "Package"]

HELPED = "benchmarks.third_party_environments:"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One environment.

    Attributes:
        env: what stands behind `--env`.
        options: of the commands that begin a run.
        vectorization: where one process cannot hold two of them.
        note: what has to be known.
    """

    env: str
    options: tuple[str, ...] = ()
    vectorization: str = "sync"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package with what is installed for it, as pip takes it, and environment variables that it needs."""

    name: str
    requirements: tuple[str, ...]
    cases: tuple[Case, ...]
    variables: tuple[tuple[str, str], ...] = ()
    note: str = ""


OLD_MUJOCO = "MuJoCo 3.4 and newer break it within itself."

PACKAGES = (
    Package(
        name="minigrid",
        requirements=("minigrid==3.2.0",),
        cases=(
            Case(env="minigrid:MiniGrid-DoorKey-5x5-v0", note="The text of the leaf `mission` is left out by itself."),
        ),
    ),
    Package(
        name="minatar",
        requirements=("minatar==1.0.15",),
        cases=(Case(env="minatar:MinAtar/Seaquest-v1"),),
    ),
    Package(
        name="pybullet-envs-gymnasium",
        requirements=("pybullet-envs-gymnasium==0.6.0",),
        cases=(Case(env="pybullet_envs_gymnasium:HopperBulletEnv-v0"),),
    ),
    Package(
        name="flappy-bird-gymnasium",
        requirements=("flappy-bird-gymnasium==0.4.0",),
        cases=(Case(env="flappy_bird_gymnasium:FlappyBird-v0", options=("--env-kwargs", "use_lidar=false")),),
    ),
    Package(
        name="panda-gym",
        requirements=("panda-gym==3.0.7",),
        cases=(Case(env="panda_gym:PandaReachDense-v3"),),
    ),
    Package(
        name="highway-env",
        requirements=("highway-env==1.12.1",),
        cases=(Case(env="highway_env:highway-fast-v0", options=("--env-kwargs", '{"config": {"duration": 20}}')),),
    ),
    Package(
        name="gymnasium-search-race",
        requirements=("gymnasium-search-race==4.1.1",),
        cases=(Case(env="gymnasium_search_race:gymnasium_search_race/SearchRaceDiscrete-v3"),),
    ),
    Package(
        name="mo-gymnasium",
        requirements=("mo-gymnasium==1.3.2",),
        cases=(
            Case(env=f"{HELPED}deep_sea_treasure", note="Its rewards are vectors: LinearReward makes one of them."),
        ),
    ),
    Package(
        name="gym-trading-env",
        requirements=("gym-trading-env==0.3.5",),
        cases=(Case(env=f"{HELPED}trading", note="It asks for a data frame, which no command line can give."),),
    ),
    Package(
        name="lbforaging",
        requirements=("lbforaging==2.0.0",),
        cases=(Case(env=f"{HELPED}foraging", note="A team, led by one agent."),),
    ),
    Package(
        name="rware",
        requirements=("rware==2.0.0",),
        cases=(Case(env=f"{HELPED}warehouse", note="A team, led by one agent."),),
    ),
    Package(
        name="vizdoom",
        requirements=("vizdoom==1.3.2",),
        cases=(
            Case(
                env="vizdoom.gymnasium_wrapper:VizdoomBasic-v1",
                options=("--env-kwargs", "frame_skip=4"),
                note="Images of 240 x 320 pixels are slow to learn from.",
            ),
        ),
    ),
    Package(
        name="gymnasium-robotics",
        requirements=("gymnasium-robotics==1.4.2", "mujoco<3.4"),
        cases=(
            Case(env="gymnasium_robotics:PointMaze_UMazeDense-v3"),
            Case(env="gymnasium_robotics:FetchReachDense-v4"),
        ),
        note=OLD_MUJOCO,
    ),
    Package(
        name="shimmy",
        requirements=("shimmy[dm-control]==2.0.1", "mujoco<3.4"),
        cases=(Case(env="shimmy:dm_control/cartpole-balance-v0"),),
        note=OLD_MUJOCO,
    ),
    Package(
        name="metaworld",
        requirements=("metaworld==3.1.1", "mujoco<3.4"),
        cases=(Case(env="metaworld:Meta-World/MT1", options=("--env-kwargs", "env_name=reach-v3")),),
        note=OLD_MUJOCO,
    ),
    Package(
        name="popgym",
        requirements=("popgym==1.0.7",),
        cases=(
            Case(env="popgym:popgym-RepeatPreviousEasy-v0"),
            Case(env="popgym:popgym-PositionOnlyCartPoleEasy-v0"),
        ),
    ),
    Package(
        name="memory-gym",
        requirements=("--no-deps", "memory-gym==1.0.2", "pygame-ce==2.5.8"),
        cases=(Case(env="memory_gym:MortarMayhem-Grid-v0"),),
        note="It asks for exactly Gymnasium 0.29, and works with newer ones.",
    ),
    Package(
        name="crafter",
        requirements=("crafter==1.8.3",),
        cases=(Case(env=f"{HELPED}Crafter", note="It speaks the interface of Gym before Gymnasium."),),
    ),
    Package(
        name="miniworld",
        requirements=("miniworld==2.1.0",),
        cases=(Case(env="miniworld:MiniWorld-OneRoom-v0"),),
        variables=(("PYGLET_HEADLESS", "1"),),
    ),
    Package(
        name="gym-pusht",
        requirements=("gym-pusht==0.1.8",),
        cases=(Case(env="gym_pusht:gym_pusht/PushT-v0"),),
    ),
    Package(
        name="gym-xarm",
        requirements=("gym-xarm==0.1.1", "mujoco<3.4"),
        cases=(Case(env="gym_xarm:gym_xarm/XarmLift-v0"),),
    ),
    Package(
        name="gym-anytrading",
        requirements=("gym-anytrading==2.0.0",),
        cases=(Case(env="gym_anytrading:stocks-v0"),),
    ),
    Package(
        name="tetris-gymnasium",
        requirements=("tetris-gymnasium==0.3.1",),
        cases=(Case(env="tetris_gymnasium.envs:tetris_gymnasium/Tetris"),),
    ),
    Package(
        name="pyflyt",
        requirements=("PyFlyt==0.29.0",),
        cases=(Case(env="PyFlyt.gym_envs:PyFlyt/QuadX-Hover-v4"),),
    ),
    Package(
        name="gym-electric-motor",
        requirements=("gym-electric-motor==3.0.3",),
        cases=(Case(env="gym_electric_motor:Cont-CC-PMSM-v0"),),
    ),
    Package(
        name="nle",
        requirements=("nle==1.3.0",),
        cases=(Case(env="nle:NetHackScore-v0"),),
    ),
    Package(
        name="minihack",
        requirements=("minihack==1.0.2", "setuptools<81"),
        cases=(Case(env="minihack:MiniHack-Room-5x5-v0"),),
    ),
    Package(
        name="gymnasium-sudoku",
        requirements=("gymnasium-sudoku==0.3.5",),
        cases=(Case(env="gymnasium_sudoku:sudoku-v0", note="Row, column and digit are a Tuple of choices."),),
    ),
)
