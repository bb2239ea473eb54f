"""A small picture of one T-Maze, drawn with NumPy, for `render` and for videos."""

from __future__ import annotations

import numpy as np

CELL = 16
COLUMNS, ROWS = 15, 5  # videos want sides that are multiples of 16

_WALL, _FLOOR, _AGENT = (38, 40, 48), (214, 214, 206), (204, 76, 52)
_RIGHT_ARM, _CUE, _WALKED = (86, 160, 90), (64, 112, 190), (230, 180, 60)


def picture(x: int, y: int, cue: int, junction: int) -> np.ndarray:
    """(80, 240, 3) uint8: the 15 columns around the agent, who is the red square.

    The cue is the blue half cell in column 0, in the upper half for an arm above; the arm that it means is green. The
    yellow bar at the bottom is the part of the way to the junction that is behind the agent.
    """
    image = np.empty((ROWS * CELL, COLUMNS * CELL, 3), np.uint8)
    image[:] = _WALL
    left, middle = x - COLUMNS // 2, ROWS // 2

    def cell(column: int, row: int) -> np.ndarray:
        top, start = (middle - row) * CELL, (column - left) * CELL
        return image[top : top + CELL, start : start + CELL]

    for column in range(max(left, 0), min(left + COLUMNS, junction + 1)):
        cell(column, 0)[:-1, :-1] = _FLOOR
    if junction < left + COLUMNS:
        cell(junction, cue)[:-1, :-1] = _RIGHT_ARM
        cell(junction, -cue)[:-1, :-1] = _FLOOR
    if left <= 0:
        half = CELL // 2
        cell(0, 0)[: half if cue > 0 else None][(0 if cue > 0 else half) :, :-1] = _CUE
    cell(x, y)[4:-5, 4:-5] = _AGENT
    image[-4:, : round(COLUMNS * CELL * x / junction)] = _WALKED
    return image
