"""The version, and pickles that name public paths, such as `jaxinit.he_normal`, never the file of a class.

So files can move and old pickles still load. The only private name of this package in a pickle is that of `restored`,
which therefore stays here.
"""

import pkgutil
from typing import Any, ClassVar

__version__ = "0.1.0"


class Public:
    """A value defined by its fields, pickled as the public name of its class and those fields."""

    public_module: ClassVar[str]
    """The module from which users import the class."""

    def __reduce__(self) -> Any:
        kind = type(self)
        path = f"{kind.public_module}:{kind.__name__}"
        try:
            is_public = pkgutil.resolve_name(path) is kind
        except AttributeError:
            is_public = False
        # A user's own class does not have a public name here: it is pickled by its own module, as any class is.
        return (restored, (path, vars(self))) if is_public else super().__reduce__()


def restored(path: str, fields: dict[str, Any]) -> Any:
    """The value of the class of this name, with these fields."""
    return pkgutil.resolve_name(path)(**fields)
