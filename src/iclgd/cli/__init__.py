"""The command line: runs, sweeps, and the commands around them."""
