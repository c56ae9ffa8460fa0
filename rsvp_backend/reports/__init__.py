"""What became of a project's predictions in people's hands: measured, counted, and written down as one page."""
