"""A run in other tools' formats: Perfetto, OTLP, Parquet, CSV. Streamed, in bounded memory."""
