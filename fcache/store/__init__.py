"""The sharded Zarr v3 cache: layout, identity, commit, reading, checking. Never torch."""
