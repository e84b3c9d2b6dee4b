"""What models of one family share beyond networks: their ends, and the turns of their game."""
