"""The config subtree of the evaluation."""

from dataclasses import dataclass

from core.config import require
from model.sample import Sampling


@dataclass(frozen=True)
class EvalConfig:
    """What is measured and shown of a trained model: `config.eval`."""

    overlap: float = 0.5  # of a window with the one before, which gives its tokens context
    rows: int = 16  # windows evaluated at once
    quick_bytes: int = 50_000  # of held-out text in the evaluations during training
    samples: int = 4  # half continue held-out documents, half begin from nothing
    sample_tokens: int = 128
    prompt_tokens: int = 32
    context: int = 0  # tokens that the cache holds, prompt and continuation together; 0 is a row of the last stage
    temperature: float = 0.8
    top_k: int = 50  # 0 is all
    top_p: float = 1.0
    min_p: float = 0.0
    # Tokens a pass of the trunk that modules of model.multi_token draft. Without, greedy texts are the same and drawn
    # ones of the same distribution.
    drafts: int = 0

    def __post_init__(self):
        require(0 <= self.overlap < 1, f"overlap={self.overlap} must lie in 0..1, 1 excluded")
        require(self.rows > 0, f"rows={self.rows} must be positive")
        for name in ("quick_bytes", "sample_tokens", "prompt_tokens"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        require(self.samples >= 0, f"samples={self.samples} must be 0 or more")
        require(self.drafts >= 0, f"drafts={self.drafts} must be 0 or more")
        require(self.context >= 0, f"context={self.context} must be 0 or more")
        Sampling(self.temperature, self.top_k, self.top_p, self.min_p)  # refuses what cannot be

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)
