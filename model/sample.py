"""The next token from logits: greedy, or drawn at a temperature from the likeliest."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from core.config import require

FEW = 64  # of the likeliest, sorted where top_k asks for no more


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The cuts apply in this order, each on what the one before left."""

    temperature: float = 0.8  # 0 takes the likeliest
    top_k: int = 0  # of the likeliest; 0 is all
    top_p: float = 1.0  # the fewest that have this probability together (Holtzman et al. 2020)
    min_p: float = 0.0  # those with at least this fraction of the likeliest one's (Nguyen et al. 2024)

    def __post_init__(self):
        require(self.temperature >= 0, f"temperature={self.temperature} must be 0 or more")
        require(self.top_k >= 0, f"top_k={self.top_k} must be 0 or more")
        require(0 < self.top_p <= 1, f"top_p={self.top_p} must be above 0 and at most 1")
        require(0 <= self.min_p <= 1, f"min_p={self.min_p} must lie between 0 and 1")

    def cuts(self, V: int) -> "Cuts":
        """The same for compiled functions, over V tokens."""
        few = 0 < self.top_k <= FEW < V
        sorts = self.temperature and (self.top_k or self.top_p < 1)
        most = (FEW if few else V) if sorts else 0  # sorting costs more than all the rest
        top_k = min(self.top_k or V, V)
        return Cuts(self.temperature, top_k, self.top_p, self.min_p, self.temperature == 0, most)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cuts:
    """A `Sampling` inside compiled functions: numbers that may change, and the little that is compiled anew."""

    temperature: jax.Array | float
    top_k: jax.Array | int
    top_p: jax.Array | float
    min_p: jax.Array | float
    greedy: bool = field(metadata={"static": True})
    most: int = field(metadata={"static": True})  # how many of the likeliest are sorted; 0 is none


@jax.jit
def sample(logits_BV: jax.Array, cuts: Cuts, seed: int, number_B: jax.Array) -> jax.Array:
    """Token `number` of every row. A row's draw depends on seed, number and row, not on how many rows there are."""
    if cuts.greedy:
        return jnp.argmax(logits_BV, axis=-1)
    logits_BC, ids_BC = kept(logits_BV, cuts)
    chosen_B = jax.vmap(jax.random.categorical)(keys_of(seed, number_B), logits_BC)
    return chosen_B if ids_BC is None else jnp.take_along_axis(ids_BC, chosen_B[:, None], axis=1)[:, 0]


def keys_of(seed: int, number_B: jax.Array) -> jax.Array:
    """The key of every row's token `number`."""
    keys_B = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(number_B)
    return jax.vmap(jax.random.fold_in)(keys_B, jnp.arange(len(number_B)))


def kept(logits_XV: jax.Array, cuts: Cuts) -> tuple[jax.Array, jax.Array | None]:
    """Logits at the temperature, -inf where a cut took them; sorted, with their ids, or as they came, with None."""
    ids_XC, logits_XC = None, logits_XV / cuts.temperature
    if cuts.most:
        logits_XC, ids_XC = jax.lax.top_k(logits_XC, cuts.most)
        logits_XC = jnp.where(jnp.arange(cuts.most) < cuts.top_k, logits_XC, -jnp.inf)
        probs_XC = jax.nn.softmax(logits_XC, axis=-1)
        before_XC = jnp.cumsum(probs_XC, axis=-1) - probs_XC
        logits_XC = jnp.where((before_XC < cuts.top_p) | (cuts.top_p >= 1), logits_XC, -jnp.inf)
    largest_X1 = jnp.max(logits_XC, axis=-1, keepdims=True)
    logits_XC = jnp.where(logits_XC >= largest_X1 + jnp.log(cuts.min_p), logits_XC, -jnp.inf)  # log(0) cuts nothing
    return logits_XC, ids_XC


def probabilities(logits_XV: jax.Array, cuts: Cuts) -> jax.Array:
    """Of every token to be drawn [..., V]; not of greedy cuts, where nothing is drawn."""
    logits_XC, ids_XC = kept(logits_XV, cuts)
    probs_XC = jax.nn.softmax(logits_XC, axis=-1)
    if ids_XC is None:
        return probs_XC
    return jnp.put_along_axis(jnp.zeros(logits_XV.shape), ids_XC, probs_XC, axis=-1, inplace=False)
