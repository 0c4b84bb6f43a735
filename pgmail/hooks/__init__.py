"""Webhooks: a tenant's endpoints are told of what happens to its mail. Fed by the leader, told by every process."""
