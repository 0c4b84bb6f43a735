"""The dashboard's pages of what an operator looks after: the queue, dead letters, templates, keys and the rest."""
