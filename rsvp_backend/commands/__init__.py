"""The commands of the command line, a module each: their options, and what they print. `cli` puts them together."""
