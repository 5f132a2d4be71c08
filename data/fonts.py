"""The font of captions: Pillow's own or a font file, and what to write where it has no glyph."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from PIL import ImageFont

from data.errors import DataError
from data.regular_file import require_regular

PROBE_SIZE = 20  # pixels, at which glyphs are compared
NO_CHARACTER = "\U0010fffe"  # Unicode promises that no character will ever have this number


class CaptionFont:
    """A font at any size.

    Args:
        file: TrueType or OpenType; None is the one in Pillow, which has little more than the
            letters A to Z.

    Raises:
        DataError: the file is missing, or not a font that can be scaled.
    """

    def __init__(self, file: str | Path | None = None) -> None:
        self.file = file
        self._glyphs: dict[str, bool] = {}
        self.at(PROBE_SIZE)  # an unusable file is noticed before the work

    def at(self, size: int) -> ImageFont.FreeTypeFont:
        """The font with letters that fill lines of about `size` pixels."""
        if self.file is None:
            return ImageFont.load_default(size)
        require_regular(self.file)
        try:
            return ImageFont.truetype(str(self.file), size)
        except OSError as error:
            raise DataError(
                f"{self.file}: cannot be used as a font ({error}); give a TrueType or OpenType file"
            ) from None

    def readable(self, text: str, instead: str = "") -> str:
        """`text` on one line, in characters that the font has.

        An accented letter without a glyph loses its accent, any other character becomes `?`.

        Args:
            text: may hold line breaks, and characters of any script.
            instead: returned if nothing but `?` would be left.
        """
        words = unicodedata.normalize("NFC", " ".join(text.split()))
        shown = "".join(map(self._nearest, words)).strip()
        return shown if shown.strip("? ") else instead

    def missing(self, texts: Iterable[str]) -> str:
        """The characters of the texts that the font has no glyph for, each once."""
        words = (unicodedata.normalize("NFC", " ".join(text.split())) for text in texts)
        visible = (char for word in words for char in word if not _is_invisible(char))
        return "".join(dict.fromkeys(char for char in visible if not self._has(char)))

    def notice(self, texts: Iterable[str]) -> str | None:
        """A sentence for the user if characters are missing, else None."""
        missing = self.missing(texts)
        if not missing:
            return None
        listed = " ".join(missing[:20]) + (" ..." if len(missing) > 20 else "")
        # A lone surrogate cannot be printed.
        listed = listed.encode("utf-8", "backslashreplace").decode()
        return f"the font has no glyphs for {listed}; give --font FILE, a font that has them"

    def _has(self, char: str) -> bool:
        if char not in self._glyphs:
            self._glyphs[char] = (
                unicodedata.category(char) != "Cs"  # half a character: Pillow raises an error
                and self._drawn(char) != self._empty_box
            )
        return self._glyphs[char]

    def _nearest(self, char: str) -> str:
        """The character, or letters in its place."""
        if _is_invisible(char):
            return ""
        if self._has(char):
            return char
        parts = unicodedata.normalize("NFKD", char)
        if parts == char:
            parts = char.casefold()  # for the German sharp s
        return "".join(p for p in parts if p != char and not _is_mark(p) and self._has(p)) or "?"

    @cached_property
    def _empty_box(self) -> tuple[object, ...]:
        return self._drawn(NO_CHARACTER)

    def _drawn(self, char: str) -> tuple[object, ...]:
        font = self.at(PROBE_SIZE)
        mask = font.getmask(char)
        return mask.size, bytes(mask), font.getlength(char)


def _is_invisible(char: str) -> bool:
    """Control and format characters, such as joiners, and what selects a variant of a glyph."""
    return unicodedata.category(char) in ("Cc", "Cf") or "\ufe00" <= char <= "\ufe0f"


def _is_mark(char: str) -> bool:
    return unicodedata.combining(char) != 0
