"""Action recognition on what a discriminator has learnt: data, methods and results."""
