"""Export a run for other tools, as Perfetto, OTLP, Parquet or CSV, streamed in bounded memory."""
