"""Methods of others, each a small file that lists its stages."""
