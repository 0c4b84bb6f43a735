"""From content to bytes: templates rendered within bounds, text made from HTML, MIME assembled. No I/O."""
