"""Check that finished runs can be reproduced, from their folders alone."""
