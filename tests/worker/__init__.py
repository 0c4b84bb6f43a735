"""Workers: their parts one by one, and whole workers against a real database and a real SMTP server."""
