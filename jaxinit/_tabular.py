"""Reports that are tables: plain text for `print`, HTML for notebooks, and what rich's own consoles print."""

import abc
import io
from collections.abc import Iterator
from typing import Any


def add_path_column(table: Any, title: str) -> None:
    """A column of a rich table for paths, which wrap rather than being cut, since their ends tell them apart."""
    table.add_column(title, overflow="fold", min_width=16)


class Tabular(abc.ABC):
    """A report that shows itself as a table with lines below it."""

    @abc.abstractmethod
    def _shown(self) -> Iterator[Any]:
        """What rich should print, one after the other."""

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
