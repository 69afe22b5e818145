"""The ring of records that a rank writes and others read: its format, writer, readers and clocks."""
