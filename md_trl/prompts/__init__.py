"""Prompts for teachers and students: chat messages or plain text for a question and a path (Sec. 3.1 and 3.2).

A prompt says itself what it is: a `list` of messages or a `str`. Nothing in this room knows which model reads it.
"""

from .prompt import Prompt, apply_chat_template, encode, encode_prompt, max_prompt_tokens, render
from .student import resolve_prompt_format, student_prompt, student_text
from .student_settings import SETTINGS_FILE, named_prompt_format, read_student_settings
from .teacher import FEW_SHOT_PROMPTS, OWN_TASK_EXAMPLES, STOP, planned_program, teacher_messages, teacher_prompt
from .triggers import TRIGGERS


__all__ = [
    "FEW_SHOT_PROMPTS",
    "OWN_TASK_EXAMPLES",
    "SETTINGS_FILE",
    "STOP",
    "TRIGGERS",
    "Prompt",
    "apply_chat_template",
    "encode",
    "encode_prompt",
    "max_prompt_tokens",
    "named_prompt_format",
    "planned_program",
    "read_student_settings",
    "render",
    "resolve_prompt_format",
    "student_prompt",
    "student_text",
    "teacher_messages",
    "teacher_prompt",
]
