"""What the other packages need from the environment: files, provenance, other processes."""
