"""Tables whose columns are decoded when somebody asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

TEXT = pa.dictionary(pa.int32(), pa.string())  # of text that many rows share
ROW_GROUP = 1 << 18  # rows; the dictionary of as many keeps below Parquet's limit of 1 MB


class Columns:
    """Rows of a Parquet file, less those that are out of date, and the rows that came after.

    A view of ten million frames has gigabytes of columns, and most readers need a few of them. The
    file's bytes were checked when they were read; a column is decoded at its first use.

    Args:
        schema: The columns there should be; one that the file lacks is null.
        data: The Parquet file.
        kept: Which of its rows count; all of them by default.
        more: The rows that came after, in the schema.
    """

    def __init__(
        self,
        schema: pa.Schema,
        data: bytes | None = None,
        kept: npt.NDArray[np.bool_] | None = None,
        more: pa.Table | None = None,
    ) -> None:
        self.schema = schema
        self._data = data
        self._kept = kept
        self._more = schema.empty_table() if more is None else more
        self._decoded: dict[str, pa.ChunkedArray] = {}
        self._num_stored = 0
        if data is not None:
            rows = self._open().metadata.num_rows
            self._num_stored = int(rows if kept is None else np.count_nonzero(kept))

    @property
    def names(self) -> list[str]:
        """Columns that are stored, whether or not the schema has them."""
        return list(self._open().schema_arrow.names) if self._data is not None else []

    def __len__(self) -> int:
        return self._num_stored + len(self._more)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        column = self._decoded.get(name)
        if column is None:
            # Two threads may both get here; either's column serves.
            column = self._decoded[name] = self._column(name)
        return column

    def array(self, name: str) -> npt.NDArray[Any]:
        """A column of numbers."""
        return np.asarray(self[name])

    def encoded(self, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        """A column of ``TEXT`` as numbers, and what each number stands for."""
        codes, texts = self.indexed(name)
        return codes, texts.to_pylist()

    def indexed(self, name: str) -> tuple[npt.NDArray[np.int32], pa.ChunkedArray]:
        """A column of ``TEXT`` as numbers, and the texts that they number."""
        column = self[name].unify_dictionaries()
        codes = [np.asarray(chunk.indices) for chunk in column.chunks]
        if not codes:
            return np.zeros(0, np.int32), pa.chunked_array([], pa.string())
        return np.concatenate(codes), pa.chunked_array([column.chunk(0).dictionary])

    def plus(self, rows: pa.Table) -> Columns:
        """These rows, and after them some more."""
        return Columns(self.schema, self._data, self._kept, pa.concat_tables([self._more, rows]))

    def where(self, kept: npt.NDArray[np.bool_]) -> Columns:
        """Those of the rows for which ``kept`` is true."""
        if kept.all():
            return self
        stored, more = kept[: self._num_stored], kept[self._num_stored :]
        if self._kept is not None:
            whole = self._kept.copy()
            whole[whole] = stored
            stored = whole
        return Columns(self.schema, self._data, stored, self._more.filter(pa.array(more)))

    def table(self) -> pa.Table:
        """Every column."""
        columns = [self._column(name) for name in self.schema.names]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def _column(self, name: str) -> pa.ChunkedArray:
        field = self.schema.field(name)
        if self._data is None:
            return self._more[name]
        file = self._open()
        if name in file.schema_arrow.names:
            # pyarrow 26's threads abort the process at its exit now and then.
            stored = file.read([name], use_threads=False).column(0)
            if stored.type != field.type:
                stored = stored.cast(field.type)
        else:  # written before there was such a column
            stored = pa.chunked_array([pa.nulls(file.metadata.num_rows, field.type)])
        if self._kept is not None:
            stored = stored.filter(pa.array(self._kept))
        return pa.chunked_array([*stored.chunks, *self._more[name].chunks], field.type)

    def _open(self) -> pq.ParquetFile:
        texts = [field.name for field in self.schema if pa.types.is_dictionary(field.type)]
        return pq.ParquetFile(pa.BufferReader(self._data), read_dictionary=texts)


def parquet(table: pa.Table) -> bytes:
    """The bytes of a Parquet file that holds a table."""
    sink = pa.BufferOutputStream()
    shared = [f.name for f in table.schema if not _is_various(f)]
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP, use_dictionary=shared)
    return bytes(sink.getvalue())


def _is_various(field: pa.Field) -> bool:
    """Whether the rows of a column hardly share values, so that looking for some is in vain."""
    return field.name in {"row", "pts_us", "sha256", "stats", "index_crc", "chunks_crc"}
