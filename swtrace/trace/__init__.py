"""What a rank writes and everyone else reads: the ring of records, its writer, its readers, its clock."""
