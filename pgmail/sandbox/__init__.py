"""What pgmail is tried with: an embedded PostgreSQL, an SMTP sink, sample traffic, the demo and the benches."""
