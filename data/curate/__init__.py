"""The steps, the recipe that orders them, and the engine that runs them."""
