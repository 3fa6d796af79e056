"""Episodes as filmstrips: one frame a step, what the policy saw, what it answered, what it got."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from llmrl.types import Trajectory, by_episode, total

SEEN = 300  # characters of an observation without a picture
STYLE = (
    ".film{display:flex;gap:8px;overflow-x:auto;padding:6px 0}.film figure{margin:0;width:190px;flex:none;"
    "border:1px solid #8886;border-radius:6px;padding:6px;font-size:12px}.film img{width:128px;image-rendering:pixelated}"
    ".film pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 4px;max-height:12em;overflow:auto}"
)


def filmstrips(trajectories: Sequence[Trajectory], *, most: int = 8) -> str:
    """HTML of up to `most` episodes, their pictures inside; "" if there are none. Model text is escaped."""
    episodes = [rows for rows in by_episode(trajectories) if rows[0].episode]
    if not episodes:
        return ""
    strips = "".join(_strip(rows) for rows in episodes[:most])
    return f"<style>{STYLE}</style>{strips}"


def _strip(rows: Sequence[Trajectory]) -> str:
    last, reward = rows[-1], total(rows)
    success = last.info.get("success")
    won = "" if success is None else "solved" if success else "not solved"
    said = ", ".join(filter(None, [won, last.ending.value, "" if reward is None else f"reward {reward:g}"]))
    frames = "".join(_frame(row) for row in rows)
    return f'<h3>{escape(last.episode)} <small>{escape(said)}</small></h3><div class="film">{frames}</div>'


def _frame(row: Trajectory) -> str:
    if row.prompt.media:
        encoded = base64.b64encode(row.prompt.media[-1].data).decode()
        shown = f'<img alt="what the policy saw" src="data:image/png;base64,{encoded}">'
    else:
        shown = f"<pre>{escape(row.prompt.text[-SEEN:])}</pre>"
    flags = ", ".join(flag for score in row.scores for flag in score.flags)
    reward = "" if row.reward is None else f"reward {row.reward:g}"
    told = " · ".join(filter(None, [f"step {row.turn + 1}", reward, flags, row.status.reason]))
    return f"<figure>{shown}<pre>{escape(row.text)}</pre><figcaption>{escape(told)}</figcaption></figure>"
