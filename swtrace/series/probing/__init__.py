"""What `swtrace probe` runs on the ranks: transfers between them, and copies from host memory, timed in blocks."""
