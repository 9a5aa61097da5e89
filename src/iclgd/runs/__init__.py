"""How is a run kept? Its folder, its life, what it shares with other runs, and what one command did."""
