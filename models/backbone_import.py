"""A record of which weights a backbone took from a file, and which it did not."""

from __future__ import annotations

from dataclasses import dataclass

from models.renaming import count_modules


@dataclass(frozen=True)
class BackboneImport:
    """Which of a file's weights were loaded, and which were not."""

    file: str  # as the user named it; with the path, if that was a download
    entry: str | None  # keys in the file that led to the weights, joined by dots
    backbone: str  # name of the architecture
    layout: str  # who uses these names
    loaded: tuple[str, ...]  # our names
    missing: tuple[str, ...]  # our names that the file did not fill; still random
    # Those of `missing` that have a different shape in the file: name, theirs, ours.
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    unused: tuple[str, ...]  # their names

    def summary(self) -> str:
        """A few lines for the terminal."""
        total = len(self.loaded) + len(self.missing)
        lines = [
            f"backbone weights from {self.file}" + (f", entry {self.entry}" if self.entry else ""),
            f"  recognised  {self.layout}",
            f"  loaded      {len(self.loaded)} of {total} tensors of {self.backbone}",
        ]
        if self.missing:
            lines.append(f"  left random {count_modules(self.missing, module_of)}")
        if self.mismatched:
            name, theirs, ours = self.mismatched[0]
            lines.append(
                f"  other shape {len(self.mismatched)} of these, first {name}: "
                f"{theirs} in the file, {ours} here"
            )
        if self.unused:
            lines.append(f"  not used    {count_modules(self.unused, module_of)}")
        return "\n".join(lines)


def module_of(name: str) -> str:
    """`layer1` of `layer1.0.conv1.weight`, `module.fc` of `module.fc.bias`."""
    wrapped = name.startswith(("module.", "backbone."))
    return ".".join(name.split(".")[: 2 if wrapped else 1])
