"""Where the time of a run goes: a table by section of the update, and a trace of a few updates."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relax_rl.compute.clocks import Stopwatch
from relax_rl.compute.serialization import replacing, write_json, write_text_atomic, writing

if TYPE_CHECKING:
    from relax_rl.agents import ActorCritic, UpdateInfo

__all__ = ["SECTIONS", "Profile", "profile_of"]

SECTIONS: Mapping[str, str] = {
    "act": "noise, policy and actions for the environments",
    "env": "the environments' own step, and what keeps track of their episodes",
    "advantage": "policy and value function on the whole rollout, generalised advantage estimation",
    "estimate": "the gradient at the parameters of the action distributions",
    "backward": "pulling it back through the policy, the value function's regression",
    "update": "the compiled update, in the place of estimate, backward and surrogate",
    "communication": "waiting for the other workers, and exchanging with them",
    "optimiser": "clipping, and the step of policy and value function",
    "surrogate": "the gradient of the variance, and the surrogate's step",
    "statistics": "metrics of the batch, running means and variances",
    "logging": "rows, the display, and everything else that is called after an update",
    "evaluation": "episodes on separate environments",
    "checkpoints": "saving, and drawing the learning curve",
}
"""The sections of a training run, in the order of the table."""


class Profile:
    """A callback that traces a few updates, measures all later ones, and writes what it found.

    It stands last among the callbacks: an update is over when it is called. The first updates, which set things up,
    and the traced ones, which the tracing slows, are not measured.

    Args:
        watch: what the agent calls.
        folder: where `profile.md`, `profile.json` and `profile_trace.json` go.
        about: what was measured, for the heading.
        warm_up: updates before the trace.
        traced: updates in the trace.
    """

    def __init__(
        self, watch: Stopwatch, folder: Path, *, about: Mapping[str, Any], warm_up: int = 10, traced: int = 3
    ) -> None:
        self._watch, self._folder, self._about = watch, folder, dict(about)
        self._trace_from, self._measure_from = warm_up, warm_up + traced
        self._updates = 0
        self._tracer: Any = None
        self._steps = self._first_step = 0

    def __call__(self, agent: ActorCritic, info: UpdateInfo) -> None:
        self._updates += 1
        self._steps = info.steps
        if self._updates == self._trace_from:
            self._begin_trace()
        elif self._updates == self._measure_from:
            self._end_trace()
            self._first_step = info.steps
            self._watch.reset()

    def close(self) -> None:
        """End the measurement and write it.

        Raises:
            RelaxRLError: the files cannot be written.
        """
        self._watch(None)
        if self._tracer is not None:
            self._end_trace()
        updates = max(0, self._updates - self._measure_from)
        sections = self._sections(updates)
        report = {
            **self._about,
            "updates": updates,
            "steps": self._steps - self._first_step if updates else 0,
            "ms_per_update": sum(entry["ms_per_update"] for entry in sections.values()),
            "sections": sections,
        }
        write_json(self._folder / "profile.json", report)
        write_text_atomic(self._folder / "profile.md", self._table(report))

    def _sections(self, updates: int) -> dict[str, dict[str, float]]:
        if not updates:
            return {}
        seconds = self._watch.seconds
        whole = sum(seconds.values())
        names = [*SECTIONS, *(name for name in seconds if name not in SECTIONS)]
        return {
            name: {"ms_per_update": 1e3 * seconds[name] / updates, "share": seconds[name] / whole}
            for name in names
            if name in seconds
        }

    def _table(self, report: Mapping[str, Any]) -> str:
        lines = ["# Where the time goes", "", " · ".join(f"{name} {value}" for name, value in self._about.items()), ""]
        if not report["updates"]:
            lines.append(f"Nothing was measured: the run ended within its first {self._measure_from} updates.")
            return "\n".join([*lines, ""])
        whole = report["ms_per_update"]
        rate = report["steps"] / (1e-3 * whole * report["updates"])
        lines += [
            f"Means over {report['updates']:,} updates ({report['steps']:,} environment steps, {rate:,.0f} per second); "
            f"the first {self._measure_from} are left out. `profile_trace.json` shows {self._measure_from - self._trace_from} "
            "of those: open it in chrome://tracing or ui.perfetto.dev.",
            "",
            "| section | ms per update | share | what |",
            "|---|---:|---:|---|",
        ]
        for name, entry in report["sections"].items():
            lines.append(f"| {name} | {entry['ms_per_update']:.3f} | {entry['share']:.1%} | {SECTIONS.get(name, '')} |")
        return "\n".join([*lines, f"| together | {whole:.3f} | 100.0% | |", ""])

    def _begin_trace(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._tracer = profile(activities=activities)
        with _silent_stderr():
            self._tracer.start()
        self._watch.tracing = True

    def _end_trace(self) -> None:
        self._watch.tracing = False
        self._watch("logging")
        with _silent_stderr():
            self._tracer.stop()
        path = self._folder / "profile_trace.json"
        with writing(path), replacing(path) as unfinished:
            self._tracer.export_chrome_trace(str(unfinished))
        self._tracer = None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without what torch's profiler prints from C++ whenever it starts and stops, past Python's own streams."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def profile_of(agent: ActorCritic, folder: Path, *, env: str, num_envs: int) -> Profile:
    """Have the sections of an agent's updates measured.

    Args:
        agent: which learns.
        folder: of its run.
        env, num_envs: the environments of this process.
    """
    import torch

    watch = Stopwatch(torch.cuda.synchronize if agent.device.type == "cuda" else None)
    agent.watch = watch
    workers = agent.workers.count
    about = {
        "environment": env,
        "estimator": agent.name,
        "batch": f"{workers * num_envs} x {agent.config.num_steps}",
        "workers": workers,
        "device": str(agent.device),
        "threads": torch.get_num_threads(),
    }
    return Profile(watch, folder, about=about)
