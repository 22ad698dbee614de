"""Machine code kept between runs: whole, the user's own, and checked against the function before it is used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from relax_rl.compute import code_cache, compilation
from relax_rl.compute.code_cache import find, folder, workshop
from relax_rl.compute.compilation import CompilationError, Compiled, NotKept


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("RELAX_RL_CACHE", str(path))
    return path


def keep(key: str, content: bytes = b"code") -> Path:
    with workshop(key) as path:
        path.write_bytes(content)
    found = find(key)
    assert found is not None
    return found


def test_code_is_found_again_under_its_own_key_alone(home: Path) -> None:
    assert find("one") is None
    assert keep("one").read_bytes() == b"code" and find("other") is None
    assert home.stat().st_mode & 0o777 == 0o700 and sorted(p.name for p in home.iterdir()) == ["one.sha256", "one.so"]
    assert keep("one", b"newer").read_bytes() == b"newer"


def test_nothing_is_kept_of_a_failure_or_without_a_key(home: Path) -> None:
    with pytest.raises(RuntimeError), workshop("one") as path:
        path.write_bytes(b"half")
        raise RuntimeError
    with workshop(None) as path:
        path.write_bytes(b"code")
    assert not path.exists() and find("one") is None and not list(home.iterdir())


@pytest.mark.parametrize("named", ["", "/proc/nowhere"])
def test_without_a_folder_nothing_is_kept(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAX_RL_CACHE", named)
    assert folder() is None
    with workshop("one") as path:
        path.write_bytes(b"code")
    assert find("one") is None


def test_by_default_the_folder_is_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAX_RL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder() == tmp_path / "relax_rl"


def open_to_others(path: Path) -> None:
    path.chmod(0o777)


def link(path: Path) -> None:
    real = path.rename(path.with_name("elsewhere"))
    path.symlink_to(real)


def somebody_elses(path: Path) -> None:
    os.getuid = lambda: 123456


SPOILED: dict[str, Callable[[Path], Any]] = {
    "open to others": open_to_others,
    "a link": link,
    "somebody else's": somebody_elses,
}


@pytest.mark.parametrize("which", ["folder", "file"])
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_nothing_is_taken_that_others_could_have_put_there(
    which: str, spoil: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", os.getuid)  # put back afterwards
    path = keep("one")
    spoil(home if which == "folder" else path)
    assert find("one") is None


@pytest.mark.parametrize("content", [b"", b"codf", b"code and more"])
def test_a_file_that_is_not_whole_is_removed(home: Path, content: bytes) -> None:
    keep("one").write_bytes(content)
    assert find("one") is None and not list(home.iterdir())


def test_the_latest_files_are_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "_KEPT", 2)
    for age, key in enumerate("abc"):
        path = keep(key)
        os.utime(path, (1000 + age, 1000 + age))
    assert [key for key in "abc" if find(key)] == ["b", "c"]


# Compiled functions


def doubled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"y": 2.0 * inputs["x"] ** 2}


X = {"x": torch.tensor([1.0, 2.0])}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A compiler that writes which power and factor it has found, and a loader of that; tells what was compiled."""
    compiled: list[Any] = []

    def compile(traced: Any, inputs: Any, key: str | None) -> Any:
        compiled.append(key)
        with workshop(key) as path:
            path.write_text("2.0 2")
            return load(path)

    def load(path: Path) -> Any:
        factor, power = (float(x) for x in path.read_text().split())
        return lambda x: (factor * x**power,)

    monkeypatch.setattr(compilation, "_compile", compile)
    monkeypatch.setattr(compilation, "_load", load)
    return compiled


def test_code_of_an_earlier_run_is_taken(home: Path, compiler: list[Any]) -> None:
    for _ in range(2):
        torch.testing.assert_close(Compiled(doubled, identity="f")(X)["y"], torch.tensor([2.0, 8.0]))
    assert len(compiler) == 1
    assert Compiled(doubled, identity="f", only_kept=True)(X)["y"][0] == 2.0
    for other in ({"identity": "g"}, {"identity": None}):
        with pytest.raises(NotKept):
            Compiled(doubled, **other, only_kept=True)(X)  # type: ignore[arg-type]
    with pytest.raises(NotKept):
        Compiled(doubled, identity="f", only_kept=True)({"x": torch.ones(3)})
    Compiled(doubled)(X)
    assert compiler[1:] == [None]


def test_code_that_gives_other_numbers_is_made_anew_or_refused(
    home: Path, compiler: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Compiled(doubled, identity="f")(X)
    keep(compiler[0], b"2.0 3")
    with pytest.raises(NotKept):
        Compiled(doubled, identity="f", only_kept=True)(X)
    assert Compiled(doubled, identity="f")(X)["y"][1] == 8.0 and len(compiler) == 2
    monkeypatch.setattr(compilation, "_compile", lambda traced, inputs, key: lambda x: (x,))
    with pytest.raises(CompilationError, match=r"other numbers than eager code; take --compile off"):
        Compiled(doubled, identity="g")(X)


def test_code_of_another_package_is_not_taken(home: Path, compiler: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    Compiled(doubled, identity="f")(X)
    monkeypatch.setattr(code_cache, "package_digest", lambda: "another")
    with pytest.raises(NotKept):
        Compiled(doubled, identity="f", only_kept=True)(X)
