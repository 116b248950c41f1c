"""Docstrings as TorchRL writes them, with Sphinx's roles, read as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

MATH = re.compile(r"^( *)\.\. math::(.*(?:\n+\1 +\S.*)*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]*)`")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Mathematics between dollars, and links to what a room of the package exports."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Griffe's hook, once the whole package is read."""
        exported = {
            name: f"{room.path}.{name}"
            for room in pkg.modules.values()
            for name, member in room.members.items()
            if member.is_public and member.has_docstring and not member.is_module
        }
        self._translate(pkg, exported)

    def _translate(self, owner: griffe.Object, exported: dict[str, str]) -> None:
        if owner.docstring is not None:
            owner.docstring.value = markdown(owner.docstring.value, exported)
        for member in owner.members.values():
            if isinstance(member, griffe.Object):  # an alias is translated where it is defined
                self._translate(member, exported)


def display(block: re.Match[str]) -> str:
    """Equations, which blank lines part, as one aligned block."""
    rows = (" ".join(row.split()) for row in block[2].strip().split("\n\n"))
    return "\n".join(
        block[1] + line for line in (r"$$\begin{aligned}", " \\\\ ".join(rows), r"\end{aligned}$$")
    )


def markdown(text: str, exported: dict[str, str]) -> str:
    """A docstring for mkdocstrings.

    Args:
        text: the docstring.
        exported: the path under which the reference shows a name.
    """

    def link(role: re.Match[str]) -> str:
        name = role[1].rpartition(".")[2]
        return f"[`{name}`][{exported[name]}]" if name in exported else f"`{role[1]}`"

    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = INLINE.sub(r"$\1$", MATH.sub(display, text))
    return ROLE.sub(link, text)
