"""What the pages of `report` are made of: what a run folder says, what its model shows, and how it looks."""
