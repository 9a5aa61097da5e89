"""How a run is kept: its folder, its life, what it shares with other runs, and what one command did."""
