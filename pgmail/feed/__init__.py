"""Live events: one reader of the database a process, and all who listen."""
