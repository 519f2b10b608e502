"""Parameters on their way in and out: release files, converted models, hubs."""
