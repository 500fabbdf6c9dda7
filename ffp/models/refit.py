"""Refits: the least-squares weight of an output projection for any number of kept units, from one factorisation.

Units are removed in a fixed order, the last column first. With H = E[x x^T] + alpha I of the inputs in that order and
its Cholesky factor H = L L^T, the weight that keeps the first n columns and makes up best for the others,

    W_n = argmin tr((W_n [I 0] - W) H (W_n [I 0] - W)^T) = (W L)[:, :n] (L^-1)[:n, :n],

needs leading blocks of two products alone: one factorisation serves all widths. What column j adds to that error if it
leaves after all behind it is the squared norm of column j of W L, so that errors of all widths are one cumulative sum.
The same equations lie behind OBS (Hassibi and Stork, 1993), ZipLM (arXiv:2302.04089) and SparseGPT (arXiv:2301.00774).
"""

from __future__ import annotations

import torch

from ffp.models.placement import float64

RIDGE = 0.01  # alpha, relative to the mean diagonal of E[x x^T]
ANCHORS = 8  # widths whose weight is kept, so that any other one costs a small part of the product


def damped(gram: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """Returns E[x x^T] + alpha I in float64, alpha relative to the mean diagonal; (n, n), a copy."""
    found = float64(gram).clone()
    found.diagonal().add_(max(ridge * float(found.diagonal().mean()), 1e-30))
    return found


class Refit:
    """The weights of one output projection that keep its first n columns and make up for the others, for every n.

    Attributes:
        projected: W L, (out, in) float32.
        inverse: L^-1, (in, in) float32, lower triangular. Row j times an input is what column j has that the columns
            before it do not tell, in units of its deviation.
    """

    def __init__(self, weight: torch.Tensor, gram: torch.Tensor, *, ridge: float = RIDGE):
        """Factorises the inputs' moments.

        Args:
            weight: W, (out, in), columns from the one kept longest to the one removed first.
            gram: E[x x^T] of its inputs in the same order, (in, in).
            ridge: Strength of the ridge, relative to the mean diagonal.
        """
        factor = torch.linalg.cholesky(damped(gram, ridge))
        self.projected = (float64(weight) @ factor).float()
        identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        self.inverse = torch.linalg.solve_triangular(factor, identity, upper=False).float()
        self._anchors: dict[int, torch.Tensor] = {}

    def weight(self, n: int) -> torch.Tensor:
        """Returns the weight for the first `n` columns, (out, n) float32.

        It is put together from that of the next smaller anchor, always in the same way, whatever was asked before.
        """
        step = max(1, len(self.inverse) // ANCHORS)
        start = n // step * step
        found: torch.Tensor = self.projected[:, start:n] @ self.inverse[start:n, :n]
        if start:
            if start not in self._anchors:
                self._anchors[start] = self.projected[:, :start] @ self.inverse[:start, :start]
            found[:, :start] += self._anchors[start]
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the factors, and of the weights at the anchors that were asked for so far."""
        return sum(each.nbytes for each in (self.projected, self.inverse, *self._anchors.values()))

    def errors(self, fisher: torch.Tensor) -> torch.Tensor:
        """Returns what each column adds to tr(S dW H dW^T) when it leaves after all behind it, (in,) float64.

        Args:
            fisher: S, second moment of the loss gradients at the projection's outputs, (out, out).
        """
        projected = float64(self.projected)
        return (projected * (float64(fisher).to(projected.device) @ projected)).sum(0)


def errors_without_refit(weight: torch.Tensor, gram: torch.Tensor, fisher: torch.Tensor) -> torch.Tensor:
    """Returns the same as Refit.errors, if the kept columns stay as they are: (in,) float64, which can be negative.

    Args:
        weight: W, (out, in), in the order of removal.
        gram: E[x x^T], (in, in), in the same order.
        fisher: S, (out, out).
    """
    w = float64(weight)
    products = (w.T @ (float64(fisher).to(w.device) @ w)) * float64(gram)
    return products.diagonal() + 2 * products.tril(-1).sum(0)
