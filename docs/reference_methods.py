"""An extension of Griffe: in the reference, each distribution leads to what its protocols say of its methods.

Distributions inherit nothing, and what a method takes and gives is written once, in `relax_rl.distributions.protocols`.
"""

from __future__ import annotations

from typing import Any

import griffe

PLACE = "relax_rl.distributions"


class ProtocolMethods(griffe.Extension):
    """Ends the docstring of a class of `PLACE` with its methods that only a protocol describes, linked to there."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """The hook that Griffe calls with a package that is loaded."""
        if pkg.path != PLACE.partition(".")[0]:
            return
        protocols = [kind for kind in pkg["distributions.protocols"].classes.values() if kind.is_public]
        places = {name: f"{PLACE}.{kind.name}.{name}" for kind in protocols for name in kind.members}
        for module in pkg["distributions"].modules.values():
            for kind in module.classes.values():
                if (
                    not kind.is_alias
                    and kind.name in pkg["distributions"].members
                    and kind not in protocols
                    and kind.docstring
                ):
                    kind.docstring.value += f"\n\n{linked(kind, places)}"


def linked(kind: griffe.Class, places: dict[str, str]) -> str:
    """A paragraph of links to the methods that the class has and that lack a docstring."""
    known = {name: member for name, member in kind.all_members.items() if name in places}
    links = [
        f"[`{name}`][{place}]" for name, place in places.items() if name in known and not known[name].has_docstring
    ]
    return f"Described with the protocols: {', '.join(links)}."
