"""The shelf of models: one system a file, in the folder that says how it makes a sample."""
