"""What an actor does: chunks of the plan become regions."""
