"""The HTTP API: Resend's email routes and pgmail's own, on one database. Litestar lives here only."""
