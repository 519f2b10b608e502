"""What every room needs of the process it runs in: files, provenance, other processes."""
