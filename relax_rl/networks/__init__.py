"""From spaces to features, and from features to the parameters of a policy."""
