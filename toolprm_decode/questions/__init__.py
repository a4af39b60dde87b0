"""Questions with known answers: reading them, and saying which steps of an answer are right."""
