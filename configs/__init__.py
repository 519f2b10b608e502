"""One file per model or recipe, with all defaults of the project."""
