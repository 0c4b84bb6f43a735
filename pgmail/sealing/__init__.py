"""Sealing at rest: AES-256-GCM over the texts, variables and files of mail; see ops/docs/sealing.md."""
