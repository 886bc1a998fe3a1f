"""fcache: cache a frozen backbone's stage outputs once, train from the cache."""

__version__ = "0.1.0"
