"""How requests share one machine: who goes first, how many wait, and what is answered later."""
