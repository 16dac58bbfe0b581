"""The config subtree of the optimiser."""

from dataclasses import dataclass

from core.config import require


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with warmup-stable-decay and global-norm clipping: `config.optim`. Defaults are SmolLM3's."""

    learning_rate: float = 2e-4  # at the plateau
    warmup_steps: int = 2000
    decay_fraction: float = 0.11  # of all steps, at the end, linearly to zero
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1  # of the matrices inside layers; not of embedding and norms
    clip_norm: float = 1.0

    def __post_init__(self):
        require(self.learning_rate > 0, f"learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must be 0 or more")
        require(0 <= self.decay_fraction <= 1, f"decay_fraction={self.decay_fraction} must lie in 0..1")
        require(0 <= self.b1 < 1 and 0 <= self.b2 < 1, "b1 and b2 must lie in 0..1, 1 excluded")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must be 0 or more")
        require(self.epsilon > 0, f"epsilon={self.epsilon} must be positive")
        require(self.clip_norm > 0, f"clip_norm={self.clip_norm} must be positive")
