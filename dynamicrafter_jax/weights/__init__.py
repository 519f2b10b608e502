"""Reading and writing of parameters: release files, converted models, model hubs."""
