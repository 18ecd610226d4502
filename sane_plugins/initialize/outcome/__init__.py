"""What comes out of an initialisation: its result, notes and forecast, the record of its origin, the page."""
