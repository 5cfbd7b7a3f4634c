"""Reports that are tables: plain text for `print`, HTML for notebooks, and what rich's own consoles print."""

import abc
import io
from collections.abc import Iterator
from typing import Any


class Tabular(abc.ABC):
    """A report that shows itself as a table and lines below it."""

    @abc.abstractmethod
    def _shown(self) -> Iterator[Any]:
        """What rich is to print, one after the other."""

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from self._shown()

    def __str__(self) -> str:
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=160).print(*self._shown(), sep="\n")
        return text.getvalue()

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), record=True, width=160)
        console.print(*self._shown(), sep="\n")
        return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
