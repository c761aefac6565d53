"""How fast a model is on this machine: what was measured, what it predicts, where it is kept."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_VERSION = 1
_LEAST_SPAN = 1024  # tokens of depth a slope must be measured over to be told from noise


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds until the first token of an answer, and until its last."""

    first_token_seconds: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds a token takes: a base, and a slope for each token that stands before it.

    Attention looks at every earlier token, so a token at depth d costs `base + slope * d`, for the
    prompt (prefill) as for the answer (decode). The base and slope are a line through what was
    measured down to `depth` tokens; anything deeper is an extrapolation.

    Args:
        slopes_are_measured: False where there was no time to go deep enough; the slopes are then
            the share that attention has of the model's arithmetic.
        load_seconds: from opening the file to the first 64 tokens computed, disk included.
        others_cores: cores that other programs kept busy meanwhile; alone it would be faster.
    """

    prefill_base: float
    prefill_slope: float
    decode_base: float
    decode_slope: float
    depth: int
    slopes_are_measured: bool
    load_seconds: float
    others_cores: float = 0.0

    def predicted(
        self, prompt_tokens: int, answer_tokens: int, *, cached_tokens: int = 0
    ) -> Prediction:
        """Time for a prompt of which `cached_tokens` need no computing, and for an answer.

        The sum of `base + slope * d` over the depths d of the tokens computed: for n tokens from
        depth d on it is `n * base + slope * (n * d + n * (n - 1) / 2)`. Loading is not in it.
        """
        fresh = max(0, prompt_tokens - cached_tokens)
        first = _line_sum(self.prefill_base, self.prefill_slope, fresh, cached_tokens)
        answer = _line_sum(self.decode_base, self.decode_slope, answer_tokens, prompt_tokens)
        return Prediction(first, first + answer)

    def prefill_rate(self, prompt_tokens: int = 512) -> float:
        """Prompt tokens a second over a prompt of that length."""
        return prompt_tokens / self.predicted(prompt_tokens, 0).first_token_seconds

    def decode_rate(self, depth: int = 512) -> float:
        """Answer tokens a second after a prompt of `depth` tokens."""
        return 1 / (self.decode_base + self.decode_slope * depth)


def _line_sum(base: float, slope: float, n: int, depth: int) -> float:
    return n * base + slope * (n * depth + n * (n - 1) / 2)


def fit(points: Sequence[tuple[float, float]], share: float) -> tuple[float, float, bool]:
    """Base, slope, and whether the slope was measured, from (depth, seconds a token) points.

    Least squares. Where the points lie too close together, or noise makes the slope fall, the
    slope is `share` of the base for each token of depth.
    """
    depths, seconds = [p[0] for p in points], [p[1] for p in points]
    middle, average = sum(depths) / len(points), sum(seconds) / len(points)
    spread = sum((d - middle) ** 2 for d in depths)
    if max(depths) - min(depths) >= _LEAST_SPAN:
        slope = sum((d - middle) * (s - average) for d, s in points) / spread
        base = average - slope * middle
        if slope > 0 and base > 0:
            return base, slope, True
    base = average / (1 + share * middle)
    return base, base * share, False


# --- kept between runs -------------------------------------------------------------------------


def save_speed(speed: Speed, model: Path, *, engine: str, options: Mapping[str, object]) -> Path:
    """Keep a measurement in the user's cache folder, for `saved_speed` with equal arguments.

    Raises:
        OSError: the folder cannot be written.
    """
    identity = _identity(model, engine, options)
    path = _file(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    text = json.dumps({"identity": identity, "speed": dataclasses.asdict(speed)}, indent=1)
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def saved_speed(model: Path, *, engine: str, options: Mapping[str, object]) -> Speed | None:
    """What was measured for this very file, engine and options; None when nothing was."""
    try:
        identity = _identity(model, engine, options)
        kept = json.loads(_file(identity).read_text("utf-8"))
        if kept["identity"] != identity:
            return None
        speed = Speed(**kept["speed"])
        numbers = (speed.prefill_base, speed.decode_base, speed.prefill_slope, speed.decode_slope)
        return speed if min(numbers[:2]) > 0 and min(numbers) >= 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _identity(model: Path, engine: str, options: Mapping[str, object]) -> dict[str, object]:
    """A changed or replaced file, another engine build or other options are another model."""
    stat = model.stat()
    return {
        "version": _VERSION, "model": str(model.resolve()), "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns, "engine": engine, "options": dict(sorted(options.items())),
    }  # fmt: skip


def _file(identity: Mapping[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return Path(platformdirs.user_cache_dir("mixtral_rag")) / "speed" / f"{digest[:24]}.json"
