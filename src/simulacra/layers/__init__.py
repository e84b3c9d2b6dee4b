"""Building blocks of networks and the front doors into them; no losses."""
