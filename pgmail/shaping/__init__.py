"""Pure decisions: what a result means, when to try again, whether a relay is worth a try. No I/O."""
