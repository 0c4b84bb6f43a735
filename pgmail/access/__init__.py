"""Who asks, and what they reach: keys, the addresses they come from, tries that fail. For the API and the dashboard."""
