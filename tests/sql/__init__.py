"""Tests of the SQL: what the functions promise, on every PostgreSQL found."""
