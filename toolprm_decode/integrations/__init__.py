"""What brings the decoder to others: an OpenAI-compatible server."""
