"""What brings the decoder to others: an OpenAI-compatible server, the sans-IO search, and plug-ins for other stacks."""
