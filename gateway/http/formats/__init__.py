"""The forms of an answer with records: lines, a table, Parquet."""
