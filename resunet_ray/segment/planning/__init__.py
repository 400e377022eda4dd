"""What there is to do: inputs become a plan, less what is done."""
