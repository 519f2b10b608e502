"""One file a model or recipe; every default of the project lives here."""
