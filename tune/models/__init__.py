"""From a best file to models: verified, refitted, registered and served."""
