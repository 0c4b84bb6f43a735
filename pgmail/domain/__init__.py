"""The words and laws of email, as plain values: no I/O, nothing but the standard library, msgspec and idna."""
