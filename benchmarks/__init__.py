"""One suite per claim, other engines in the same run."""
