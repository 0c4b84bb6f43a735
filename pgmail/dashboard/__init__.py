"""Pages for people: rendered here, styled by one file, without scripts. So far the sandbox's inbox."""
