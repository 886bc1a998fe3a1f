"""fcache: cache a frozen backbone's stage outputs once, train from the cache."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcache.cache import Cache, open_cache
    from fcache.train import train

__version__ = "0.1.0"
__all__ = ["Cache", "__version__", "open_cache", "train"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    # zarr and pyarrow take a while to import; the command line's help must not wait for them.
    if name in {"Cache", "open_cache"}:
        from fcache import cache

        return getattr(cache, name)
    if name == "train":
        return importlib.import_module("fcache.train")  # a package that can be called
    raise AttributeError(f"module 'fcache' has no attribute '{name}'")
