"""What others compute level by level with OpenCV, as plainly as can be: the oracles of the one sweep."""

from collections.abc import Sequence

import cv2
import numpy as np

NO_REGION = (0, 0, -1, -1)
Box = tuple[int, int, int, int]


def levels_of(gray: np.ndarray) -> list[int]:
    """Thresholds that show each different mask of a map at both ends of its range."""
    values = {int(value) for value in np.unique(gray)}
    return sorted({t for value in values for t in (value - 1, value) if 0 <= t <= 254} | {0, 254})


def largest_region(mask: np.ndarray) -> Box:
    """Inclusive box of the largest 8-connected region; of equals, that whose first pixel comes first."""
    # Wu's algorithm numbers regions by their first pixels; OpenCV's default goes by blocks of 2 x 2 pixels.
    count, _, statistics, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
        mask.astype(np.uint8), 8, cv2.CV_32S, cv2.CCL_WU
    )
    if count == 1:
        return NO_REGION
    x, y, width, height, _ = statistics[1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA])].tolist()
    return x, y, x + width - 1, y + height - 1


def contours_of(mask: np.ndarray) -> Sequence[np.ndarray]:
    return cv2.findContours(mask.astype(np.uint8) * 255, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]


def tight_box(contour: np.ndarray) -> Box:
    x, y, width, height = cv2.boundingRect(contour)
    return x, y, x + width - 1, y + height - 1


def largest_contour(mask: np.ndarray) -> Box:
    """Inclusive box of the contour of largest polygon area; of equals, OpenCV's first."""
    found = contours_of(mask)
    return tight_box(max(found, key=cv2.contourArea)) if found else NO_REGION


class BoxEvaluator:
    """The standard evaluator's box metrics, one threshold and one contour after the other."""

    def __init__(self, interval: float = 0.001) -> None:
        self.fractions = np.arange(0, 1, interval)
        self.images = 0
        self.right = np.zeros(len(self.fractions), int)  # MaxBoxAcc
        self.right_v2 = {iou: np.zeros(len(self.fractions), int) for iou in (30, 50, 70)}

    def add(self, raw: np.ndarray, size: tuple[int, int], boxes: Sequence[Sequence[float]]) -> None:
        score = normalized(raw)
        gray = (score * 255).astype(np.uint8)
        gt_boxes = [scaled_box(box, size) for box in boxes]
        for i, t in enumerate(self.fractions):
            level = int(t * np.max(gray))
            _, mask = cv2.threshold(gray, level, 255, cv2.THRESH_BINARY)
            found = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            chosen = [max(found, key=cv2.contourArea)] if found else []
            self.right[i] += best_overlap(chosen, gt_boxes) >= 50 / 100
            best = best_overlap(found, gt_boxes)
            for iou, right in self.right_v2.items():
                right[i] += best >= iou / 100
        self.images += 1

    def max_box_acc(self) -> float:
        return float((self.right * 100.0 / self.images).max())

    def max_box_acc_v2(self) -> float:
        return float(np.mean([(right * 100.0 / self.images).max() for right in self.right_v2.values()]))


def normalized(raw: np.ndarray) -> np.ndarray:
    score = cv2.resize(raw.astype(float), (224, 224), interpolation=cv2.INTER_CUBIC)
    if np.isnan(score).any() or score.min() == score.max():
        return np.zeros_like(score)
    score = score - score.min()
    return score / score.max()


def scaled_box(box: Sequence[float], size: tuple[int, int]) -> Box:
    (x0, y0, x1, y1), (width, height) = map(float, box), map(float, size)
    return int(x0 * 224.0 / width), int(y0 * 224.0 / height), int(x1 * 224.0 / width), int(y1 * 224.0 / height)


def best_overlap(contours: Sequence[np.ndarray], gt_boxes: Sequence[Box]) -> float:
    boxes = [(x, y, min(x + w, 223), min(y + h, 223)) for x, y, w, h in map(cv2.boundingRect, contours)]
    return max(overlap(box, other) for box in boxes or [(0, 0, 0, 0)] for other in gt_boxes)


def overlap(box: Box, other: Box) -> float:
    width = max(0, min(box[2], other[2]) - max(box[0], other[0]) + 1)
    height = max(0, min(box[3], other[3]) - max(box[1], other[1]) + 1)
    area, other_area = ((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (box, other))
    return width * height / (area + other_area - width * height)


class MaskEvaluator:
    """The standard evaluator's PxAP, by histograms of all pixels."""

    def __init__(self, interval: float = 0.001) -> None:
        self.edges = np.append(np.arange(0, 1, interval), [1.0, 2.0, 3.0])
        self.true = np.zeros(len(self.edges) - 1)
        self.false = np.zeros(len(self.edges) - 1)

    def add(self, raw: np.ndarray, mask: np.ndarray) -> None:
        score = normalized(raw)
        self.true += np.histogram(score[mask == 1], bins=self.edges)[0]
        self.false += np.histogram(score[mask == 0], bins=self.edges)[0]

    def pxap(self) -> float:
        true, false = self.true[::-1].cumsum(), self.false[::-1].cumsum()
        total = 0.0
        for i in range(1, len(true)):
            if true[i] + false[i]:
                total += (true[i] - true[i - 1]) / self.true.sum() * true[i] / (true[i] + false[i])
        return 100 * total
