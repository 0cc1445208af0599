"""The maximum of a linear form over a small polytope, by looking at every vertex."""

import torch
from torch import Tensor


def maximum(objective: Tensor, rows: Tensor, limits: Tensor) -> float:
    """max objective . x subject to rows x <= limits and x >= 0; the feasible set must be bounded and hold 0.

    Args:
        objective: (n,) float64. rows: (k, n). limits: (k,).
    """
    n = objective.numel()
    rows = torch.cat([rows, -torch.eye(n, dtype=torch.float64)])
    limits = torch.cat([limits, torch.zeros(n, dtype=torch.float64)])
    scale = rows.norm(dim=-1)
    rows, limits = rows / scale.unsqueeze(-1), limits / scale
    active = torch.combinations(torch.arange(rows.shape[0]), n)
    systems = rows[active]
    regular = torch.linalg.det(systems).abs() > 1e-12
    vertices = torch.linalg.solve(systems[regular], limits[active][regular])
    feasible = (vertices @ rows.T <= limits + 1e-12).all(-1)
    return float((vertices[feasible] @ objective).max())


def prefix_rows(weights: Tensor) -> Tensor:
    """Rows whose product with u is P_m = sum_{t<=m} w_t u_t, m = 1..n, for n weights."""
    n = weights.numel()
    return torch.ones((n, n), dtype=torch.float64).tril() * weights
