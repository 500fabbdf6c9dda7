"""The policy of FastForward and its PPO update (Schulman et al., arXiv:1707.06347).

Uses torch for a small MLP; FastForward imports it when it runs.

Everything is float64. Adam divides a gradient by its own magnitude, but by no less than 1e-8. In float32 the rounding
errors of a gradient are as large as that: they became steps of their own, other ones on every kind of processor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.distributions import Normal

from ffp.allocators.tracker import check_shapes
from ffp.core.errors import ConfigError
from ffp.core.problem import FloatArray

if TYPE_CHECKING:
    from ffp.allocators.searches.fastforward import FastForward

HIDDEN = (256, 256, 128)
FIRST_MEAN_SCALE = 0.01
DTYPE = torch.float64
DIGITS = 6  # of an advantage: equal rewards have none, whatever the last bits of the critic's value


class ActorCritic(nn.Module):
    """Gaussian policy and critic, each an MLP 1 -> 256 -> 256 -> 128 -> out with ReLU.

    The state is the sparsity, (batch, 1). The mean is linear in the last layer, the log standard deviation a
    parameter of its own, the same in every state. The mean's last layer starts FIRST_MEAN_SCALE times as large as
    torch's default, so that the first mean is about 0: the uniform allocation (our choice; the sources do not say).
    """

    def __init__(self, n_actions: int, initial_std: float, generator: torch.Generator):
        super().__init__()
        self.actor = _mlp(n_actions, generator)
        self.critic = _mlp(1, generator)
        self.log_std = nn.Parameter(torch.full((n_actions,), math.log(initial_std), dtype=DTYPE))
        with torch.no_grad():
            for parameter in self.actor[-1].parameters():
                parameter.mul_(FIRST_MEAN_SCALE)

    def log_density(self, states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Returns the log density of whole actions, summed over their independent parts, (batch,)."""
        gaussian = Normal(self.actor(states), self.log_std.exp())
        density: torch.Tensor = gaussian.log_prob(actions).sum(dim=1)  # type: ignore[no-untyped-call]
        return density

    def entropy(self) -> torch.Tensor:
        """Returns the differential entropy of the diagonal Gaussian, in nats."""
        gaussian = Normal(torch.zeros_like(self.log_std), self.log_std.exp())
        entropy: torch.Tensor = gaussian.entropy().sum()  # type: ignore[no-untyped-call]
        return entropy


def _mlp(n_out: int, generator: torch.Generator) -> nn.Sequential:
    """Trunk and output. U(-1, 1) / sqrt(fan-in) for weights and biases is torch's default, here seeded."""
    layers: list[nn.Module] = []
    sizes = (1, *HIDDEN, n_out)
    for n_in, n_next in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, n_in, n_next, dtype=DTYPE)  # type: ignore[no-untyped-call]
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -(n_in**-0.5), n_in**-0.5, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PpoAgent:
    """An actor-critic with its optimiser, for arrays. It always runs on the CPU, on one thread."""

    def __init__(self, n_actions: int, settings: FastForward, seed: int):
        self.settings = settings
        self._generator = torch.Generator().manual_seed(seed)
        self.model = ActorCritic(n_actions, settings.initial_std, self._generator)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.learning_rate)

    def mean(self, sparsity: float) -> FloatArray:
        """Returns the mean action at a sparsity, (n_actions,)."""
        with _one_thread(), torch.no_grad():
            action: FloatArray = self.model.actor(torch.tensor([[sparsity]], dtype=DTYPE))[0].numpy()
        return action

    def sample(self, sparsity: float, episodes: int) -> FloatArray:
        """Draws actions at a sparsity, (episodes, n_actions)."""
        with _one_thread(), torch.no_grad():
            mean = self.model.actor(torch.tensor([[sparsity]], dtype=DTYPE))
            noise = torch.randn((episodes, mean.shape[1]), generator=self._generator, dtype=DTYPE)
            actions: FloatArray = (mean + noise * self.model.log_std.exp()).numpy()
        return actions

    def update(self, sparsities: FloatArray, actions: FloatArray, rewards: FloatArray) -> None:
        """Updates actor and critic from a batch of episodes.

        An episode has one step, so its return is its reward and its advantage is reward - V(state), normalised over
        the batch. Minimises -min(q A, clip(q) A) + value_weight * (V - reward)^2 - entropy_weight * entropy, where q
        is the ratio of the new to the old density.

        Args:
            sparsities: (episodes,).
            actions: (episodes, n_actions).
            rewards: (episodes,).
        """
        with _one_thread():
            states = torch.tensor(sparsities, dtype=DTYPE)[:, None]
            taken = torch.tensor(actions, dtype=DTYPE)
            returns = torch.tensor(rewards, dtype=DTYPE)
            with torch.no_grad():
                before = self.model.log_density(states, taken)
                advantages = returns - self.model.critic(states)[:, 0]
                advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
                advantages = advantages.round(decimals=DIGITS)
            for _ in range(self.settings.epochs):
                self._descend(self._loss(states, taken, returns, before, advantages))

    def _loss(
        self, states: torch.Tensor, actions: torch.Tensor, returns: torch.Tensor, before: torch.Tensor,
        advantages: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        settings = self.settings
        ratio = (self.model.log_density(states, actions) - before).exp()
        clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
        gain = torch.minimum(ratio * advantages, clipped * advantages).mean()
        value_loss = (self.model.critic(states)[:, 0] - returns).square().mean()
        loss: torch.Tensor = settings.value_weight * value_loss - gain - settings.entropy_weight * self.model.entropy()
        return loss

    def _descend(self, loss: torch.Tensor) -> None:
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        self._optimizer.step()
        numbers = (*self.model.parameters(), self.model.log_std.exp().log())
        if not all(bool(each.isfinite().all()) for each in numbers):
            raise ConfigError(
                f"the policy of fastforward left the numbers that a float holds, with learning_rate "
                f"{self.settings.learning_rate:g}. Lower it, or epochs."
            )

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Takes over the weights of another agent; the optimiser starts afresh.

        Raises:
            ConfigError: They do not fit.
        """
        check_shapes(arrays, self.arrays())
        self.model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})

    def arrays(self) -> dict[str, npt.NDArray[np.float64]]:
        """Returns the weights by torch's names ("actor.0.weight", "log_std", ...)."""
        return {name: tensor.detach().numpy().copy() for name, tensor in self.model.state_dict().items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs small matrix products on one thread: as fast, and the same sums for every number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
