"""The command line: a list of small rooms. `main` says which command lives where, `front` how they fail."""
