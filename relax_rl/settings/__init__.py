"""Every knob, once: what it may be, its presets, the command-line options, from JSON and back."""
