"""The only room that speaks to PostgreSQL. SQL stands in `sql/`; here it is called, row by row typed."""
