"""Non-local sparse attention pixel by pixel, written from the paper's equations alone, in float64."""

from __future__ import annotations

import math

import numpy as np

KEY_EPS = 5e-5


def attend(
    match: np.ndarray, value: np.ndarray, rotations: np.ndarray, chunk_size: int, neighbours: str = 'both'
) -> np.ndarray:
    """[L, c], [L, C], [c, r, m/2] -> [L, C]."""
    length = len(match)
    keys = [x / max(math.sqrt(x @ x), KEY_EPS) for x in match]
    out = np.empty((length, value.shape[1]))
    buckets = attention_buckets(match, rotations, chunk_size, neighbours)
    for i in range(length):
        masses, results = [], []
        for delta in buckets[i]:
            f = [math.exp(match[i] @ keys[j]) for j in delta]
            masses.append(sum(f))
            results.append(sum(f_j * value[j] for f_j, j in zip(f, delta)) / sum(f))  # Eq. 10
        out[i] = sum(mass / sum(masses) * result for mass, result in zip(masses, results))  # Eq. 11
    return out


def attention_buckets(
    match: np.ndarray, rotations: np.ndarray, chunk_size: int, neighbours: str
) -> list[list[list[int]]]:
    """delta_{r,i} for every pixel i and round r (Eqs. 7 to 9, adjacent chunks included), repetitions and all."""
    length, rounds = len(match), rotations.shape[1]
    if length < chunk_size:
        return [[list(range(length))] * rounds for _ in range(length)]
    deltas: list[list[list[int]]] = [[] for _ in range(length)]
    for r in range(rounds):
        order = sorted(range(length), key=lambda i: hash_code(match[i], rotations[:, r]))  # stable
        filled = order + order[length - (-length % chunk_size) :] if length % chunk_size else order
        chunks = [filled[start : start + chunk_size] for start in range(0, len(filled), chunk_size)]
        for place, i in enumerate(order):
            own = place // chunk_size
            delta = chunks[own]
            if neighbours in ('previous', 'both'):
                delta = delta + chunks[own - 1]
            if neighbours == 'both':
                delta = delta + chunks[(own + 1) % len(chunks)]
            deltas[i].append(delta)
    return deltas


def hash_code(x: np.ndarray, rotation: np.ndarray) -> int:
    """Eq. 7: the nearest vertex of the rotated cross-polytope, [c], [c, m/2] -> [0, m)."""
    projected = [float(x @ column) for column in rotation.T]
    vertices = projected + [-p for p in projected]
    return vertices.index(max(vertices))
