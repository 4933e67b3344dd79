"""Prompts: a question and a path come in, messages or plain text go out. No prompt knows which model will read it."""

from .student import encode, is_chat, student_prompt
from .teacher import STOP, teacher_messages, teacher_prompt
from .triggers import TRIGGERS


__all__ = ["STOP", "TRIGGERS", "encode", "is_chat", "student_prompt", "teacher_messages", "teacher_prompt"]
