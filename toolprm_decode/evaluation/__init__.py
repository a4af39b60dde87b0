"""How often strategies are right on suites of questions, and how well reward models judge answers."""
