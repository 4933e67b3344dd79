"""A SIMULATED teacher for the task Stories behind an OpenAI-compatible HTTP server. No language model is involved.

It parses a question with [`~md_trl.tasks.stories.parse`] and writes right and wrong thoughts about it, so that the
whole method runs offline in minutes. Its strengths and weaknesses are those that the paper reports for each path
(Sec. 3.1), so the benefit of mixing both is built in: results obtained with it show whether the method is implemented
correctly, and say nothing about any real teacher.

- `thoughts`: how a thought is worded, and how a question is misread.
- `chances`: how likely a thought is right, and which thought is written.
- `server`: the OpenAI-compatible protocol.
"""

from .chances import MEAN_CHANCE, think
from .server import FINGERPRINT, MODEL, TeacherServer


__all__ = ["FINGERPRINT", "MEAN_CHANCE", "MODEL", "TeacherServer", "think"]
