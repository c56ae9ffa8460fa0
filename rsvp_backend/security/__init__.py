"""What stands between the server and whoever calls it: credentials, limits, request ids, and logs without secrets."""
