"""The tests. A package, so that its fixtures have one name everywhere."""
