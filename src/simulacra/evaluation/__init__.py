"""The ruler: one measure a file, each naming the capability that it needs."""
