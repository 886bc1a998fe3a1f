"""Extraction: plan what is missing, compute it on dask workers, commit it shard by shard."""
