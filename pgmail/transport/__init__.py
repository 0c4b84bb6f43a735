"""Transports: bytes to a reply. `base` says what each promises, `build` makes one from a URL."""
