"""How processes find and call each other: member registry, assignment, channels, deadlines, retries and hedges."""
